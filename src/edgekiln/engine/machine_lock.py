"""Locks that many share and one may hold alone, between processes.

A machine that is measured on must do nothing else: steps share the machine's lock, a measurement holds it alone. It
lies where platformdirs keeps what belongs to a machine and not to a project. The system frees the locks of a process
that ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from filelock import ReadWriteLock

_FILE: Final = "machine.lock.db"


class SharedLock:
    """Held by one thread, for all that it starts.

    Args:
        path: The lock's file, whose folder is made; None for no lock. Where none can be made, every request is granted.

    Attributes:
        works: There is a lock; False where every request is granted.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock: ReadWriteLock | None = None
        self._held = 0
        if path is not None:
            # RuntimeError: a file system whose locks SQLite cannot use; ValueError: the file is no lock.
            with contextlib.suppress(OSError, ValueError, RuntimeError, sqlite3.Error):
                from filelock import ReadWriteLock

                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = ReadWriteLock(path, timeout=0, is_singleton=False)

    @property
    def works(self) -> bool:
        """Whether there is a lock."""
        return self._lock is not None

    def try_share(self) -> bool:
        """Take a share, unless somebody holds it alone."""
        if self._held == 0 and not self._try("read"):
            return False
        self._held += 1
        return True

    def try_alone(self) -> bool:
        """Take all of it, unless anybody has a share; this one holds none."""
        return self._held == 0 and self._try("write")

    def release_share(self) -> None:
        """Give a share back."""
        self._held -= 1
        if self._held == 0:
            self.release_alone()

    def release_alone(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()

    def _try(self, mode: str) -> bool:
        from filelock import Timeout

        if self._lock is None:
            return True
        try:
            if mode == "read":
                self._lock.acquire_read(timeout=0, blocking=False)
            else:
                self._lock.acquire_write(timeout=0, blocking=False)
        except Timeout:
            return False
        except (OSError, sqlite3.Error):  # the disk under the lock has gone bad: as if there were none
            self._lock = None
        return True


class MachineLock(SharedLock):
    """Keeps measurements alone on this machine, among all engines of its user.

    Args:
        directory: Where the lock lies; None takes the user's.
    """

    def __init__(self, directory: Path | None = None) -> None:
        place = directory or _user_directory()
        super().__init__(None if place is None else place / _FILE)


def _user_directory() -> Path | None:
    """Return where the lock of a user lies, or None for a user without a home."""
    from platformdirs import user_state_path

    try:
        return Path(os.environ.get("EDGEKILN_STATE") or user_state_path("edgekiln", appauthor=False))
    except RuntimeError:
        return None
