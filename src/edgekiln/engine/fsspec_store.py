"""A store at any address that fsspec knows, which many machines may share: `s3://…`, `file:///…`, `memory://…`.

    URL/shared-v1/objects/abcd…        files by the sha256 of their content
                  entries/abcd….json   one record each, written after all of its files

Results are made and used on this machine, in a local store: the near side. The far side gets what was made, and gives
what another machine made; whatever comes from there is checked like anything that others may write to. A far side that
fails in the middle of a run costs the sharing, not the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgekiln.artifact import write_fault
from edgekiln.engine.entry import MAX_ENTRY_BYTES, Entry, parse_entry
from edgekiln.engine.kept_files import fault_of, remove_tree
from edgekiln.engine.local_store import FIX, LocalStore, complain_to_nobody
from edgekiln.engine.record import Record
from edgekiln.engine.store import Claim, Complaint
from edgekiln.errors import MachineError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LAYOUT: Final = "shared-v1"
#: Protocols that make no connection.
_LOCAL: Final = frozenset({"file", "local", "memory"})
#: Protocols whose files appear whole or not at all; there a rename would be another copy.
_AT_ONCE: Final = frozenset({"abfs", "adl", "az", "gcs", "gs", "hf", "memory", "oci", "oss", "s3", "s3a"})
_PIECE_BYTES: Final = 4 << 20
_WAIT_SECONDS: Final = 0.2


class _FarError(Exception):
    """The far side did not do what it was asked to."""


class _MissingError(Exception):
    """A far file is not there."""


class FsspecStore:
    """Results at an address, by way of a local store.

    Args:
        url: As fsspec takes it.
        near: Holds what is made and what was fetched, claims and work under way.
        complain: Is told what was found damaged, and that the far side is gone.
        offline: Only addresses that need no connection are allowed.

    Raises:
        MachineError: The address cannot be reached, or needs a package that is missing.
    """

    def __init__(
        self, url: str, near: LocalStore, complain: Complaint = complain_to_nobody, *, offline: bool = False
    ) -> None:
        self.url, self.near = url, near
        self._complain = complain
        self._can_read = self._can_write = True
        self._found: dict[str, Entry] = {}
        self._fs, root = _connect(url, offline=offline)
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._at_once = not protocols.isdisjoint(_AT_ONCE)
        takes_turns = not (self._fs.async_impl or not protocols.isdisjoint(_LOCAL))
        self._turn: AbstractContextManager[object] = threading.RLock() if takes_turns else contextlib.nullcontext()
        self._root = f"{root.rstrip('/')}/{LAYOUT}"
        try:
            with self._asking():
                self._fs.ls(root, detail=False)
        except FileNotFoundError:
            return
        except _FarError as error:
            message = f"the cache {url} cannot be reached ({error}); check the address and the network"
            raise MachineError(message) from None

    # --- finding -------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Record | None:
        """Return the record of a finished step, or None; no file is fetched."""
        if (record := self.near.find(key)) is not None:
            return record
        entry = self._far_entry(key)
        return None if entry is None else entry.record

    def open(self, record: Record) -> Path | None:
        """Return a local directory with the files of a finished step, fetched if need be."""
        if (path := self.near.open(record)) is not None:
            return path
        entry = self._far_entry(record.key)
        # What another machine made may be other than what this one knows, and what depends on it was made from that.
        if entry is None or not entry.kept or entry.record.digest != record.digest:
            return None
        return self._fetch(entry.record)

    def records(self) -> Iterator[Record]:
        """Yield every record of either side that can be read."""
        near = set()
        for record in self.near.records():
            near.add(record.key)
            yield record
        for key in self._far_keys():
            if key not in near and (entry := self._far_entry(key)) is not None:
                yield entry.record

    # --- making ----------------------------------------------------------------------------------------------------

    def claim(self, key: str, *, resumable: bool) -> AbstractContextManager[Claim | None]:
        """Give the right to make a step on this machine. See `Store.claim`."""
        return self.near.claim(key, resumable=resumable)

    def put(self, claim: Claim, record: Record) -> Path:
        """Keep what a claim's directory holds here, and send it; see `Store.put`."""
        path = self.near.put(claim, record)
        if self._can_write:
            with self._writing():
                for file in record.files:
                    self._send(path / file.path, file.sha256, file.size)
                self._send_entry(Entry(record=record, stamps={}, kept=True))
        return path

    def drop_files(self, key: str) -> None:
        """Forget the files of a step, not that it was made; those of the far side may belong to others too and stay."""
        entry = self._far_entry(key)
        self.near.drop_files(key)
        if entry is not None and entry.kept and self._can_write:
            with self._writing():
                self._send_entry(entry.model_copy(update={"kept": False}))

    def remove(self, key: str) -> None:
        """Forget a step on both sides."""
        self.near.remove(key)
        self._found.pop(key, None)
        if self._can_write:
            with self._writing(), contextlib.suppress(FileNotFoundError), self._asking():
                self._fs.rm_file(self._entry_path(key))

    def using(self) -> AbstractContextManager[None]:
        """Keep everybody from removing results of this machine meanwhile."""
        return self.near.using()

    # --- the far side ------------------------------------------------------------------------------------------------

    def _entry_path(self, key: str) -> str:
        return f"{self._root}/entries/{key}.json"

    def _object_path(self, sha256: str) -> str:
        return f"{self._root}/objects/{sha256}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever a file system's library raises into one error; that there is no such file passes."""
        try:
            with self._turn:
                yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each library has exceptions of its own, and no common base
            raise _FarError(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Do nothing more with a far side that cannot be read."""
        try:
            yield
        except _FarError as error:
            self._can_read = False
            self._complain(f"the cache {self.url} cannot be read ({error}); the run goes on with what is here")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Send nothing more to a far side that cannot be written."""
        try:
            yield
        except (FileNotFoundError, _FarError) as error:
            self._can_write = False
            self._complain(f"the cache {self.url} cannot be written ({error}); what is made stays on this machine")

    def _far_entry(self, key: str) -> Entry | None:
        """Return what the far side has written down; what is damaged counts as missing, is reported and removed."""
        if not self._can_read or key in self._found:
            return self._found.get(key)
        raw = b""
        with self._reading(), contextlib.suppress(FileNotFoundError), self._asking():
            self._fs.invalidate_cache()
            raw = self._fs.cat_file(self._entry_path(key), start=0, end=MAX_ENTRY_BYTES + 1)
        if not raw:
            return None
        try:
            entry = parse_entry(raw[: MAX_ENTRY_BYTES + 1], key)
        except ValueError:
            self._complain(f"the entry {key}.json of the cache {self.url} is damaged; the step is made again")
            self._forget(self._entry_path(key))
            return None
        if entry is not None:
            self._found[key] = entry
        return entry

    def _far_keys(self) -> list[str]:
        found: list[str] = []
        if self._can_read:
            with self._reading(), contextlib.suppress(FileNotFoundError), self._asking():
                self._fs.invalidate_cache()
                found = self._fs.ls(f"{self._root}/entries", detail=False)
        names = (str(path).rpartition("/")[2] for path in found)
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def _forget(self, *paths: str) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError, _FarError), self._asking():
                self._fs.rm_file(path)

    def _send(self, path: Path, sha256: str, size: int) -> None:
        far = self._object_path(sha256)
        with contextlib.suppress(FileNotFoundError), self._asking():
            self._fs.invalidate_cache()
            if self._fs.info(far).get("size") == size:
                return
        with self._whole(far) as temporary:
            self._fs.put_file(str(path), temporary)

    def _send_entry(self, entry: Entry) -> None:
        with self._whole(self._entry_path(entry.record.key)) as temporary:
            self._fs.pipe_file(temporary, entry.to_bytes())
        self._found[entry.record.key] = entry

    @contextmanager
    def _whole(self, far: str) -> Iterator[str]:
        """Yield a name to write to, which becomes `far` when all is written, where files do not appear whole anyway."""
        with self._asking():
            if self._at_once:
                yield far
                return
            self._fs.makedirs(far.rpartition("/")[0], exist_ok=True)
            temporary = f"{far}.{secrets.token_hex(4)}.partial"
            try:
                yield temporary
                self._fs.mv(temporary, far)
            except BaseException:
                with contextlib.suppress(Exception):  # what was to be written is gone already, or stays beside
                    self._fs.rm_file(temporary)
                raise

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _fetch(self, record: Record) -> Path | None:
        """Bring the files of a result here; one process does that, others wait for it."""
        while True:
            with self.near.claim(f"{record.key}+fetch", resumable=True) as claim:
                if claim is not None:
                    return self.near.open(record) or self._fetch_into(claim, record)
            time.sleep(_WAIT_SECONDS)

    def _fetch_into(self, claim: Claim, record: Record) -> Path | None:
        if record.size > (free := shutil.disk_usage(self.near.root).free):
            self._complain(f"{record.name} of {self.url} has {record.size} bytes, but only {free} are free here")
            return None
        wanted = {claim.directory / file.path for file in record.files}
        for path in [each for each in claim.directory.rglob("*") if not each.is_dir() and each not in wanted]:
            remove_tree(path)
        for file in record.files:
            fault: str | None = "cannot be read"
            try:
                with self._reading():
                    fault = self._bring(claim.directory / file.path, file.sha256, file.size)
            except OSError as error:
                raise write_fault(self.near.root.parent, error, FIX) from None
            if not self._can_read:
                return None
            if fault is not None:
                self._complain(f"{file.path} of {record.name} in the cache {self.url} {fault}; the step is made again")
                self._found.pop(record.key, None)
                self._forget(self._entry_path(record.key), self._object_path(file.sha256))
                return None
        return self.near.put(claim, record)

    def _bring(self, path: Path, sha256: str, size: int) -> str | None:
        """Make a file be here, from what is here already if possible, and return what is wrong with the far one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if fault_of(path, size, sha256) is None:
                return None
            remove_tree(path)
        if self.near.take(sha256, size, path):
            return None
        digest, got = hashlib.sha256(), 0
        try:
            with path.open("wb") as target:
                for piece in self._pieces(self._object_path(sha256), size + 1):
                    digest.update(piece)
                    got += len(piece)
                    if got > size:
                        return f"has more than {size} bytes"
                    target.write(piece)
        except _MissingError:
            return "is missing"
        if got != size:
            return f"has {got} bytes instead of {size}"
        return None if digest.hexdigest() == sha256 else "has other bytes than were put there"

    def _pieces(self, far: str, limit: int) -> Iterator[bytes]:
        """Yield at most `limit` bytes of a far file."""
        try:
            with self._asking():
                file = self._fs.open(far, "rb", block_size=_PIECE_BYTES)
            try:
                while limit > 0:
                    with self._asking():
                        piece = file.read(min(_PIECE_BYTES, limit))
                    if not piece:
                        return
                    limit -= len(piece)
                    yield piece
            finally:
                with contextlib.suppress(_FarError), self._asking():
                    file.close()
        except FileNotFoundError:
            raise _MissingError from None


def _connect(url: str, *, offline: bool) -> tuple[AbstractFileSystem, str]:
    """Return the file system of an address, and the path in it.

    Raises:
        MachineError: There is none.
    """
    protocols = {part.partition("://")[0] for part in url.split("::")}
    if offline and not protocols <= _LOCAL:
        raise MachineError(f"the cache {url} needs a connection, but this run is offline; {FIX}")
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise MachineError(f"the cache {url} needs a package that is missing: {error}") from None
    except Exception as error:  # noqa: BLE001 - each library has exceptions of its own, and no common base
        raise MachineError(f"the cache {url} cannot be used ({error}); {FIX}") from None
    return fs, root
