"""Memory of this process."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes.

    On Linux from VmHWM, which belongs to the program image: `ru_maxrss` survives the exec and would show the
    parent's memory.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
