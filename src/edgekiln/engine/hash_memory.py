"""sha256 of files, remembered: a file that looks as it did when it was hashed is not read again.

"Looks" is size, modification time, change time and inode, the change time above all, since no program can set it. As in
git's index, a file that was changed within two seconds before it was hashed is not remembered: it might change once more
without looking otherwise. The same holds where the clock was put back and a change time lies in the future.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edgekiln.artifact import sha256_file

#: Coarser than the time stamps of any file system in use (FAT has two seconds).
_RACY_SECONDS: Final = 2.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, looks TEXT NOT NULL, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS durations (name TEXT PRIMARY KEY, seconds REAL NOT NULL) WITHOUT ROWID;
"""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Look:
    """How a file looks from outside."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def at(cls, path: Path) -> Look:
        """Return how a file looks now."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    def is_settled(self) -> bool:
        """Return whether a change from now on would show."""
        return time.time() - max(self.mtime_ns, self.ctime_ns) / 1e9 > _RACY_SECONDS

    def __str__(self) -> str:
        return f"{self.size} {self.mtime_ns} {self.ctime_ns} {self.inode} {self.device}"


class HashMemory:
    """Hashes of files and durations of steps, in one SQLite file; where that cannot be used, nothing is remembered.

    Args:
        path: The database; None remembers within this process only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, str]] = {}
        self._pending: dict[str, tuple[Look, str]] = {}
        self._connection: sqlite3.Connection | None = None
        if path is not None and (found := self._guarded(self._connect)) is not None:
            self._connection = found

    def _connect(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        writable = os.access(self._path if self._path.exists() else self._path.parent, os.W_OK)
        uri = f"{self._path.resolve().as_uri()}{'' if writable else '?mode=ro&immutable=1'}"
        connection = sqlite3.connect(uri, uri=True, timeout=5.0, check_same_thread=False, isolation_level=None)
        if writable:
            connection.executescript(_TABLES)
        return connection

    def _guarded(self, action: Callable[[], _T]) -> _T | None:
        """Do something with the database; one that is damaged is thrown away, since all in it can be found anew."""
        try:
            return action()
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError) and self._path is not None:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
            self._connection = None
            return None

    def known(self, path: Path) -> str | None:
        """Return the sha256 of a file that is remembered and looks as it did; None where it must be hashed."""
        place = os.path.realpath(path)
        try:
            look = Look.at(path)
        except OSError:
            return None
        with self._lock:
            found = self._known.get(place) or self._look_up(place)
        return found[1] if found is not None and found[0] == str(look) else None

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file.

        Raises:
            OSError: It cannot be read.
        """
        if (found := self.known(path)) is not None:
            return found
        before = Look.at(path)
        sha256 = sha256_file(path)
        if Look.at(path) == before:
            self.remember(path, sha256)
        return sha256

    def digests(self, paths: Iterable[Path]) -> list[str]:
        """Return the sha256 of several files, hashed side by side."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash") as pool:
            return list(pool.map(self.digest, paths))

    def remember(self, path: Path, sha256: str) -> None:
        """Remember what a file is known to hold, as soon as a change of it would show; see `save`."""
        with contextlib.suppress(OSError), self._lock:
            place, look = os.path.realpath(path), Look.at(path)
            self._known[place] = str(look), sha256
            self._pending[place] = look, sha256

    def seconds(self, name: str) -> float | None:
        """Return how long a step of this name took the last time it ran."""
        with self._lock:
            row = self._row("SELECT seconds FROM durations WHERE name = ?", name)
        return None if row is None else float(row[0])

    def took(self, name: str, seconds: float) -> None:
        """Remember how long a step took."""
        with self._lock:
            self._change("REPLACE INTO durations VALUES (?, ?)", [(name, seconds)])

    def save(self) -> None:
        """Write down what was found; files that were changed just now are left out."""
        with self._lock:
            rows = [(place, str(look), sha256) for place, (look, sha256) in self._pending.items() if look.is_settled()]
            self._change("REPLACE INTO files VALUES (?, ?, ?)", rows)
            self._pending = {place: kept for place, kept in self._pending.items() if not kept[0].is_settled()}

    def close(self) -> None:
        """Save and let go of the database."""
        self.save()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _look_up(self, place: str) -> tuple[str, str] | None:
        row = self._row("SELECT looks, sha256 FROM files WHERE path = ?", place)
        if row is None:
            return None
        self._known[place] = str(row[0]), str(row[1])
        return self._known[place]

    def _row(self, query: str, value: str) -> tuple[object, ...] | None:
        connection = self._connection
        if connection is None:
            return None
        found: tuple[object, ...] | None = self._guarded(lambda: connection.execute(query, (value,)).fetchone())
        return found

    def _change(self, query: str, rows: list[tuple[object, ...]]) -> None:
        connection = self._connection
        if connection is None or not rows:
            return

        def write() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(query, rows)
            connection.execute("COMMIT")

        self._guarded(write)
