"""Files in the page cache: dropping them, so that a load is a cold one, and reading them in, so that it is warm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CHUNK: Final = 8 << 20
#: Places in a file at which it is checked that the pages are gone.
_PROBES: Final = 16
_ATTEMPTS: Final = 4
_PAUSE_SECONDS: Final = 0.02


def files_below(path: Path) -> tuple[Path, ...]:
    """Return `path` itself if it is a file, else every file below it."""
    return (path,) if path.is_file() else tuple(sorted(found for found in path.rglob("*") if found.is_file()))


def _is_resident(descriptor: int, offset: int) -> bool:
    """Tell whether the page at `offset` can be read without waiting for the disk.

    Raises:
        OSError: The file system cannot say (EOPNOTSUPP on tmpfs).
    """
    try:
        return (
            hasattr(os, "preadv") and os.preadv(descriptor, [bytearray(1)], offset, getattr(os, "RWF_NOWAIT", 0)) == 1
        )
    except BlockingIOError:
        return False


def _resident_bytes(path: Path) -> int:
    """Drop a file and return about how many of its bytes stay in the page cache.

    Asking for a page lets the kernel fetch it, so up to `_PROBES` pages of each file are back afterwards.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        descriptor = file.fileno()
        os.fsync(descriptor)  # dirty pages stay
        if sys.platform != "win32" and sys.platform != "darwin":
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = {size * number // _PROBES for number in range(_PROBES)} if size else set()
        kept = sum(_is_resident(descriptor, offset) for offset in offsets)
    return size * kept // max(1, len(offsets))


def evict(paths: Iterable[Path]) -> str | None:
    """Drop files from the page cache.

    Returns:
        None when all but a hundredth of their bytes are gone (pages that a processor has just used may stay), else why
        a load will not be a cold one: one clause without a full stop.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return "this system has no call that drops a file from the page cache"
    files = tuple(paths)
    total = sum(path.stat().st_size for path in files)
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE_SECONDS * attempt)
        try:
            kept = {path: _resident_bytes(path) for path in files}
        except OSError as error:
            return f"the file system does not say what is in the page cache ({error.strerror})"
        if 100 * sum(kept.values()) <= total:
            return None
    return f"the system kept {max(kept, key=lambda path: kept[path]).name} in the page cache"


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that the next load finds them in the page cache."""
    buffer = bytearray(_CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
