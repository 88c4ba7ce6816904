"""A machine that is measured on must do nothing else: one lock for all engines of a user.

Steps share the lock; a measurement holds it alone. Engines are told apart by the lock file, which lies where
platformdirs keeps what belongs to a machine and not to a project.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from filelock import ReadWriteLock

_FILE: Final = "machine.lock.db"


class MachineLock:
    """Held by one thread, for all steps that it starts.

    Args:
        directory: Where the lock lies; None takes the user's. Where no lock can be made, every request is granted.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._lock: ReadWriteLock | None = None
        self._held = 0
        with contextlib.suppress(OSError, ValueError):
            from filelock import ReadWriteLock
            from platformdirs import user_state_path

            place = directory or Path(os.environ.get("EDGEKILN_STATE") or user_state_path("edgekiln", appauthor=False))
            place.mkdir(parents=True, exist_ok=True)
            self._lock = ReadWriteLock(place / _FILE, timeout=0, is_singleton=False)

    def try_share(self) -> bool:
        """Take a share, unless somebody measures."""
        if self._held == 0 and not self._try("read"):
            return False
        self._held += 1
        return True

    def try_alone(self) -> bool:
        """Take all of it, unless anybody works; this one holds no share."""
        return self._held == 0 and self._try("write")

    def release_share(self) -> None:
        """Give a share back."""
        self._held -= 1
        if self._held == 0 and self._lock is not None:
            self._lock.release()

    def release_alone(self) -> None:
        """Let others work."""
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
        return True
