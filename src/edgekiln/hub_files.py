"""Files of a Hub repository: listing them, fetching them piece by piece, and laying them into the Hub's cache.

The cache is `huggingface_hub`'s (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `blobs` named by
content, `snapshots/<commit>` of links to them, `refs` from names to commits, `trees/<commit>.json` with the listing.
What is fetched here is found by every other program, and the other way round. A partial file stays beside the blobs
and is continued by the next run; nothing becomes a blob before its hash is right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from edgekiln.errors import CheckpointError, MachineError
from edgekiln.hub_client import HubClient, Patience
from edgekiln.hub_errors import TransientError

if TYPE_CHECKING:
    import httpx2

MAX_FILES: Final = 20_000
#: Of what is no weights: the largest tokenizers take 40 MB.
MAX_SMALL_FILE: Final = 256 << 20
_MAX_PATH: Final = 512
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: Characters that some system reads as something else than a name.
_BAD_CHARACTERS: Final = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_PROGRESS_BYTES: Final = 1 << 20  # a try that brought so much counts as progress
_SLOWEST: Final = 1024  # bytes per second, over _WINDOW_SECONDS; below, a connection counts as dead
_WINDOW_SECONDS: Final = 60.0
_SHOW_SECONDS: Final = 0.2
_LOCK_SECONDS: Final = 3600.0


class Listener(Protocol):
    """Who is told how a fetch goes on; `edgekiln.console.Console` is one."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def status(self, text: str) -> None:
        """Show `text` in place of the last one, on a terminal; elsewhere nothing."""


