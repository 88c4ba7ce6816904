"""What the benchmarks share: figures with their samples, tables, commands, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Action = Callable[[], object]


@dataclass
class Figure:
    """Samples of one thing; the median counts."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return the median, and the least and the most where there are several."""
        low, middle, high = (scale * value for value in (min(self.samples), self.median, max(self.samples)))
        rest = f" ({low:.{digits}f} to {high:.{digits}f})" if len(self.samples) > 1 else ""
        return f"{middle:.{digits}f}{rest}"


@dataclass(frozen=True)
class Part:
    """What one part found.

    Attributes:
        title: Of its table.
        columns: Heads.
        rows: Texts.
        data: The same for programs, with all samples.
        notes: Sentences below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    data: Mapping[str, Any]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", f"| {' | '.join(self.columns)} |", "|" + " --- |" * len(self.columns)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes), ""])


def seconds_of(action: Action) -> float:
    """Return how long something takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(actions: Mapping[str, Action], runs: int) -> dict[str, Figure]:
    """Time several things in turn, so that a machine that drifts hits all of them."""
    figures = {name: Figure() for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            figures[name].samples.append(seconds_of(action))
    return figures


@dataclass
class Cost:
    """What a command takes: time, and the processors' time, which says more on a busy machine."""

    wall: Figure = field(default_factory=Figure)
    processor: Figure = field(default_factory=Figure)


def command(arguments: Sequence[str], scratch: Path, cache: Path, allowed: Sequence[int] = (0,)) -> None:
    """Run `edgekiln` with a cache of its own; what the user's environment says does not count."""
    _run([sys.executable, "-m", "edgekiln", *arguments], scratch, cache, allowed)


def cost_of(
    arguments: Sequence[str], scratch: Path, cache: Path, runs: int, allowed: Sequence[int] = (0,)
) -> tuple[Cost, int]:
    """Return what a command takes after a first run, and the most memory that it had, in bytes."""
    found, peak = Cost(), peak_memory(arguments, scratch, cache, allowed)
    for _ in range(runs):
        before = os.times()
        found.wall.samples.append(seconds_of(lambda: command(arguments, scratch, cache, allowed)))
        after = os.times()
        children = after.children_user + after.children_system - before.children_user - before.children_system
        found.processor.samples.append(children)
    return found, peak


_PEAK = """
import sys
from pathlib import Path
from edgekiln.__main__ import main
try:
    main(sys.argv[2:])
finally:
    from edgekiln.memory import peak_rss_bytes
    Path(sys.argv[1]).write_text(str(peak_rss_bytes()))
"""


def peak_memory(arguments: Sequence[str], scratch: Path, cache: Path, allowed: Sequence[int] = (0,)) -> int:
    """Run `edgekiln` and return the most memory that it had, in bytes."""
    answer = scratch / "peak.txt"
    _run([sys.executable, "-c", _PEAK, str(answer), *arguments], scratch, cache, allowed)
    return int(answer.read_text(encoding="utf-8"))


def environment(scratch: Path, cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKILN_")}
    return {**kept, "EDGEKILN_CACHE": str(cache), "EDGEKILN_STATE": str(scratch / "state")}


def _run(words: Sequence[str], scratch: Path, cache: Path, allowed: Sequence[int]) -> None:
    done = subprocess.run(
        words, cwd=scratch, env=environment(scratch, cache), capture_output=True, text=True, check=False
    )
    if done.returncode not in allowed:
        sys.exit(f"{' '.join(words[-6:])} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")


def mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def load() -> float | None:
    """Return how many processes wanted a processor in the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    from edgekiln.host import hardware_names, logical_cores, memory_bytes

    return {
        "processor": hardware_names() or platform.machine(),
        "logical_cores": logical_cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_begin": load(),
    }


def samples(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    """Return all samples by name, for programs."""
    return {name: asdict(figure)["samples"] for name, figure in figures.items()}
