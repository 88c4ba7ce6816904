"""A store in a directory of this machine, which any number of engines may share.

    CACHE/v1/entries/ab/abcd….json     one record each, written last and by a rename
             results/ab/abcd…/         the files of a step, read-only
             objects/ab/abcd…          the same files by their content: equal ones are one file with several names
             partial/abcd…/            steps under way; what a killed engine left
             locks/abcd….lock          who makes which step; the system frees it when a process ends

A directory of another layout lies beside `v1`, so two versions of Edgekiln never read each other's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from edgekiln.artifact import sha256_file, sync, write_atomically, write_fault
from edgekiln.engine.record import RECORD_SCHEMA, Record
from edgekiln.engine.store import Claim, Complaint
from edgekiln.errors import ChildError, InterruptError, MachineError

LAYOUT: Final = "v1"
#: https://bford.info/cachedir/: programs that make backups leave such a directory out.
_CACHEDIR_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Results that Edgekiln can make again.\n"
_MAX_ENTRY_BYTES: Final = 16 << 20
#: How stale the time of last use may be; written more often it would cost a no-op run more than all else.
_USE_SECONDS: Final = 3600.0


def _quiet(_text: str) -> None:
    """Complain to nobody."""


@dataclass(frozen=True)
class _Stamp:
    """How a file looked when its content was last known."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True)
class _Entry:
    record: Record
    stamps: Mapping[str, _Stamp]
    kept: bool


