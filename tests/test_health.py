"""Health: one word on a build, and what to do about each finding."""

from __future__ import annotations

from typing import Any

import pytest

from edgekiln.validators.gates import METRICS, TIMED
from edgekiln.validators.health import _CURES, health_report
from edgekiln.validators.report import (
    BuildReport,
    CheckReport,
    GateReport,
    HealthReport,
    LatencyReport,
    Speeds,
    StandInReport,
)


def build(**values: Any) -> BuildReport:
    base = {
        "id": "x",
        "target": "t",
        "format": "gguf",
        "requested": "int4",
        "precision": "q4_0",
        "container_type": "Q4_0",
    }
    return BuildReport(**{**base, "status": "passed", "reason": None, **values})


def health(**values: Any) -> HealthReport:
    found = health_report(build(**values))
    assert found is not None
    return found


def gate(metric: str, limit: str, value: float | None, outcome: Any = "pass", **more: Any) -> GateReport:
    return GateReport(metric=metric, limit=limit, value=value, outcome=outcome, reason="why", **more)


def latency(decode: float, base: float, **more: Any) -> LatencyReport:
    return LatencyReport(
        runtime="r",
        threads=2,
        decode_tokens_per_second=decode,
        fp16_artifact=Speeds(decode_tokens_per_second=base),
        **more,
    )


def test_nothing_to_say_is_healthy() -> None:
    assert health(gates=(gate("mean_kld", "<= 0.2", 0.07),), latency=latency(20, 10)) == HealthReport(status="healthy")


def test_an_unsupported_build_has_no_health() -> None:
    assert health_report(build(status="unsupported")) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"gates": (gate("mean_kld", "<= 0.2", 0.19),)}, "close to its limit"),
        ({"gates": (gate("top1_agreement", ">= 0.75", 0.76),)}, "close to its limit"),
        ({"gates": (gate("perplexity_ratio", "<= 1.3", 1.29),)}, "close to its limit"),
        ({"latency": latency(3, 10)}, "0.30 times the speed of the fp16 artifact"),
        ({"latency": latency(20, 10, contention=0.4)}, "other processes used 40%"),
        ({"not_measured": {"latency.decode_tokens_per_second": "too noisy: 9 rounds"}}, "more rounds (max_repeats)"),
        ({"notes": ("a is q5_0", "b is q5_0")}, "a is q5_0 (and 1 more)"),
        ({"stand_in": StandInReport(what="a stands in for b", not_measured=("speed",))}, "once on the device"),
    ],
)
def test_a_passed_build_with_something_worth_a_word_is_degraded(values: dict[str, Any], expected: str) -> None:
    found = health(**values)
    assert found.status == "degraded"
    (finding,) = found.findings
    assert expected in finding


@pytest.mark.parametrize(
    "quiet",
    [
        gate("mean_kld", "<= 0.2", 0.1),
        gate("perplexity_ratio", "<= 1.3", 1.02),
        gate("size_bytes", "<= 350 MB", 349e6),
        gate("decode_tokens_per_second", ">= 0.9 * fp16_artifact", 0.91),
        gate("mean_kld", "<= 0", 0.0),
    ],
)
def test_limits_that_are_kept_with_room_are_not_worth_a_word(quiet: GateReport) -> None:
    assert health(gates=(quiet,)).status == "healthy"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"status": "error", "reason": "it crashed", "log": "logs/x.log"}, "it crashed; see logs/x.log"),
        ({"status": "failed", "gates": (gate("mean_kld", "<= 0.2", 3.0, "fail"),)}, "more bits"),
        ({"status": "failed", "gates": (gate("mean_kld", "<= 0.2", None, "not_measured"),)}, "allow_not_measured"),
        (
            {"status": "failed", "structure": (CheckReport(check="gguf/metadata", outcome="fail", detail="5 blocks"),)},
            "do not ship",
        ),
    ],
)
def test_a_build_that_did_not_pass_is_unhealthy(values: dict[str, Any], expected: str) -> None:
    found = health(**values)
    assert found.status == "unhealthy"
    assert expected in " ".join(found.findings)


def test_gates_that_do_not_bind_are_no_reason_to_measure_again() -> None:
    gates = (gate("mean_kld", "<= 1", 2.0, "fail"), gate("load_seconds", "<= 1", None, "not_measured", binding=False))
    assert len(health(status="failed", gates=gates).findings) == 1


def test_every_metric_has_a_cure() -> None:
    assert set(METRICS) - set(_CURES) == {"reference_perplexity"}
    assert set(METRICS) >= set(TIMED)
