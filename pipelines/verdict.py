"""From measurements to a verdict: gates, status and the report of one build."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from edgekiln.errors import EdgekilnError
from edgekiln.pipelines.measure import Timing
from edgekiln.validators.gates import Baseline, Gate, GateOutcome, judge
from edgekiln.validators.latency import Latency
from edgekiln.validators.report import (
    BuildStatus,
    CheckReport,
    GateReport,
    LatencyReport,
    ParityReport,
    Speeds,
)
from edgekiln.validators.validate import ArtifactMetrics

_SPEEDS = tuple(Speeds.model_fields)


@dataclass(frozen=True)
class Timings:
    """Speeds of an artifact and of what it is compared with; None where nothing was to be measured."""

    artifact: Timing | None
    reference: Timing | None
    fp16_artifact: Timing | None


def _speeds(timing: Timing | None) -> Speeds | None:
    if not isinstance(timing, Latency):
        return None
    return Speeds(**{name: getattr(timing, name) for name in _SPEEDS})


def latency_report(timings: Timings, threads: int) -> LatencyReport | None:
    """Return the latency part of a report, or None where the artifact was not timed."""
    if not isinstance(timings.artifact, Latency):
        return None
    return LatencyReport(
        **{name: getattr(timings.artifact, name) for name in _SPEEDS},
        runtime=timings.artifact.runtime,
        threads=threads,
        reference=_speeds(timings.reference),
        fp16_artifact=_speeds(timings.fp16_artifact),
    )


def parity_report(metrics: ArtifactMetrics, runtime: str) -> ParityReport | None:
    """Return the parity part of a report, or None where it was not measured."""
    if metrics.parity is None:
        return None
    fields = ParityReport.model_fields
    return ParityReport(**{n: v for n, v in vars(metrics.parity).items() if n in fields}, runtime=runtime)


def check_reports(metrics: ArtifactMetrics) -> tuple[CheckReport, ...]:
    """Return the structural checks for a report."""
    return tuple(CheckReport(check=c.check, outcome=c.outcome, detail=c.detail) for c in metrics.structure)


def flatten(metrics: ArtifactMetrics, parity: ParityReport | None, timing: Timing | None) -> dict[str, float | None]:
    """Return every measured figure under its metric's name."""
    values: dict[str, float | None] = {
        "size_bytes": metrics.size_bytes,
        "weights_bytes": metrics.weights_bytes,
        "bits_per_weight": metrics.bits_per_weight,
    }
    if parity is not None:
        values |= {name: value for name, value in parity.model_dump().items() if isinstance(value, int | float)}
        values["perplexity_ratio"] = parity.perplexity / parity.reference_perplexity
    speeds = _speeds(timing)
    return values | (speeds.model_dump() if speeds else {})


def judge_gates(
    gates: Iterable[Gate], values: Mapping[str, float | None], timings: Timings, missing: Mapping[str, str]
) -> tuple[GateOutcome, ...]:
    """Return the outcome of every gate.

    Args:
        gates: The limits.
        values: Measured figures by metric.
        timings: The baselines.
        missing: Why figures are missing, by metric.
    """
    fp16, reference = _speeds(timings.fp16_artifact), _speeds(timings.reference)
    baselines: dict[Baseline, Mapping[str, float | None]] = {
        "fp16_artifact": fp16.model_dump() if fp16 else {},
        "reference": reference.model_dump() if reference else {},
    }
    return tuple(judge(gate, values, baselines, missing=missing) for gate in gates)


def missing_reasons(metrics: ArtifactMetrics, timings: Timings) -> dict[str, str]:
    """Return why figures are missing, by metric, where that is known."""
    reasons: dict[str, str] = {}
    if "parity" in metrics.not_measured:
        reasons |= dict.fromkeys((*ParityReport.model_fields, "perplexity_ratio"), metrics.not_measured["parity"])
    if isinstance(timings.artifact, EdgekilnError):
        reasons |= dict.fromkeys(_SPEEDS, str(timings.artifact))
    elif "latency" in metrics.not_measured:
        reasons |= dict.fromkeys(_SPEEDS, metrics.not_measured["latency"])
    return reasons


def not_measured(metrics: ArtifactMetrics, timings: Timings) -> dict[str, str]:
    """Return what is missing from a report, and why."""
    failed = {
        name: str(timing)
        for name, timing in (
            ("latency", timings.artifact),
            ("latency.reference", timings.reference),
            ("latency.fp16_artifact", timings.fp16_artifact),
        )
        if isinstance(timing, EdgekilnError)
    }
    return {**metrics.not_measured, **failed}


def verdict(
    checks: Iterable[CheckReport], gates: Iterable[GateOutcome], allow_not_measured: Collection[str] = ()
) -> tuple[BuildStatus, str | None]:
    """Return status and reason: a build passes when all its checks and gates do.

    A gate that was not measured fails as well, unless it is allowed; it is only named as a reason where nothing else
    is, since a failed check is usually why.
    """
    outcomes = tuple(gates)
    reasons = [f"{check.check}: {check.detail}" for check in checks if check.outcome == "fail"]
    reasons += [f"{gate.metric}: {gate.reason}" for gate in outcomes if gate.outcome == "fail"]
    unmeasured = [gate for gate in outcomes if gate.outcome == "not_measured" and gate.metric not in allow_not_measured]
    if unmeasured and not reasons:
        reasons = [f"{gate.metric} was not measured: {gate.reason}" for gate in unmeasured]
    return ("failed", "; ".join(reasons)) if reasons else ("passed", None)


def gate_reports(outcomes: Iterable[GateOutcome]) -> tuple[GateReport, ...]:
    """Return gate outcomes for a report."""
    return tuple(
        GateReport(metric=o.metric, limit=o.limit, value=o.value, outcome=o.outcome, reason=o.reason) for o in outcomes
    )