class Silence:
    """A listener that shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def status(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class HubFile:
    """One file of a commit, as the Hub lists it.

    Attributes:
        path: Relative, with slashes, as the Hub says it; `check_path` tells whether it may be used.
        size: Bytes.
        blob: Its name in the cache: sha256 of what is kept aside (LFS), else the id that git gives the content.
        oid: The id of git's entry; of the pointer where the content is kept aside.
    """

    path: str
    size: int
    blob: str
    oid: str

    def digest(self, file: Path) -> str:
        """Return what `blob` must be for the content of `file`."""
        if len(self.blob) == 64:
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()


def resolve_commit(client: HubClient, repository: str, revision: str) -> str:
    """Return the commit that a branch, a tag or a commit stands for now."""
    answer, _ = client.json(f"api/models/{repository}/revision/{quote(revision, safe='')}", f"{repository}@{revision}")
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise MachineError(f"{client.endpoint.host} names no commit for {repository}@{revision}; is HF_ENDPOINT a Hub?")
    return commit


def list_files(client: HubClient, repository: str, commit: str) -> tuple[HubFile, ...]:
    """Return every file of a commit.

    Raises:
        CheckpointError: There are too many.
        MachineError: The Hub cannot be asked, or answers nonsense.
    """
    page: str | None = f"api/models/{repository}/tree/{commit}?recursive=true&expand=false"
    files: dict[str, HubFile] = {}
    seen = 0
    while page is not None:
        entries, page = client.json(page, f"{repository}@{commit[:7]}")
        if not isinstance(entries, list) or (page is not None and not entries):
            raise MachineError(f"{client.endpoint.host} lists {repository} in a form that is not the Hub's")
        seen += len(entries)
        if seen > MAX_FILES:
            raise CheckpointError(f"{repository}@{commit[:7]} has more than {MAX_FILES} files; no checkpoint does")
        for entry in entries:
            if isinstance(entry, dict) and entry.get("type") == "file":
                file = _parse_entry(entry, repository, client.endpoint.host)
                files[file.path] = file
    return tuple(files.values())


def _parse_entry(entry: Mapping[str, Any], repository: str, host: str) -> HubFile:
    match entry:
        case {"path": str(path), "oid": str(oid), "lfs": {"oid": str(blob), "size": int(size)}}:
            pattern = _SHA256
        case {"path": str(path), "oid": str(oid), "size": int(size)}:
            pattern, blob = _COMMIT, oid
        case _:
            raise MachineError(f"{host} lists {repository} in a form that is not the Hub's")
    if size < 0 or not pattern.fullmatch(blob) or not _COMMIT.fullmatch(oid):
        raise MachineError(f"{host} lists {path} of {repository} with an impossible size or hash")
    return HubFile(path, size, blob, oid)


def check_path(path: str, repository: str) -> None:
    """Refuse names that lead out of the folder, here or on another system.

    Raises:
        CheckpointError: It is such a name.
    """
    parts = path.split("/")
    if (
        len(path) > _MAX_PATH
        or any(part in {"", ".", ".."} for part in parts)
        or _BAD_CHARACTERS.search(path)
        or PurePosixPath(path).is_absolute()
    ):
        raise CheckpointError(
            f"{repository} names a file {path[:80]!r}, which is no name inside a folder; do not use it"
        )


class HubCache:
    """The part of the Hub's cache that belongs to one repository.

    Args:
        root: HF_HUB_CACHE.
        repository: `org/name`.
    """

    def __init__(self, root: Path, repository: str) -> None:
        self.root, self.repository = root, repository
        self._name = "--".join(("models", *repository.split("/")))
        self.folder = root / self._name

    def snapshot(self, commit: str) -> Path:
        """Return where the files of a commit are."""
        return self.folder / "snapshots" / commit

    def has(self, commit: str, file: HubFile) -> bool:
        """Tell whether a file is there in full length."""
        try:
            return self.snapshot(commit).joinpath(file.path).stat().st_size == file.size
        except OSError:
            return False

    def missing_bytes(self, files: list[HubFile]) -> int:
        """Return the bytes that have still to be written."""
        total = 0
        for file in {file.blob: file for file in files}.values():
            part = self._partial(file)
            total += file.size - (min(part.stat().st_size, file.size) if part.exists() else 0)
        return total

    def check_space(self, files: list[HubFile]) -> None:
        """Refuse a fetch that the disk has no room for.

        Raises:
            MachineError: There is too little room.
        """
        needed = self.missing_bytes(files)
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise MachineError(
                f"{self.repository} needs {_size(needed)} in the Hub cache {self.root}, which has {_size(free)} free; "
                "free space, or set HF_HOME to a folder on a larger disk"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the system says against writing into a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise MachineError(
                    f"the disk of the Hub cache {self.root} is full; free space, or set HF_HOME to a larger disk"
                ) from None
            raise MachineError(
                f"the Hub cache {self.root} cannot be written ({error.strerror or error}); "
                "set HF_HOME or HF_HUB_CACHE to a folder that can"
            ) from None

    def _blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.blob

    def _partial(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.blob}.edgekiln.incomplete"

    def add(self, client: HubClient, commit: str, file: HubFile, listener: Listener) -> None:
        """Fetch a file unless its content is there, and link it into the snapshot of `commit`.

        Raises:
            MachineError: It cannot be fetched or kept, or arrives damaged.
        """
        from filelock import FileLock, Timeout

        blob = self._blob(file)
        with self.writing():
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock = self.root / ".locks" / self._name / f"{file.blob}.lock"  # where huggingface_hub has its own
            lock.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(lock, timeout=_LOCK_SECONDS):
                    if not blob.is_file() or blob.stat().st_size != file.size:
                        _Fetch(client, self.repository, commit, file, listener).into(self._partial(file))
                        self._partial(file).replace(blob)
                    _link(blob, self.snapshot(commit).joinpath(*file.path.split("/")))
            except Timeout:
                raise MachineError(f"another process has been fetching {file.path} for an hour; end it") from None

    def note_listing(self, commit: str, files: tuple[HubFile, ...]) -> None:
        """Write down what a whole snapshot consists of, so that a partial one is never taken for it."""
        listed = {
            file.path: {"size": file.size, "blob_id": file.oid}
            | ({"lfs_sha256": file.blob, "lfs_size": file.size} if file.blob != file.oid else {})
            for file in files
        }
        self._write(self.folder / "trees" / f"{commit}.json", json.dumps({"format_version": 1, "files": listed}))

    def note_revision(self, revision: str, commit: str) -> None:
        """Let a name stand for a commit, once the snapshot is whole."""
        if revision != commit:
            self._write(self.folder / "refs" / revision, commit)

    def _write(self, path: Path, text: str) -> None:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return  # a cache that is complete may be read-only
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


def _link(blob: Path, pointer: Path) -> None:
    """Make `pointer` show the content of `blob`: a relative link, or a hard link or copy where there are none."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_name(f".{pointer.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(os.path.relpath(blob, pointer.parent))
    except (OSError, NotImplementedError):  # Windows without developer mode, some network disks
        try:
            os.link(blob, partial)
        except OSError:
            shutil.copyfile(blob, partial)
    partial.replace(pointer)


class _Fetch:
    """One file on its way, over as many connections as it takes."""

    def __init__(self, client: HubClient, repository: str, commit: str, file: HubFile, listener: Listener) -> None:
        self._client, self._file, self._listener = client, file, listener
        self._subject = f"{repository}@{commit[:7]}"
        self._url = f"{client.endpoint.url}/{repository}/resolve/{commit}/{quote(file.path)}"

    def into(self, partial: Path) -> None:
        """Complete `partial`, which may hold the beginning already.

        Raises:
            MachineError: The connection breaks too often, or the content is not what the Hub lists.
        """
        continued = partial.exists() and partial.stat().st_size > 0
        self._complete(partial)
        found = self._file.digest(partial)
        if found != self._file.blob and continued:  # the beginning may come from a crash or another writer
            partial.unlink()
            self._complete(partial)
            found = self._file.digest(partial)
        if found != self._file.blob:
            partial.unlink()
            raise MachineError(
                f"{self._file.path} of {self._subject} arrived damaged: its hash is {found[:12]}…, but the Hub lists "
                f"{self._file.blob[:12]}…; fetch again, and if that does not help, ask who runs the proxy or mirror"
            )

    def _complete(self, partial: Path) -> None:
        patience = Patience()
        partial.touch()
        while (begin := partial.stat().st_size) != self._file.size:
            if begin > self._file.size:
                partial.unlink()
                partial.touch()
                continue
            try:
                self._continue(partial, begin)
            except TransientError as error:
                done = partial.stat().st_size
                state = f"{self._file.path}: {error}; {_size(done)} of {_size(self._file.size)} are here"
                try:
                    wait = patience.after(error, progress=done - begin >= _PROGRESS_BYTES)
                except TransientError:
                    said = f"{state} and are kept for the next run"
                    raise TransientError(said, wait=error.wait, unreachable=error.unreachable) from None
                self._listener.say(f"{state}, going on in {wait:g} s")
                time.sleep(wait)

    def _continue(self, partial: Path, begin: int) -> None:
        """Append what one connection gives."""
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with self._client.stream(self._url, self._subject, headers) as response, partial.open("r+b") as file:
            if begin and not _continues(response, begin):
                begin = 0  # the server sends the whole file again
            file.truncate(begin)
            file.seek(begin)
            pace = _Pace(self._client.endpoint.host)
            for piece in response.iter_raw():
                begin += len(piece)
                if begin > self._file.size:
                    raise MachineError(
                        f"{self._file.path} of {self._subject} arrives longer than the {self._file.size} bytes that "
                        "the Hub lists; ask who runs the proxy or mirror"
                    )
                file.write(piece)
                if pace.tick(len(piece)):
                    self._listener.status(f"fetching {self._file.path}: {_size(begin)} of {_size(self._file.size)}")
        if begin < self._file.size:
            raise TransientError(f"{self._client.endpoint.host} ended {self._file.path} early")


def _continues(response: httpx2.Response, begin: int) -> bool:
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")


class _Pace:
    """Watches that a connection lives, and when it is time to show something."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._shown = self._since = time.monotonic()
        self._bytes = 0

    def tick(self, count: int) -> bool:
        """Count bytes; tell whether to show progress.

        Raises:
            TransientError: They come too slowly to be taken for a connection.
        """
        now = time.monotonic()
        self._bytes += count
        if now - self._since > _WINDOW_SECONDS:
            if self._bytes < _SLOWEST * (now - self._since):
                raise TransientError(f"{self._host} sends less than {_SLOWEST} bytes a second")
            self._since, self._bytes = now, 0
        if now - self._shown < _SHOW_SECONDS:
            return False
        self._shown = now
        return True


def _size(count: int) -> str:
    """Return a size for a sentence, rounded."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
