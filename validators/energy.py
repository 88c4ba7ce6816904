"""Energy of the processor packages, where the machine has counters that we may read: Linux's powercap (RAPL)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Zones at the top of the tree are packages; those below them (cores, memory) are counted in them.
_ZONES: Final = "*-rapl:[0-9]*"
POWERCAP: Final = Path("/sys/class/powercap")
_NO_COUNTERS: Final = "this machine shows no energy counters (Linux powercap, read by root only on most systems)"


@dataclass(frozen=True)
class _Counter:
    """One package's counter, in microjoules; it begins anew after `limit`."""

    path: Path
    limit: int

    def read(self) -> int:
        return int(self.path.read_text(encoding="ascii"))


class EnergyMeter:
    """Adds up the energy of all processor packages, from its making on.

    Counters count what everybody uses: the figure is that of the machine while something ran alone on it.

    Attributes:
        missing: Why nothing can be measured; None where it can.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._counters: list[_Counter] = []
        self._begin: list[int] = []
        self.missing: str | None = _NO_COUNTERS
        try:
            for zone in sorted(root.glob(_ZONES)):
                if zone.name.count(":") == 1:
                    limit = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
                    self._counters.append(_Counter(zone / "energy_uj", limit))
            self._begin = [counter.read() for counter in self._counters]
        except (OSError, ValueError):
            self._counters = []
        if self._counters:
            self.missing = None

    def joules(self) -> float | None:
        """Return the energy since the meter was made; None where nothing can be measured.

        A counter may have begun anew once meanwhile: at 200 W that takes minutes.
        """
        try:
            now = [counter.read() for counter in self._counters]
        except (OSError, ValueError):
            return None
        if not now:
            return None
        used = (
            (after - before) % (counter.limit + 1)
            for counter, before, after in zip(self._counters, self._begin, now, strict=True)
        )
        return sum(used) / 1e6
