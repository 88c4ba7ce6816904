from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.validators.energy import EnergyMeter


def zone(root: Path, name: str, energy: int, limit: int = 1000) -> Path:
    directory = root / name
    directory.mkdir()
    (directory / "max_energy_range_uj").write_text(f"{limit}\n")
    (directory / "energy_uj").write_text(f"{energy}\n")
    return directory / "energy_uj"


def test_energy_is_that_of_all_packages_and_of_nothing_counted_twice(tmp_path: Path) -> None:
    counters = [zone(tmp_path, name, 100) for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0")]
    meter = EnergyMeter(tmp_path)
    for counter in counters:
        counter.write_text("400\n")
    assert meter.missing is None
    assert meter.joules() == pytest.approx(600e-6)


def test_a_counter_that_began_anew_is_understood(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 990, limit=999)
    meter = EnergyMeter(tmp_path)
    counter.write_text("15\n")
    assert meter.joules() == pytest.approx(25e-6)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path / "none")
    assert meter.missing is not None
    assert "no energy counters" in meter.missing
    assert meter.joules() is None


def test_counters_that_hold_something_else_or_vanish_are_no_counters(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 1)
    meter = EnergyMeter(tmp_path)
    counter.unlink()
    assert meter.joules() is None
    counter.write_text("much\n")
    assert EnergyMeter(tmp_path).missing is not None
