"""Rounds of latency: what is compared takes turns, noise asks for more, and one failure stops only its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.errors import ArtifactError
from edgekiln.pipelines import measure
from edgekiln.pipelines.measure import Rounds, Subject, Timing, time_alternating
from edgekiln.process import Limits
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.latency import Latency, LatencySample

Timed = Callable[..., dict[str, Timing]]


class Bench:
    """Stands for the processes: answers with given speeds and remembers who was asked."""

    def __init__(self, speeds: dict[str, Iterator[float]], cold: str | None) -> None:
        self.speeds, self.cold = speeds, cold
        self.asked: list[str] = []
        self.shares: list[float] = []

    def sample(self, _kind: str, path: Path, *_: object, **__: object) -> LatencySample:
        self.asked.append(path.name)
        speed = next(self.speeds[path.name])
        if speed < 0:
            raise ArtifactError(f"{path.name} crashed")
        return LatencySample({"prefill_tokens_per_second": 1.0, "decode_tokens_per_second": speed}, 0.0, None)

    def load(self, _kind: str, path: Path, *_: object, **__: object) -> float:
        self.asked.append(f"load {path.name}")
        return 2.0


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Timed:
    def run(speeds: dict[str, list[float]], least: int, most: int, cold: str | None = "no") -> Any:
        bench = Bench({name: iter(values) for name, values in speeds.items()}, cold)
        monkeypatch.setattr(measure, "sample_latency", bench.sample)
        monkeypatch.setattr(measure, "sample_load", bench.load)
        monkeypatch.setattr(measure, "evict", lambda _files: bench.cold)
        for name in speeds:
            (tmp_path / name).touch()
        subjects = {name: Subject("gguf", tmp_path / name, tmp_path / "log") for name in speeds}
        rounds = Rounds(least, most, 0.1)
        protocol, limits = MeasurementProtocol(), Limits()
        found = time_alternating(
            subjects,
            None,  # type: ignore[arg-type]  # not read
            protocol,
            rounds,
            limits=limits,
            advance=bench.shares.append,
        )
        assert all(0 < share <= 1 for share in bench.shares)
        assert bench.shares[-1] == 1
        return found, bench.asked

    return run


def test_subjects_take_turns(timed: Timed) -> None:
    found, asked = timed({"a": [1.0] * 3, "b": [2.0] * 3}, 3, 9)
    assert asked == ["a", "b"] * 3
    assert [found[name].values["decode_tokens_per_second"] for name in "ab"] == [1, 2]


def test_noise_asks_for_more_rounds_of_all_until_it_settles(timed: Timed) -> None:
    found, asked = timed({"a": [1.0, 2.0, 3.0, *[2.0] * 6], "b": [5.0] * 9}, 3, 9)
    rounds = asked.count("a")
    assert 3 < rounds < 9
    assert asked == ["a", "b"] * rounds
    assert found["a"].spread["decode_tokens_per_second"] <= 0.1


def test_noise_that_does_not_settle_ends_at_the_limit(timed: Timed) -> None:
    found, asked = timed({"a": [1.0, 9.0] * 5}, 3, 5)
    assert len(asked) == 5
    assert found["a"].spread["decode_tokens_per_second"] > 0.1


def test_one_that_fails_is_left_out_and_the_others_go_on(timed: Timed) -> None:
    found, asked = timed({"a": [1.0, -1.0], "b": [1.0] * 3}, 3, 9)
    assert asked == ["a", "b", "a", "b", "b"]
    assert isinstance(found["a"], ArtifactError)
    assert isinstance(found["b"], Latency)


def test_every_round_has_a_cold_load_of_its_own_before_the_warm_one(timed: Timed) -> None:
    found, asked = timed({"a": [1.0] * 3}, 3, 3, cold=None)
    assert asked == ["load a", "a"] * 3
    assert found["a"].values["cold_load_seconds"] == 2.0


def test_a_page_cache_that_cannot_be_dropped_is_said_and_not_timed(timed: Timed) -> None:
    found, asked = timed({"a": [1.0] * 3}, 3, 3, cold="tmpfs")
    assert asked == ["a"] * 3
    assert found["a"].no_cold_load == "tmpfs"
