"""Limits that Linux control groups put on this process: what a container or a batch system allows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
#: Version 1 writes a page-aligned 2^63 - 1 where there is no limit.
_NO_LIMIT: Final = 1 << 60


@dataclass(frozen=True)
class CgroupLimits:
    """Limits of a control group.

    Attributes:
        memory_bytes: The smallest memory limit from this process's group up to the root; None without one.
        cpus: Processors' worth of time that it may use, perhaps a fraction; None without a limit.
    """

    memory_bytes: int | None
    cpus: float | None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _upwards(root: Path, group: str) -> Iterator[Path]:
    """Yield the folder of a group and of all above it; in a container only the last may be visible."""
    path = PurePosixPath(group)
    for part in (path, *path.parents):
        yield root / str(part).lstrip("/")


def _groups(membership: Path) -> dict[str, str]:
    """Return the group by controller; version 2's has the empty name."""
    groups: dict[str, str] = {}
    for line in (_read(membership) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _quota(text: str | None) -> float | None:
    """Return the processors' worth of `QUOTA PERIOD`; None for `max` or -1."""
    parts = (text or "").split()
    if len(parts) != 2 or not parts[0].isdigit() or not parts[1].isdigit() or parts[1] == "0":
        return None
    return int(parts[0]) / int(parts[1])


def _bytes(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and int(text) < _NO_LIMIT else None


def cgroup_limits(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> CgroupLimits:
    """Return the limits of this process's control groups, of version 1 and 2; none elsewhere than on Linux.

    Args:
        root: Where the control groups are mounted.
        membership: The process's /proc/self/cgroup.
    """
    groups = _groups(membership)
    second = tuple(_upwards(root, groups.get("", "/")))
    memory = [_bytes(_read(folder / "memory.max")) for folder in second]
    memory += [
        _bytes(_read(folder / "memory.limit_in_bytes"))
        for folder in _upwards(root / "memory", groups.get("memory", "/"))
    ]
    cpus = [_quota(_read(folder / "cpu.max")) for folder in second]
    cpus += [
        _quota(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}")
        for folder in _upwards(root / "cpu", groups.get("cpu", "/"))
    ]
    return CgroupLimits(
        memory_bytes=min((limit for limit in memory if limit is not None), default=None),
        cpus=min((limit for limit in cpus if limit is not None), default=None),
    )
