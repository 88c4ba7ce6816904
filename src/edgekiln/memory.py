"""Memory of this process."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    On Linux from VmHWM, which belongs to the program image: `ru_maxrss` survives the exec there and would show the
    parent's memory. Elsewhere from the peak working set (Windows) or `ru_maxrss`, which macOS counts in bytes.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    else:  # noqa: RET505 - type checkers understand a platform by its branches
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))


def current_rss_bytes() -> int:
    """Return the resident memory of this process now, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from walking through a large structure again and again while it grows."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
