"""The files of an artifact that hold its tensors: every byte has its place beforehand, and what is there stays."""

from __future__ import annotations

import contextlib
import zlib
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from edgekiln.errors import StepError
from edgekiln.journal import Extent, Journal, Layout, Written

Bytes: TypeAlias = bytes | memoryview


class TensorFiles:
    """Writes tensors to their places; use as a context manager, from one thread at a time.

    With a journal, tensors that an earlier attempt completed are done from the start: they are not to be written again.
    Whatever belongs to no tensor (a header, padding) is made anew.
    """

    def __init__(self, directory: Path, layout: Layout, journal: Journal | None = None) -> None:
        """Name the files; they are opened on entering the context.

        Args:
            directory: Of the artifact; empty, but for what the journal knows.
            layout: Where the tensors lie.
            journal: Is told which tensors are whole; None to write all of them and to note nothing.
        """
        self._directory = directory
        self._layout = layout
        self._journal = journal
        self._done: frozenset[str] = frozenset()
        self._files: dict[str, FileIO] = {}
        #: What of each part of the tensors under way has been written.
        self._written: dict[str, list[Written]] = {}

    def __enter__(self) -> Self:
        try:
            if self._journal is not None:
                self._done = self._journal.begin(self._directory, self._layout)
            kept = {extent.file for name in self._done for extent in self._layout.extents[name]}
            for name, size in self._layout.sizes.items():
                self._files[name] = (self._directory / name).open("r+b" if name in kept else "xb", buffering=0)
                self._files[name].truncate(size)
                if name in kept:
                    self._clear_gaps(name, size)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(*() if kind is None else (OSError,)):  # the first error is the one to tell
            self._close()

    def is_done(self, name: str) -> bool:
        """Tell whether a tensor is in its place already."""
        return name in self._done

    def put(self, file: str, offset: int, data: Bytes) -> None:
        """Write bytes that belong to no tensor."""
        raw = self._files[file]
        raw.seek(offset)
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[raw.write(rest) :]

    def write(self, name: str, data: Bytes, part: int = 0) -> None:
        """Write the next bytes of a tensor.

        Args:
            name: The tensor, which is not done.
            data: Contiguous.
            part: Which of its extents they continue.

        Raises:
            StepError: They are more than the layout has room for.
        """
        extents = self._layout.extents[name]
        parts = self._written.setdefault(name, [Written(Extent(e.file, e.offset, 0), 0) for e in extents])
        before, place, length = parts[part], extents[part], memoryview(data).nbytes
        if before.extent.nbytes + length > place.nbytes:
            raise StepError(f"{name} has more than the {place.nbytes} bytes that were planned; its quantizer is wrong")
        self.put(place.file, place.offset + before.extent.nbytes, data)
        crc = 0 if self._journal is None else zlib.crc32(data, before.crc32)
        parts[part] = Written(Extent(place.file, place.offset, before.extent.nbytes + length), crc)

    def complete(self, name: str) -> None:
        """Take a tensor for whole.

        Raises:
            StepError: Some of its bytes are missing.
        """
        written, planned = self._written.pop(name, []), self._layout.extents[name]
        if tuple(entry.extent for entry in written) != planned:
            count, wanted = sum(w.extent.nbytes for w in written), sum(e.nbytes for e in planned)
            raise StepError(f"{name} has {count} bytes, not {wanted} as planned; its quantizer is wrong")
        if self._journal is not None:
            self._journal.complete(name, written)

    def _clear_gaps(self, file: str, size: int) -> None:
        """Write zeros between the tensors and behind the last: a crash may have left anything there."""
        places = sorted(e for extents in self._layout.extents.values() for e in extents if e.file == file)
        position = places[0].offset if places else size
        for start, stop in [*((e.offset, e.offset + e.nbytes) for e in places), (size, size)]:
            if start > position:
                self.put(file, position, bytes(start - position))
            position = stop

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._journal is not None:
            self._journal.close()
