"""What of an export under way is done: lines of JSON, one for each whole tensor, in a file beside the artifact.

A killed export goes on after its last whole tensor. A line is written when the last byte of its tensor has gone to the
system, so a killed process loses nothing that it noted. After a power loss a line may have survived without its bytes:
every line has the checksums of its bytes, and a tensor counts as done only where these are found again. Neither order
nor durability of the writes decides about that; the files are synchronized now and then just to lose less.

The file lies in a cache that others may write to, so each line is hostile: it can make a tensor count as not done, and
nothing else. Places are never taken from it, only compared.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from edgekiln.errors import CheckpointError, EdgekilnError
from edgekiln.files import open_regular, parse_json, read_bounded

_SCHEMA: Final = "edgekiln.journal/1"
#: The largest Qwen, with 36,000 tensors, needs 5 MB.
_MAX_BYTES: Final = 64 << 20
#: Values of one line: those of a tensor that was noted in 20,000 pieces.
_MAX_VALUES: Final = 100_000
_SYNC_SECONDS: Final = 10.0
#: Reading back waits for the disk more than for the processor.
_READERS: Final = 4
_PIECE_BYTES: Final = 1 << 20
_TENSOR_LINE: Final = b'{"tensor":'


@dataclass(frozen=True, order=True)
class Extent:
    """Where bytes of a tensor lie.

    Attributes:
        file: Name of a file in the artifact's directory.
        offset: Position of the first byte.
        nbytes: How many.
    """

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """Where the tensors of an artifact lie, fixed before a byte is written.

    Attributes:
        sizes: Bytes of each file of tensors, by its name.
        extents: The places of each tensor's bytes, by its name; those of two tensors do not overlap.
    """

    sizes: Mapping[str, int]
    extents: Mapping[str, tuple[Extent, ...]]

    def fingerprint(self, key: str) -> str:
        """Return a digest of all files, tensors and places, and of whatever else `key` says, in hex."""
        places = {name: [[e.file, e.offset, e.nbytes] for e in parts] for name, parts in self.extents.items()}
        text = json.dumps([key, dict(self.sizes), places], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Written:
    """Bytes of a tensor that have gone to the system, with their crc32."""

    extent: Extent
    crc32: int


@dataclass(frozen=True)
class _Line:
    """A line that an attempt on this layout can have written.

    Attributes:
        raw: Its bytes, the line's end included.
        tensor: The tensor that it says to be whole; None for one that begins an attempt.
        written: That tensor's bytes.
    """

    raw: bytes
    tensor: str | None = None
    written: tuple[Written, ...] = ()


class Journal:
    """Remembers which tensors of an artifact are whole, over any number of attempts to write it.

    One process at a time may have it open; who opens it sees to that.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        """Name the file; nothing is read or written before `begin`.

        Args:
            path: The file, which need not exist. It lies outside the artifact's directory.
            key: Stands for all that decides the bytes beside their places: what was written under another key counts
                for nothing.
        """
        self.path = path
        self._key = key
        self._before: frozenset[str] = frozenset()
        self._now = 0
        self._attempt = 0
        self._file: BinaryIO | None = None
        self._syncs: _Syncs | None = None

    @property
    def done_before(self) -> int:
        """Tensors that earlier attempts had completed."""
        return len(self._before)

    @property
    def done_now(self) -> int:
        """Tensors that this attempt has completed."""
        return self._now

    def begin(self, directory: Path, layout: Layout) -> frozenset[str]:
        """Begin an attempt, and return the tensors whose bytes lie in their places already.

        Args:
            directory: Of the artifact. What earlier attempts left there is removed, but for files of tensors that hold
                a tensor which is done.
            layout: Where the tensors lie.

        Raises:
            MachineError: The journal cannot be read or written.
        """
        from edgekiln.artifact import write_atomically

        header = json.dumps({"schema": _SCHEMA, "layout": layout.fingerprint(self._key)}).encode() + b"\n"
        text = self._read()
        lines = _lines(text, header, layout)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="journal") as pool:
            intact = pool.map(functools.partial(_intact, directory), lines)
            lines = [line for line, whole in zip(lines, intact, strict=True) if whole]
        self._before = frozenset(line.tensor for line in lines if line.tensor is not None)
        self._now, self._attempt = 0, 1 + sum(line.tensor is None for line in lines)
        _clear(directory, {extent.file for name in self._before for extent in layout.extents[name]})
        sound = header + b"".join(line.raw for line in lines)
        if sound != text:
            write_atomically(self.path, sound.decode())
        self._file = self.path.open("ab")
        self._append({"attempt": self._attempt})
        self._syncs = _Syncs([*(directory / name for name in layout.sizes), self.path])
        return self._before

    def complete(self, name: str, written: Iterable[Written]) -> None:
        """Note that a tensor is whole.

        Args:
            name: A tensor of the layout, not noted before.
            written: Its bytes, all of which have gone to the system; in any pieces that make up its places.
        """
        parts = [[w.extent.file, w.extent.offset, w.extent.nbytes, w.crc32] for w in written]
        self._append({"tensor": name, "attempt": self._attempt, "parts": parts})
        self._now += 1
        if self._syncs is not None:
            self._syncs.start_if_due()

    def close(self) -> None:
        """End the attempt.

        Raises:
            OSError: A file could not be synchronized.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._syncs is not None:
            syncs, self._syncs = self._syncs, None
            syncs.close()

    def _read(self) -> bytes:
        """Return what the file holds; nothing if it is missing, or nothing that we can have written."""
        try:
            return read_bounded(self.path, _MAX_BYTES)
        except CheckpointError:
            return b""

    def _append(self, line: Mapping[str, object]) -> None:
        if self._file is None:
            raise ValueError(f"the journal {self.path} is not open")
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


class _Syncs:
    """Brings files to the disk every few seconds, beside the work: a power loss then costs seconds of it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._last: Future[None] | None = None
        self._due = time.monotonic() + _SYNC_SECONDS

    def start_if_due(self) -> None:
        """Start one if it is time and none is running; raise the OSError of the one before."""
        if time.monotonic() < self._due or (self._last is not None and not self._last.done()):
            return
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self._run)
        self._due = time.monotonic() + _SYNC_SECONDS

    def close(self) -> None:
        """Wait for the one that is running, and raise its OSError."""
        self._pool.shutdown()
        if self._last is not None:
            self._last.result()

    def _run(self) -> None:
        for path in self._paths:
            descriptor = os.open(path, os.O_RDWR)  # Windows synchronizes only what is open for writing
            try:
                getattr(os, "fdatasync", os.fsync)(descriptor)
            finally:
                os.close(descriptor)


