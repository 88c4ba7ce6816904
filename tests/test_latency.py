"""Latency: what one process measures, and how processes are joined. Speeds themselves are not tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, UsageError
from edgekiln.validators import latency
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.energy import EnergyMeter
from edgekiln.validators.gates import TIMED
from edgekiln.validators.latency import LatencySample, aggregate, load_once, measure
from edgekiln.validators.spread import relative_spread

PROTOCOL = MeasurementProtocol(prefill_tokens=(2, 4), decode_tokens=(3, 5), warmups=2, repeats=3, processes=1)


class Recorder:
    """A runtime that only remembers what it was asked."""

    libraries: ClassVar[tuple[str, ...]] = ("json",)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:
        several = f", {sequences} sequences" if sequences > 1 else ""
        self.calls.append((f"load {path.name}, {context_tokens}{several}", threads))

    def load_tokenizer(self, path: Path) -> None:
        raise NotImplementedError

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        raise NotImplementedError

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        raise NotImplementedError

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> None:
        self.calls.append(("prefill", len(ids)))

    def decode(self, count: int) -> None:
        self.calls.append(("decode", count))

    def decode_after(self, ids: Sequence[int], count: int) -> float:
        self.calls.append((f"decode after {list(ids)}", count))
        return count / 8

    def decode_together(self, sequences: int, count: int) -> None:
        self.calls.append((f"decode {sequences} together", count))

    def first_token(self, ids: Sequence[int]) -> int:
        self.calls.append(("first", len(ids)))
        return 0

    def end(self) -> None:
        self.calls.append(("end", 0))


def test_a_process_loads_warms_up_measures_and_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_LEAST_SECONDS", 0)
    runtime = Recorder()
    sample = measure(runtime, Path("x"), [1, 2, 3, 4], PROTOCOL)
    warm_up = [("first", 2), ("decode", 1)]
    lengths = (
        [("first", 2)] * 3 + [("prefill", 2)] * 3 + [("prefill", 4)] * 3 + [("decode", 3)] * 3 + [("decode", 5)] * 3
    )
    assert runtime.calls == [("load x, 512", 2), *warm_up * 2, *lengths, ("end", 0)]
    assert set(sample.values) == {*TIMED, "pp2", "pp4", "tg3", "tg5"} - {"cold_load_seconds"}
    assert sample.values["prefill_tokens_per_second"] == sample.values["pp2"]
    assert sample.values["decode_tokens_per_second"] == sample.values["tg3"]
    assert sample.values["peak_rss_bytes"] >= sample.values["steady_rss_bytes"] > 1 << 20
    assert 0 <= sample.contention <= 1


def test_depths_and_batches_are_timed_after_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_LEAST_SECONDS", 0)
    runtime = Recorder()
    protocol = dataclasses.replace(PROTOCOL, depths=(3, 7), batches=(1, 4))
    sample = measure(runtime, Path("x"), [1, 2, 3, 4], protocol)
    assert runtime.calls[-12:] == [
        ("decode after [1, 2, 3]", 3),
        ("decode after [1, 2, 3, 4, 1, 2, 3]", 3),
        ("end", 0),
        ("load x, 512, 4 sequences", 2),
        ("decode 4 together", 1),
        *[("decode 1 together", 3)] * 3,
        *[("decode 4 together", 3)] * 3,
        ("end", 0),
    ]
    assert sample.values["tg3 @ d3"] == sample.values["tg3 @ d7"] == 8
    assert {"tg3 × 1", "tg3 × 4"} <= set(sample.values)


def test_energy_is_measured_where_the_machine_tells_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("1000000")
    counter = zone / "energy_uj"
    counter.write_text("0")

    class Hungry(Recorder):
        def decode(self, count: int) -> None:
            counter.write_text(str(int(counter.read_text()) + 500 * count))

    monkeypatch.setattr(latency, "_LEAST_SECONDS", 0)
    monkeypatch.setattr(latency, "EnergyMeter", lambda: EnergyMeter(tmp_path))
    assert measure(Hungry(), Path("x"), [1, 2, 3, 4], PROTOCOL).values["joules_per_token"] == 500e-6


def test_runs_that_are_over_in_no_time_are_repeated() -> None:
    runtime = Recorder()
    measure(runtime, Path("x"), [1, 2, 3, 4], PROTOCOL)
    assert runtime.calls.count(("decode", 3)) == 20


def test_a_runtime_that_fails_is_freed() -> None:
    class Failing(Recorder):
        def prefill(self, ids: Sequence[int]) -> None:
            raise ArtifactError(f"no {ids}")

    runtime = Failing()
    with pytest.raises(ArtifactError):
        measure(runtime, Path("x"), [1, 2, 3, 4], PROTOCOL)
    assert runtime.calls[-1] == ("end", 0)


def test_one_load_is_timed_alone() -> None:
    runtime = Recorder()
    assert load_once(runtime, Path("x"), PROTOCOL) >= 0
    assert [name for name, _ in runtime.calls] == ["load x, 512", "end"]


def test_a_prompt_of_another_length_is_refused() -> None:
    with pytest.raises(ArtifactError, match="3 tokens instead of 4"):
        measure(Recorder(), Path("x"), [1, 2, 3], PROTOCOL)


def sample(load: float, decode: float, contention: float = 0.0) -> LatencySample:
    return LatencySample({"load_seconds": load, "decode_tokens_per_second": decode}, contention, (0, 1))


def test_aggregation_is_the_median_over_all_processes_and_keeps_every_sample() -> None:
    found = aggregate([sample(1.0, 10, 0.1), sample(5.0, 20, 0.3), sample(2.0, 30, 0.2)], "x", cold_loads=[7, 9, 8])
    assert found.values == {"load_seconds": 2.0, "decode_tokens_per_second": 20, "cold_load_seconds": 8}
    assert found.samples["decode_tokens_per_second"] == (10, 20, 30)
    assert found.spread == {"load_seconds": 1.0, "decode_tokens_per_second": 0.5, "cold_load_seconds": 0.125}
    assert (found.contention, found.cpus, found.no_cold_load) == (0.2, (0, 1), None)


def test_a_cold_load_that_could_not_be_arranged_says_why() -> None:
    found = aggregate([sample(1.0, 10)], "x", no_cold_load="tmpfs")
    assert found.no_cold_load == "tmpfs"
    assert "cold_load_seconds" not in found.values


def test_order_of_processes_does_not_matter() -> None:
    samples = [sample(1.0, 10), sample(5.0, 20), sample(2.0, 25)]
    one, other = aggregate(samples, "x"), aggregate(samples[::-1], "x")
    assert (one.values, one.spread) == (other.values, other.spread)


def test_no_sample_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="no sample"):
        aggregate([], "x")


def test_protocols_that_measure_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="a median needs three"):
        MeasurementProtocol(processes=1, repeats=2)
    with pytest.raises(UsageError, match="window"):
        MeasurementProtocol(window=1)
    with pytest.raises(UsageError, match="context"):
        MeasurementProtocol(window=256, context=100)
    with pytest.raises(UsageError, match="prefill_tokens"):
        MeasurementProtocol(prefill_tokens=())
    with pytest.raises(UsageError, match="decode_tokens"):
        MeasurementProtocol(decode_tokens=(64, 0))
    with pytest.raises(UsageError, match="depths"):
        MeasurementProtocol(depths=(0,))
    with pytest.raises(UsageError, match="context"):
        MeasurementProtocol(depths=(500,))
    with pytest.raises(UsageError, match="context"):
        MeasurementProtocol(batches=(8,))


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20), st.floats(0.01, 100))
def test_spread_knows_no_order_and_no_unit(values: list[float], factor: float) -> None:
    spread = relative_spread(values)
    assert relative_spread(values[::-1]) == spread >= 0
    assert relative_spread([value * factor for value in values]) == pytest.approx(spread, rel=1e-9, abs=1e-9)


def test_spread_of_equal_values_is_none_and_one_outlier_of_many_does_not_move_it() -> None:
    assert relative_spread([3.0]) == relative_spread([3.0, 3.0, 3.0]) == 0
    assert relative_spread([10, 10, 10, 10, 10, 1000]) == 0
