"""Pinning a process to cores, where the system allows it: Linux, Windows and FreeBSD; macOS has no such call."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

_TOPOLOGY: Final = Path("/sys/devices/system/cpu")


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a list as the kernel writes it: `0-3,8` is 0, 1, 2, 3, 8."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def _siblings(cpu: int, root: Path) -> tuple[int, ...]:
    """Return the logical processors of the core that `cpu` belongs to."""
    try:
        return parse_cpu_list((root / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return (cpu,)


def _speed(cpu: int, root: Path) -> int:
    """Return what tells fast cores from slow ones: the kernel's capacity on Arm, else the highest frequency."""
    return _number(root / f"cpu{cpu}/cpu_capacity") or _number(root / f"cpu{cpu}/cpufreq/cpuinfo_max_freq")


def one_per_core(allowed: Collection[int], root: Path = _TOPOLOGY) -> tuple[int, ...]:
    """Return one logical processor of each core, the fastest cores first.

    Args:
        allowed: Logical processors that the process may use.
        root: The kernel's description of the processors; where it is missing, each counts as a core.
    """
    first = {min(set(_siblings(cpu, root)) & set(allowed), default=cpu) for cpu in allowed}
    return tuple(sorted(first, key=lambda cpu: (-_speed(cpu, root), cpu)))


def _choose(threads: int, allowed: Iterable[int]) -> tuple[int, ...]:
    """Return a processor per thread, cores before their siblings; fewer processors where there are too few."""
    available = tuple(allowed)
    cores = one_per_core(available)
    others = tuple(cpu for cpu in sorted(available) if cpu not in cores)
    return tuple(sorted((*cores, *others)[:threads]))


def pin(threads: int) -> tuple[int, ...] | None:
    """Bind this process, and the threads it starts from now on, to one core per thread.

    Returns:
        The logical processors, or None where the system does not allow it.
    """
    import psutil

    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        return None
    try:
        chosen = _choose(threads, process.cpu_affinity())
        process.cpu_affinity(list(chosen))
    except (OSError, psutil.Error):
        return None
    return chosen
