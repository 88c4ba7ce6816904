"""sha256 of files, remembered: a file that looks as it did when it was hashed is not read again.

"Looks" is size, modification time, change time and inode, the change time above all, since no program can set it. As
in git's index, a file that was changed just before it was hashed is not remembered: it might change once more without
looking otherwise. The same holds where the clock was put back and a change time lies in the future.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from edgekiln.artifact import sha256_file

#: What two changes lie apart at least if their time stamps differ: FAT has two seconds; file systems that count below
#: the millisecond take the time from the system's tick, ten milliseconds at most.
_COARSE_SECONDS: Final = 2.5
_FINE_SECONDS: Final = 0.05
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: What was found is written down at the end of a run and, in a long one, now and then.
_SAVE_SECONDS: Final = 10.0
#: Files whose hashes are taken out of the database at once.
_MOST_AT_ONCE: Final = 20_000
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, looks TEXT NOT NULL, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS durations (name TEXT PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;
"""
_T = TypeVar("_T")


class Look(NamedTuple):
    """How a file looks from outside."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def at(cls, path: str | Path) -> Look:
        """Return how a file looks now."""
        status = os.stat(path)  # noqa: PTH116 - a thousand of them are looked at in a run that makes nothing
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def unsettled_seconds(self) -> float:
        """Return for how long from now on a change might not show; 0 or less when it would."""
        is_coarse = self.mtime_ns % 1_000_000 == 0 and self.ctime_ns % 1_000_000 == 0
        settles = max(self.mtime_ns, self.ctime_ns) / 1e9 + (_COARSE_SECONDS if is_coarse else _FINE_SECONDS)
        return settles - time.time()

    def __str__(self) -> str:
        return " ".join(map(str, self))


def _is_settled(look: Look) -> bool:
    """Return whether a change from now on would show, after a short wait if that is all it takes."""
    if 0 < (seconds := look.unsettled_seconds()) <= _FINE_SECONDS:
        time.sleep(seconds)
        return look.unsettled_seconds() <= 0
    return seconds <= 0


class HashMemory:
    """Hashes of files and durations of steps, in one SQLite file; where that cannot be used, nothing is remembered.

    Args:
        path: The database; None remembers within this process only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, str]] = {}
        self._has_read_all = False
        self._new_files: dict[str, tuple[str, str]] = {}
        self._new_durations: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._writable = False
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            self._connection = self._guarded(self._connect) or self._guarded(self._connect)

    def _connect(self) -> sqlite3.Connection | None:
        """Open the database, and make it if need be; one that can only be read is not looked after."""
        if self._path is None:
            return None
        self._writable = os.access(self._path if self._path.exists() else self._path.parent, os.W_OK)
        uri = f"{self._path.absolute().as_uri()}{'' if self._writable else '?mode=ro&immutable=1'}"
        connection = sqlite3.connect(uri, uri=True, timeout=5.0, check_same_thread=False, isolation_level=None)
        if self._writable:
            connection.executescript(_TABLES)
        connection.execute("SELECT path, looks, sha256 FROM files LIMIT 1").fetchone()
        connection.execute("SELECT name, seconds FROM durations LIMIT 1").fetchone()
        return connection

    def _guarded(self, action: Callable[[], _T]) -> _T | None:
        """Do something with the database; one that is damaged is thrown away, since all in it can be found anew."""
        try:
            return action()
        except sqlite3.OperationalError as error:  # locked for long, a full disk, no right to
            if str(error).startswith("no such column") and self._writable:
                self._throw_away()
        except sqlite3.DatabaseError:
            self._throw_away()
        except (OSError, ValueError):
            pass
        self._connection = None
        return None

    def _throw_away(self) -> None:
        if self._path is not None:
            for name in (self._path.name, f"{self._path.name}-journal", f"{self._path.name}-wal"):
                with contextlib.suppress(OSError):
                    self._path.with_name(name).unlink(missing_ok=True)

    # --- files -----------------------------------------------------------------------------------------------------

    def known(self, path: Path) -> str | None:
        """Return the sha256 of a file that is remembered and looks as it did; None where it must be hashed."""
        name = _name(path)
        try:
            look = str(Look.at(path))
        except OSError:
            return None
        with self._lock:
            found = self._known.get(name) or self._look_up(name)
        return found[1] if found is not None and found[0] == look else None

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file.

        Raises:
            OSError: It cannot be read.
        """
        if (found := self.known(path)) is not None:
            return found
        before = Look.at(path)
        is_settled = _is_settled(before)
        sha256 = sha256_file(path)
        if is_settled:  # if it changed meanwhile, it does not look as before any more
            self._learn(path, before, sha256)
        return sha256

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """Return the sha256 of several files, hashed side by side.

        Raises:
            OSError: One cannot be read.
        """
        from concurrent.futures import ThreadPoolExecutor

        wanted = list(paths)
        found = {path: self.known(path) for path in wanted}
        missing = [path for path, sha256 in found.items() if sha256 is None]
        if missing:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(missing)), thread_name_prefix="hash") as pool:
                found.update(zip(missing, pool.map(self.digest, missing), strict=True))
        return [sha256 for path in wanted if (sha256 := found[path]) is not None]

    def remember(self, path: Path, sha256: str) -> None:
        """Remember what a file is known to hold, if a change of it from now on would show; see `save`."""
        with contextlib.suppress(OSError):
            look = Look.at(path)
            if _is_settled(look) and Look.at(path) == look:
                self._learn(path, look, sha256)

    def _learn(self, path: Path, look: Look, sha256: str) -> None:
        name = _name(path)
        with self._lock:
            self._known[name] = self._new_files[name] = str(look), sha256

    def _read_all(self) -> None:
        """Take what is remembered at once, as far as it is little: single look-ups would take longer than all else."""
        connection = self._connection
        if self._has_read_all or connection is None:
            return
        self._has_read_all = True
        query = f"SELECT path, looks, sha256 FROM files LIMIT {_MOST_AT_ONCE}"  # noqa: S608 - a number of ours
        for row in self._guarded(lambda: connection.execute(query).fetchall()) or ():
            match row:
                case (str(name), str(look), str(sha256)) if _SHA256.fullmatch(sha256):
                    self._known.setdefault(name, (look, sha256))

    def _look_up(self, name: str) -> tuple[str, str] | None:
        self._read_all()
        if name in self._known:
            return self._known[name]
        match self._row("SELECT looks, sha256 FROM files WHERE path = ?", name):
            case (str(look), str(sha256)) if _SHA256.fullmatch(sha256):
                self._known[name] = look, sha256
                return look, sha256
        return None

    # --- durations ---------------------------------------------------------------------------------------------------

    def seconds(self, name: str) -> float | None:
        """Return how long a step of this name took the last time it ran."""
        with self._lock:
            if name in self._new_durations:
                return self._new_durations[name]
            match self._row("SELECT seconds FROM durations WHERE name = ?", name):
                case (float(seconds),):
                    return seconds
        return None

    def took(self, name: str, seconds: float) -> None:
        """Remember how long a step took."""
        with self._lock:
            self._new_durations[name] = seconds
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self.save()

    # --- the database ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write down what was found."""
        with self._lock:
            files = [(name, *found) for name, found in self._new_files.items()]
            durations = list(self._new_durations.items())
            self._change({"files VALUES (?, ?, ?)": files, "durations VALUES (?, ?)": durations})
            if self._connection is not None and self._writable:
                self._new_files, self._new_durations = {}, {}
            self._saved_at = time.monotonic()

    def forget_missing(self) -> None:
        """Forget files that are gone."""
        connection = self._connection
        if connection is None or not self._writable:
            return

        def change() -> None:
            names = [str(row[0]) for row in connection.execute("SELECT path FROM files")]
            gone = [(name,) for name in names if not os.path.lexists(name)]
            connection.executemany("DELETE FROM files WHERE path = ?", gone)

        with self._lock:
            self._guarded(change)

    def close(self) -> None:
        """Save and let go of the database."""
        self.save()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _row(self, query: str, value: str) -> tuple[object, ...] | None:
        connection = self._connection
        if connection is None:
            return None
        found: tuple[object, ...] | None = self._guarded(lambda: connection.execute(query, (value,)).fetchone())
        return found

    def _change(self, rows: dict[str, Sequence[tuple[object, ...]]]) -> None:
        """Replace rows, all of them or none."""
        connection = self._connection
        if connection is None or not self._writable or not any(rows.values()):
            return

        def write() -> None:
            connection.execute("BEGIN IMMEDIATE")
            for where, values in rows.items():
                connection.executemany(f"REPLACE INTO {where}", values)
            connection.execute("COMMIT")

        self._guarded(write)


def _name(path: Path) -> str:
    """Return a path as a text that any database takes; links need not be followed, since the inode tells."""
    return os.path.abspath(path).encode("utf-8", "backslashreplace").decode()  # noqa: PTH100 - far faster
