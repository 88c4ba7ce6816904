"""Latency: what one process measures, and how processes are joined. Speeds themselves are not tested."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, UsageError
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.latency import METRICS, LatencySample, aggregate, measure

PROTOCOL = MeasurementProtocol(prefill_tokens=4, decode_tokens=3, warmups=2, repeats=3, processes=1)


class Recorder:
    """A runtime that only remembers what it was asked."""

    libraries: ClassVar[tuple[str, ...]] = ("json",)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def load(self, path: Path, threads: int, context_tokens: int) -> None:
        self.calls.append((f"load {path.name}, {context_tokens}", threads))

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

    def first_token(self, ids: Sequence[int]) -> int:
        self.calls.append(("first", len(ids)))
        return 0

    def end(self) -> None:
        self.calls.append(("end", 0))


def test_a_process_loads_warms_up_measures_and_frees() -> None:
    runtime = Recorder()
    sample = measure(runtime, Path("x"), [1, 2, 3, 4], PROTOCOL)
    warm_up, run = [("first", 4), ("decode", 1)], [("first", 4), ("prefill", 4), ("decode", 3)]
    assert runtime.calls == [("load x, 512", 2), *warm_up * 2, *run * 3, ("end", 0)]
    assert len(sample.prefill_tokens_per_second) == len(sample.decode_tokens_per_second) == 3
    assert len(sample.time_to_first_token_seconds) == 3
    assert sample.peak_rss_bytes > 1 << 20


def test_a_prompt_of_another_length_is_refused() -> None:
    with pytest.raises(ArtifactError, match="3 tokens instead of 4"):
        measure(Recorder(), Path("x"), [1, 2, 3], PROTOCOL)


def sample(load: float, *decode: float) -> LatencySample:
    return LatencySample(load, (0.1, 0.2), (100.0, 100.0), decode, int(load * 1000))


def test_aggregation_is_the_median_over_all_processes_and_keeps_every_sample() -> None:
    found = aggregate([sample(1.0, 10, 30), sample(5.0, 20, 40), sample(2.0, 25, 1000)], "x")
    assert found.load_seconds == 2.0
    assert found.decode_tokens_per_second == 27.5
    assert found.peak_rss_bytes == 2000
    assert found.samples["decode_tokens_per_second"] == (10, 30, 20, 40, 25, 1000)
    assert found.spread["load_seconds"] == 2.0
    assert found.spread["prefill_tokens_per_second"] == 0.0
    assert set(found.spread) == set(found.samples) == set(METRICS)


def test_order_of_processes_does_not_matter() -> None:
    samples = [sample(1.0, 10, 30), sample(5.0, 20, 40), sample(2.0, 25, 35)]
    one, other = aggregate(samples, "x"), aggregate(reversed(samples), "x")
    assert [getattr(one, metric) for metric in METRICS] == [getattr(other, metric) for metric in METRICS]


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