class LocalStore:
    """Results in a local directory.

    Args:
        root: Made if need be.
        complain: Is told what was found damaged.

    Raises:
        MachineError: The directory cannot be made or written; see `is_readable` for one that can only be read.
    """

    def __init__(self, root: Path, complain: Complaint = _quiet) -> None:
        self.root = root / LAYOUT
        self._complain = complain
        try:
            for name in ("entries", "results", "objects", "partial", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not (root / "CACHEDIR.TAG").exists():
                write_atomically(root / "CACHEDIR.TAG", _CACHEDIR_TAG)
            with tempfile.TemporaryFile(dir=self.root / "partial"):
                pass
        except OSError as error:
            raise write_fault(root, error) from None

    # --- finding -------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Record | None:
        """Return the record of a finished step, or None."""
        entry = self._read(key)
        return None if entry is None else entry.record

    def open(self, record: Record) -> Path | None:
        """Return the directory of a finished step if every file is what was put there.

        A file whose size, time and inode are those of the moment it was put there counts as unchanged; any other is
        hashed again.
        """
        entry = self._read(record.key)
        if entry is None or not entry.kept:
            return None
        directory = self._result(record.key)
        stamps: dict[str, _Stamp] = {}
        for file in record.files:
            path = directory / file.path
            try:
                stamps[file.path] = _Stamp.of(path.lstat())
                fault = None
                if stamps[file.path] != entry.stamps.get(file.path):
                    fault = _fault(path, file.size, file.sha256)
            except OSError as error:
                fault = f"cannot be read ({error.strerror})"
            if fault is not None:
                self._complain(f"the cache's {file.path} of {record.name} {fault}; it is made again")
                self._remove_damaged(record)
                return None
        if stamps != entry.stamps:
            with contextlib.suppress(MachineError):
                self._write(_Entry(record, stamps, kept=True))
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
        except OSError as error:
            raise write_fault(self.root, error) from None
        try:
            place = self._begin(key, resumable=resumable)
            try:
                yield Claim(key, place / "files", place / "journal")
            except (InterruptError, ChildError):
                if not resumable:
                    _remove_tree(place)
                raise
            except BaseException:
                _remove_tree(place)
                raise
            else:
                _remove_tree(place)
        finally:
            lock.release()

    def put(self, claim: Claim, record: Record) -> Path:
        """Keep the files of a claim: flushed, shared with equal ones, visible by one rename; the record comes last."""
        result = self._result(record.key)
        try:
            for file in record.files:
                self._share(claim.directory / file.path, file.sha256, claim.journal.with_name("shared"))
            for path in sorted(claim.directory.rglob("*")):
                if path.is_dir():
                    sync(path)
            sync(claim.directory)
            _remove_tree(result)  # of an engine that was killed before it wrote the record
            result.parent.mkdir(exist_ok=True)
            claim.directory.rename(result)
            sync(result.parent)
            stamps = {file.path: _Stamp.of((result / file.path).lstat()) for file in record.files}
            self._write(_Entry(record, stamps, kept=True))
        except OSError as error:
            raise write_fault(result, error) from None
        return result

    def drop_files(self, key: str) -> None:
        """Forget the files of a step, not that it was made."""
        entry = self._read(key)
        if entry is not None and entry.kept:
            self._write(_Entry(entry.record, {}, kept=False))
            _remove_tree(self._result(key))
            self._sweep(entry.record)

    def remove(self, key: str) -> None:
        """Forget a step."""
        entry = self._read(key)
        self._path(key).unlink(missing_ok=True)
        _remove_tree(self._result(key))
        if entry is not None:
            self._sweep(entry.record)

    # --- looking after it ------------------------------------------------------------------------------------------

    def fault(self, record: Record) -> str | None:
        """Return what is wrong with a record's files after hashing all of them, or None; nothing is changed."""
        entry = self._read(record.key)
        if entry is None or not entry.kept:
            return None
        for file in record.files:
            path = self._result(record.key) / file.path
            try:
                if fault := _fault(path, file.size, file.sha256):
                    return f"{file.path} {fault}"
            except OSError as error:
                return f"{file.path} cannot be read ({error.strerror})"
        return None

    def has_files(self, key: str) -> bool:
        """Return whether the files of a finished step were kept."""
        entry = self._read(key)
        return entry is not None and entry.kept

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
            with contextlib.suppress(Timeout, OSError), lock:
                yield place

    def sweep(self) -> None:
        """Remove files that belong to no step any more."""
        for folder in (self.root / "objects").iterdir():
            for path in folder.iterdir():
                self._sweep_object(path)
        for result in (self.root / "results").glob("*/*"):
            if not self._path(result.name).exists():
                _remove_tree(result)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / f"{key}.json"

    def _result(self, key: str) -> Path:
        return self.root / "results" / key[:2] / key

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def _read(self, key: str) -> _Entry | None:
        """Return an entry; one that is damaged counts as missing, is reported and removed."""
        path = self._path(key)
        try:
            if path.stat().st_size > _MAX_ENTRY_BYTES:
                raise ValueError("it is too large")
            value = json.loads(path.read_bytes())
            if value["record"]["schema_id"] != RECORD_SCHEMA:
                return None  # of another version of Edgekiln, which can still read it
            record = Record.model_validate(value["record"])
            if record.key != key or record.ingredients.key != key:
                raise ValueError("its key is another's")
            if any(Path(file.path).is_absolute() or ".." in Path(file.path).parts for file in record.files):
                raise ValueError("it names files outside of its directory")
            return _Entry(record, {name: _Stamp(*stamp) for name, stamp in value["stamps"].items()}, value["kept"])
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(f"the cache's {path.name} cannot be read ({error.strerror}); the step is made again")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
            self._complain(f"the cache's {path.name} is damaged; the step is made again")
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return None

    def _write(self, entry: _Entry) -> None:
        stamps = {name: (stamp.size, stamp.mtime_ns, stamp.inode) for name, stamp in entry.stamps.items()}
        value = {"record": entry.record.model_dump(mode="json"), "stamps": stamps, "kept": entry.kept}
        write_atomically(self._path(entry.record.key), json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):
            if abs(time.time() - self._path(key).stat().st_mtime) > _USE_SECONDS:
                os.utime(self._path(key))

    def _begin(self, key: str, *, resumable: bool) -> Path:
        """Return the place of a step under way; a file of an earlier attempt's children cannot get into a new one."""
        partial = self.root / "partial"
        try:
            if resumable:
                place = partial / key
            else:
                for left in partial.glob(f"{key}-*"):
                    _remove_tree(left)
                place = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=partial))
            (place / "files").mkdir(parents=True, exist_ok=True)
            for path in (place / "files").rglob("*"):
                _make_private(path)
        except OSError as error:
            raise write_fault(partial, error) from None
        return place

    def _share(self, path: Path, sha256: str, temporary: Path) -> None:
        """Make `path` one file with an equal one that is there already, or the one that later ones are compared with.

        Where the file system has no links, or no more of them, it stays a file of its own.
        """
        path.chmod(0o444)
        sync(path)
        known = self._object(sha256)
        known.parent.mkdir(exist_ok=True)
        size = path.stat().st_size
        with contextlib.suppress(FileNotFoundError):
            if _fault(known, size, sha256) is not None:
                known.unlink()
        try:
            known.hardlink_to(path)
        except FileExistsError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
                temporary.hardlink_to(known)
                temporary.replace(path)
        except OSError:
            return

    def _remove_damaged(self, record: Record) -> None:
        """Forget a step of which a file is damaged, and every file of it that is: an equal one must not be shared."""
        with contextlib.suppress(OSError, MachineError):
            for file in record.files:
                with contextlib.suppress(FileNotFoundError):
                    if _fault(self._object(file.sha256), file.size, file.sha256) is not None:
                        self._object(file.sha256).unlink()
            self.remove(record.key)

    def _sweep(self, record: Record) -> None:
        for file in record.files:
            self._sweep_object(self._object(file.sha256))

    @staticmethod
    def _sweep_object(path: Path) -> None:
        with contextlib.suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()


def _fault(path: Path, size: int, sha256: str) -> str | None:
    """Return what is wrong with a file, or None.

    Raises:
        OSError: It cannot be read.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size != size:
        return f"has {status.st_size} bytes instead of {size}"
    return None if sha256_file(path) == sha256 else "has other bytes than were put there"


def _make_private(path: Path) -> None:
    """Give a file that an engine was sharing when it was killed a copy of its own, which may be written to."""
    status = path.lstat()
    if stat.S_ISREG(status.st_mode) and (status.st_nlink > 1 or not status.st_mode & stat.S_IWUSR):
        temporary = path.parent.with_name("private")
        shutil.copyfile(path, temporary)
        temporary.replace(path)


def _remove_tree(path: Path) -> None:
    """Remove a directory with read-only files in it; it need not be there."""

    def writable(_function: object, name: str, _error: object) -> None:
        with contextlib.suppress(OSError):
            Path(name).chmod(0o700)
            Path(name).unlink()

    shutil.rmtree(path, onerror=writable) if path.exists() else None