def _lines(text: bytes, header: bytes, layout: Layout) -> list[_Line]:
    """Return the lines that attempts on this layout can have written.

    Left out are those of another layout, torn, not ours, or of a tensor that is unknown, elsewhere or noted twice.
    """
    if not text.startswith(header):
        return []
    raw = text[len(header) :].splitlines(keepends=True)
    lines = [line for each in raw if (line := _parse(each, layout)) is not None]
    times = Counter(line.tensor for line in lines)
    return [line for line in lines if line.tensor is None or times[line.tensor] == 1]


def _parse(raw: bytes, layout: Layout) -> _Line | None:
    """Return what a line says; None when it is not to be relied on."""
    if not raw.endswith(b"\n"):
        return None
    try:
        value = parse_json(raw, _MAX_VALUES)
    except ValueError:
        return None
    match value:
        case {"attempt": int(), **others} if not others:
            return _Line(raw)
        case {"tensor": str(name), "attempt": int(), "parts": [*parts], **others} if not others:
            written = tuple(entry for part in parts if (entry := _written(part)) is not None)
            covered = _joined(entry.extent for entry in written)
            if name in layout.extents and len(written) == len(parts) and covered == _joined(layout.extents[name]):
                return _Line(raw, name, written)
    return None


def _written(part: object) -> Written | None:
    match part:
        case [str(file), int(offset), int(nbytes), int(crc)] if offset >= 0 and nbytes > 0:
            return Written(Extent(file, offset, nbytes), crc)
    return None


def _joined(extents: Iterable[Extent]) -> list[Extent]:
    """Return extents in order, those that follow on one another made one; empty ones are left out."""
    joined: list[Extent] = []
    for extent in sorted(extents):
        last = joined[-1] if joined else None
        if last is not None and (last.file, last.offset + last.nbytes) == (extent.file, extent.offset):
            joined[-1] = Extent(last.file, last.offset, last.nbytes + extent.nbytes)
        elif extent.nbytes:
            joined.append(extent)
    return joined


_scratch: Final = threading.local()


def _intact(directory: Path, line: _Line) -> bool:
    """Tell whether the files hold the bytes that a line notes."""
    buffer = _scratch.__dict__.setdefault("buffer", memoryview(bytearray(_PIECE_BYTES)))
    try:
        for name, group in itertools.groupby(line.written, key=lambda entry: entry.extent.file):
            descriptor, _ = open_regular(directory / name)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                if not all(_crc32(file, entry.extent, buffer) == entry.crc32 for entry in group):
                    return False
    except (OSError, EdgekilnError):  # missing, no file, or a sector that cannot be read: it is written again
        return False
    return True


def _crc32(file: FileIO, extent: Extent, buffer: memoryview) -> int | None:
    """Return the crc32 of bytes in a file; None when it ends before."""
    file.seek(extent.offset)
    left, crc = extent.nbytes, 0
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            return None
        crc = zlib.crc32(buffer[:count], crc)
        left -= count
    return crc


def _clear(directory: Path, keep: Collection[str]) -> None:
    """Remove everything in a directory but some files."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


class DoneCounter:
    """Counts the tensors that a journal notes, for one who watches it grow; reads only what is new."""

    def __init__(self, path: Path) -> None:
        """Name the journal, which need not exist yet."""
        self._path = path
        self._inode = -1
        self._position = 0
        self._count = 0

    def count(self) -> int:
        """Return how many tensors are done; 0 while there is no journal."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._position:
                    self._inode, self._position, self._count = status.st_ino, 0, 0
                file.seek(self._position)
                new = file.read(_MAX_BYTES)
        except OSError:
            return self._count
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        self._count += sum(line.startswith(_TENSOR_LINE) for line in whole.splitlines())
        return self._count
