"""A store in a directory of this machine, which any number of engines may share.

    CACHE/v1/entries/ab/abcd….json     one record each, written last and by a rename
             results/ab/abcd…/         the files of a step, read-only
             objects/ab/abcd…          the same files by their content: equal ones are one file with several names
             partial/abcd…/            steps under way; what a killed engine left
             locks/abcd….lock          who makes which step; the system frees it when a process ends
             use.lock.db               shared by all engines; who removes results holds it alone

A directory of another layout lies beside `v1`, so two versions of Edgekiln never read each other's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgekiln.artifact import sync, write_atomically, write_fault
from edgekiln.engine.entry import MAX_ENTRY_BYTES, Entry, parse_entry
from edgekiln.engine.kept_files import Stamp, fault_of, flush, make_private, remove_file, remove_tree, share
from edgekiln.engine.machine_lock import SharedLock
from edgekiln.engine.record import Record
from edgekiln.engine.store import Claim, Complaint
from edgekiln.errors import ChildError, EdgekilnError, InterruptError, MachineError, StepError
from edgekiln.files import read_bounded

LAYOUT: Final = "v1"
#: What an engine does where a store cannot be written to.
FIX: Final = "let EDGEKILN_CACHE name another directory"
#: https://bford.info/cachedir/: programs that make backups leave such a directory out.
_CACHEDIR_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Results that Edgekiln can make again.\n"
_FOLDERS: Final = ("entries", "results", "objects", "partial", "locks")
#: How stale the time of last use may be; written more often it would cost a no-op run more than all else.
_USE_SECONDS: Final = 3600.0
_WAIT_SECONDS: Final = 0.2


def complain_to_nobody(_text: str) -> None:
    """Complain to nobody."""


class LocalStore:
    """Results in a local directory.

    Args:
        root: Made if need be.
        complain: Is told what was found damaged.
        read_only: Nothing is written, not even what was found damaged is removed; `claim` and `put` may not be called.

    Raises:
        MachineError: The directory cannot be made or written, or, where it is only read, holds no store.
    """

    def __init__(self, root: Path, complain: Complaint = complain_to_nobody, *, read_only: bool = False) -> None:
        self.root = root / LAYOUT
        self._entries = f"{self.root / 'entries'}{os.sep}"
        self.read_only = read_only
        self._complain = complain
        #: Entries by key, with how their files looked.
        self._known: dict[str, tuple[tuple[int, int, int], Entry]] = {}
        #: Keys of a read-only store whose files are damaged.
        self._damaged: set[str] = set()
        if read_only:
            if not (self.root / "entries").is_dir():
                raise MachineError(f"{root} holds no cache of this version of Edgekiln; {FIX}")
            return
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not (root / "CACHEDIR.TAG").exists():
                write_atomically(root / "CACHEDIR.TAG", _CACHEDIR_TAG)
            with tempfile.TemporaryFile(dir=self.root / "partial") as file:
                file.write(b"x")
        except OSError as error:
            raise self._fault(error) from None

    # --- finding -------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Record | None:
        """Return the record of a finished step, or None."""
        entry = self._read(key)
        return None if entry is None else entry.record

    def open(self, record: Record) -> Path | None:
        """Return the directory of a finished step if every file is what was put there.

        A file that looks as it did when its content was last known counts as unchanged; any other is hashed again.
        """
        entry = self._read(record.key)
        if entry is None or not entry.kept:
            return None
        directory = self._result(record.key)
        inside = f"{directory}{os.sep}"
        hashed: dict[str, Stamp] = {}
        for file in entry.record.files:
            try:
                now, known, fault = Stamp.of(inside + file.path), entry.stamps.get(file.path), None
                if known is None or not known.vouches_for(now):
                    hashed[file.path] = now
                    fault = fault_of(directory / file.path, file.size, file.sha256)
            except OSError as error:
                fault = f"cannot be read ({error.strerror})"
            if fault is not None:
                self._complain(f"the cache's {file.path} of {record.name} {fault}; the step is made again")
                self.remove_damaged(entry.record)
                return None
        if not self.read_only:
            if hashed:
                with contextlib.suppress(MachineError):
                    self._write(entry.model_copy(update={"stamps": {**entry.stamps, **hashed}}))
            self._touch(record.key)
        return directory

    def records(self) -> Iterator[Record]:
        """Yield every record that can be read."""
        for path in sorted((self.root / "entries").glob("*/*.json")):
            entry = self._read(path.stem)
            if entry is not None:
                yield entry.record

    # --- making ----------------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, key: str, *, resumable: bool) -> Iterator[Claim | None]:
        """Give the right to make a step, or None while another engine has it. See `Store.claim`."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "locks" / f"{key}.lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            yield None
            return
        except NotImplementedError:
            raise MachineError(f"the file system of {self.root} cannot lock files; {FIX}") from None
        except OSError as error:
            raise self._fault(error) from None
        try:
            place = self._begin(key, resumable=resumable)
            keep = False
            try:
                yield Claim(key, place / "files", place / "journal")
            except (InterruptError, ChildError):
                keep = resumable
                raise
            finally:
                if not keep:
                    with contextlib.suppress(OSError):  # what is left is found by the next claim, and by `abandoned`
                        remove_tree(place)
        finally:
            lock.release()

    def put(self, claim: Claim, record: Record) -> Path:
        """Keep the files of a claim: flushed, shared with equal ones, visible by one rename; the record comes last.

        Where the same files are there already, as when a step was made anew on purpose, those are kept: somebody may
        be reading them.
        """
        result = self._result(record.key)
        place = claim.directory.parent
        try:
            _check_whole(claim.directory, record)
            if not self._has_equal(record):
                flush([claim.directory / file.path for file in record.files])
                for file in record.files:
                    known = self._object(file.sha256)
                    share(claim.directory / file.path, known, file.size, file.sha256, place / "shared")
                remove_file(self._path(record.key))
                self._known.pop(record.key, None)
                if os.path.lexists(result):  # of other content, or of an engine that was killed before the record
                    result.rename(place / "replaced")
                _make_folder(result.parent)
                claim.directory.rename(result)
                flush([*(path for path in result.rglob("*") if path.is_dir()), result, result.parent])
            stamps = {file.path: Stamp.of(result / file.path) for file in record.files}
        except OSError as error:
            raise self._fault(error) from None
        self._write(Entry(record=record, stamps=stamps, kept=True))
        return result

    def drop_files(self, key: str) -> None:
        """Forget the files of a step, not that it was made."""
        entry = self._read(key)
        if entry is None or not entry.kept:
            return
        self._write(entry.model_copy(update={"stamps": {}, "kept": False}))
        try:
            remove_tree(self._result(key))
        except OSError as error:
            raise self._fault(error) from None
        self._sweep(entry.record)

    def remove(self, key: str) -> None:
        """Forget a step.

        Raises:
            MachineError: It cannot be removed.
        """
        entry = self._read(key)
        self._known.pop(key, None)
        try:
            remove_file(self._path(key))
            remove_tree(self._result(key))
        except OSError as error:
            raise self._fault(error) from None
        if entry is not None:
            self._sweep(entry.record)

    def take(self, sha256: str, size: int, path: Path) -> bool:
        """Make `path` a file of known content from an equal one that is here, and return whether there is one.

        Args:
            sha256: Of the content.
            size: Bytes of it.
            path: In the directory of a claim; may not exist.
        """
        try:
            if fault_of(self._object(sha256), size, sha256) is not None:
                return False
            path.hardlink_to(self._object(sha256))
        except (OSError, NotImplementedError):
            return False
        return True

    # --- looking after it ------------------------------------------------------------------------------------------

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep everybody from removing results while an engine runs; does nothing where the store is only read."""
        if self.read_only:
            yield
            return
        lock = self._use_lock()
        said = False
        while not lock.try_share():
            if not said:
                said = True
                self._complain("waiting until another edgekiln has removed results from the cache")
            time.sleep(_WAIT_SECONDS)
        try:
            yield
        finally:
            lock.release_share()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep engines from running meanwhile.

        Raises:
            MachineError: One runs.
        """
        lock = self._use_lock()
        if not lock.works:
            raise MachineError(f"the file system of {self.root} cannot lock files, so nothing is removed; {FIX}")
        if not lock.try_alone():
            raise MachineError(f"another edgekiln uses {self.root.parent}; wait for it, and try again")
        try:
            yield
        finally:
            lock.release_alone()

    def fault(self, record: Record) -> str | None:
        """Return what is wrong with a record's files after hashing all of them, or None; nothing is changed."""
        entry = self._read(record.key)
        if entry is None or not entry.kept:
            return None
        for file in record.files:
            try:
                if fault := fault_of(self._result(record.key) / file.path, file.size, file.sha256):
                    return f"{file.path} {fault}"
            except OSError as error:
                return f"{file.path} cannot be read ({error.strerror})"
        return None

    def remove_damaged(self, record: Record) -> None:
        """Forget a step of which a file is damaged; one that others share is looked at before it is shared again."""
        if self.read_only:
            self._damaged.add(record.key)
            return
        with contextlib.suppress(MachineError):
            self.remove(record.key)

    def has_files(self, key: str) -> bool:
        """Return whether the files of a finished step were kept."""
        entry = self._read(key)
        return entry is not None and entry.kept

    def paths(self, record: Record) -> Iterator[Path]:
        """Yield where the files of a result lie, and its entry."""
        yield self._path(record.key)
        if self.has_files(record.key):
            yield from (self._result(record.key) / file.path for file in record.files)

    def last_use(self, key: str) -> float:
        """Return when a step's result was last used, in seconds since the epoch, to within an hour."""
        try:
            return self._path(key).stat().st_mtime
        except OSError:
            return 0.0

    def disk_bytes(self) -> int:
        """Return the bytes of all files, equal ones counted once, and of what is under way."""
        seen: dict[tuple[int, int], int] = {}
        for folder in ("results", "objects", "partial"):
            for path in (self.root / folder).rglob("*"):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        seen[status.st_dev, status.st_ino] = status.st_size
        return sum(seen.values())

    def abandoned(self) -> Iterator[Path]:
        """Yield what killed engines left under way and nobody works on; each is safe to remove while it is yielded."""
        from filelock import FileLock, Timeout

        for place in sorted((self.root / "partial").iterdir()):
            lock = FileLock(self.root / "locks" / f"{place.name.partition('-')[0]}.lock", timeout=0)
            try:
                lock.acquire()
            except (Timeout, OSError, NotImplementedError):
                continue
            try:
                yield place
            finally:
                lock.release()

    def sweep(self) -> None:
        """Remove files that belong to no step any more; only while nobody else uses the store, see `alone`."""
        for path in (self.root / "objects").glob("*/*"):
            _sweep_object(path)
        for result in (self.root / "results").glob("*/*"):
            if not self.has_files(result.name):
                with contextlib.suppress(OSError):
                    remove_tree(result)
        for path in (*(self.root / "entries").glob("*/.*.partial"), *(self.root / "locks").glob("*.lock")):
            with contextlib.suppress(OSError):
                remove_file(path)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return Path(f"{self._entries}{key[:2]}{os.sep}{key}.json")

    def _result(self, key: str) -> Path:
        return self.root / "results" / key[:2] / key

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def _use_lock(self) -> SharedLock:
        return SharedLock(self.root / "use.lock.db")

    def _fault(self, error: OSError) -> MachineError:
        return write_fault(self.root.parent, error, FIX)

    def _read(self, key: str) -> Entry | None:
        """Return an entry; one that is damaged counts as missing, is reported and removed."""
        path = f"{self._entries}{key[:2]}{os.sep}{key}.json"
        try:
            status = os.stat(path)  # noqa: PTH116 - the path of each of a thousand steps would cost more than the call
            look = (status.st_mtime_ns, status.st_ino, status.st_size)
            known = self._known.get(key)
            if known is None or known[0] != look:
                # Not more than it has: Python sets aside as much room as it is told to read.
                raw = read_bounded(Path(path), min(status.st_size, MAX_ENTRY_BYTES))
                if (entry := parse_entry(raw, key)) is None:
                    return None
                self._known[key] = known = (look, entry)
            return None if key in self._damaged else known[1]
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(f"the cache's {key}.json cannot be read ({error.strerror}); the step is made again")
        except MachineError as error:
            self._complain(f"{error}; the step is made again")
        except (ValueError, EdgekilnError):
            self._complain(f"the cache's {key}.json is damaged; the step is made again")
            if not self.read_only:
                with contextlib.suppress(OSError):
                    remove_tree(Path(path))
        return None

    def _write(self, entry: Entry) -> None:
        """Write an entry so that it is seen whole or not at all, also after a power loss.

        Raises:
            MachineError: It cannot be written.
        """
        path = self._path(entry.record.key)
        temporary = path.with_name(f".{entry.record.key}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            _make_folder(path.parent)
            try:
                with temporary.open("wb") as file:
                    file.write(entry.to_bytes())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            sync(path.parent)
        except OSError as error:
            raise self._fault(error) from None

    def _touch(self, key: str) -> None:
        known = self._known.get(key)
        if known is None or abs(time.time() - known[0][0] / 1e9) > _USE_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(self._path(key))

    def _begin(self, key: str, *, resumable: bool) -> Path:
        """Return the place of a step under way; a file of an earlier attempt's children cannot get into a new one."""
        partial = self.root / "partial"
        try:
            if resumable:
                place = partial / key
            else:
                for left in partial.glob(f"{key}-*"):
                    remove_tree(left)
                place = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=partial))
            (place / "files").mkdir(parents=True, exist_ok=True)
            for name in ("shared", "private", "replaced"):
                remove_tree(place / name)
            for path in list((place / "files").rglob("*")):
                make_private(path, place / "private")
        except OSError as error:
            raise self._fault(error) from None
        return place

    def _has_equal(self, record: Record) -> bool:
        """Return whether a step's result is there already and is the very same."""
        entry = self._read(record.key)
        if entry is None or not entry.kept or entry.record.digest != record.digest:
            return False
        return self.fault(entry.record) is None

    def _sweep(self, record: Record) -> None:
        for file in record.files:
            _sweep_object(self._object(file.sha256))


def _check_whole(directory: Path, record: Record) -> None:
    """Refuse a result that is not what its record says.

    Raises:
        StepError: A file is missing, of another size or no regular file, or there are more.
    """
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            found[path.relative_to(directory).as_posix()] = status.st_size if stat.S_ISREG(status.st_mode) else -1
    wanted = {file.path: file.size for file in record.files}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise StepError(f"the files of {record.name} changed while they were put into the cache: {', '.join(names)}")


def _make_folder(path: Path) -> None:
    """Make a folder, and see to it that it outlives a power loss."""
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        sync(path.parent)


def _sweep_object(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_nlink == 1:
            remove_file(path)
