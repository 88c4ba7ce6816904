"""From measurements to a verdict: gates, status and the report of one build."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekiln.errors import EdgekilnError
from edgekiln.pipelines.measure import Timing
from edgekiln.pipelines.targets import RUNTIMES, Target
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.gates import TIMED, Baseline, Evidence, Gate, GateOutcome, judge
from edgekiln.validators.health import health_report
from edgekiln.validators.latency import Latency
from edgekiln.validators.report import (
    BuildReport,
    BuildStatus,
    CheckReport,
    GateReport,
    LatencyReport,
    ParityReport,
    Speeds,
    StandInReport,
)
from edgekiln.validators.validate import ArtifactMetrics


@dataclass(frozen=True)
class Timings:
    """Speeds of an artifact and of what it is compared with; None where nothing was to be measured."""

    artifact: Timing | None
    reference: Timing | None
    fp16_artifact: Timing | None


UNTIMED: Final = Timings(None, None, None)


@dataclass(frozen=True)
class Findings:
    """All that is known about one build when it is judged.

    Attributes:
        metrics: What validation found.
        timings: Speeds.
        gates: The limits.
        threads: Threads of the runtime.
        max_spread: Scatter beyond which a speed is too noisy.
        allow_not_measured: Metrics whose gates may stay unmeasured.
        error: What stopped the build after it was measured.
        elsewhere: By metric and kind of limit, see `not_judged_here`; None where this machine judges all gates.
    """

    metrics: ArtifactMetrics
    timings: Timings
    gates: tuple[Gate, ...]
    threads: int
    max_spread: float
    allow_not_measured: frozenset[str] = frozenset()
    error: EdgekilnError | None = None
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True)
class Elsewhere:
    """Why this machine cannot judge what a device decides.

    Attributes:
        absolute: Why absolute speeds and memory are not judged; None where this is the target's hardware.
        relative: Why speeds relative to a baseline are not judged; None where the target's own runtime ran.
    """

    absolute: str | None
    relative: str | None

    def reason(self, gate: Gate) -> str | None:
        """Return why `gate` is not judged here, or None where it is."""
        if gate.metric not in TIMED:
            return None
        return self.absolute if gate.relative_to is None else self.relative


def elsewhere(target: Target, machine: str, hardware: str) -> Elsewhere:
    """Return what of a target's gates this machine cannot judge.

    Args:
        target: Says which hardware it is.
        machine: This machine's architecture, e.g. `x86_64`.
        hardware: The names of its processor and product.
    """
    here = target.is_this_machine(machine, hardware)
    absolute = None if here else f"this machine ({hardware}) is not the target's: {target.description}"
    return Elsewhere(target.stand_in or absolute, target.stand_in)


def stand_in_report(target: Target) -> StandInReport | None:
    """Return what ran here in place of the target's runtime; None where that runtime itself ran."""
    if target.stand_in is None:
        return None
    there = f"{RUNTIMES[target.runtime.name].title} on {target.execution_provider}"
    return StandInReport(
        what=target.stand_in,
        not_measured=(f"speed and memory in {there}", f"whether the kernels of {there} compute the same numbers"),
    )


def _speeds(timing: Timing | None) -> Speeds | None:
    if not isinstance(timing, Latency):
        return None
    medians = timing.values.items()
    return Speeds.model_validate(
        {
            **{name: int(value) if name.endswith("_bytes") else value for name, value in medians if name in TIMED},
            "by_length": {name: value for name, value in medians if name not in TIMED},
            "spread": dict(timing.spread),
            "samples": dict(timing.samples),
        }
    )


def _latency_report(timings: Timings, threads: int) -> LatencyReport | None:
    speeds = _speeds(timings.artifact)
    if speeds is None or not isinstance(timings.artifact, Latency):
        return None
    return LatencyReport(
        **dict(speeds),
        runtime=timings.artifact.runtime,
        threads=threads,
        pinned_to=timings.artifact.cpus,
        contention=timings.artifact.contention,
        reference=_speeds(timings.reference),
        fp16_artifact=_speeds(timings.fp16_artifact),
    )


def _parity_report(metrics: ArtifactMetrics) -> ParityReport | None:
    if metrics.parity is None:
        return None
    fields = ParityReport.model_fields
    values = {name: value for name, value in vars(metrics.parity).items() if name in fields}
    return ParityReport(**values, runtime=RUNTIME_NAMES[metrics.format])


def _check_reports(metrics: ArtifactMetrics) -> tuple[CheckReport, ...]:
    return tuple(CheckReport(check=c.check, outcome=c.outcome, detail=c.detail) for c in metrics.structure)


def _values(metrics: ArtifactMetrics, parity: ParityReport | None, timing: Timing | None) -> dict[str, float | None]:
    """Return every measured figure under its metric's name."""
    values: dict[str, float | None] = {
        "size_bytes": metrics.size_bytes,
        "weights_bytes": metrics.weights_bytes,
        "bits_per_weight": metrics.bits_per_weight,
    }
    if parity is not None:
        values |= {name: value for name, value in parity.model_dump().items() if isinstance(value, int | float)}
        values["perplexity_ratio"] = parity.perplexity / parity.reference_perplexity
    return values | (dict(timing.values) if isinstance(timing, Latency) else {})


def _samples(timing: Timing | None) -> Mapping[str, Sequence[float]]:
    return timing.samples if isinstance(timing, Latency) else MappingProxyType({})


def judge_gates(
    findings: Findings, values: Mapping[str, float | None], missing: Mapping[str, str]
) -> tuple[GateOutcome, ...]:
    """Return the outcome of every gate.

    Args:
        findings: Gates, timings, and what this machine cannot judge.
        values: Measured figures by metric.
        missing: Why figures are missing, by metric.
    """
    timings = findings.timings
    baselines: dict[Baseline, Mapping[str, float | None]] = {
        name: dict(timing.values) if isinstance(timing, Latency) else {} for name, timing in _baselines(timings).items()
    }
    # The reference is timed on its own, so only the fp16 artifact's rounds pair up with the artifact's.
    evidence = Evidence(
        _samples(timings.artifact), {"fp16_artifact": _samples(timings.fp16_artifact)}, findings.max_spread
    )
    outcomes = []
    for gate in findings.gates:
        reason = findings.elsewhere.reason(gate) if findings.elsewhere else None
        if reason is None:
            outcomes.append(judge(gate, values, baselines, missing=missing, evidence=evidence))
        else:
            value = values.get(gate.metric)
            outcomes.append(GateOutcome(gate.metric, gate.limit_text, value, "not_measured", reason, binding=False))
    return tuple(outcomes)


def _baselines(timings: Timings) -> dict[Baseline, Timing | None]:
    return {"fp16_artifact": timings.fp16_artifact, "reference": timings.reference}


def missing_reasons(metrics: ArtifactMetrics, timings: Timings) -> dict[str, str]:
    """Return why figures are missing, by metric, where that is known."""
    reasons: dict[str, str] = {}
    if "parity" in metrics.not_measured:
        reasons |= dict.fromkeys((*ParityReport.model_fields, "perplexity_ratio"), metrics.not_measured["parity"])
    if isinstance(timings.artifact, EdgekilnError):
        reasons |= dict.fromkeys(TIMED, str(timings.artifact))
    elif isinstance(timings.artifact, Latency) and timings.artifact.no_cold_load:
        reasons["cold_load_seconds"] = timings.artifact.no_cold_load
    elif "latency" in metrics.not_measured:
        reasons |= dict.fromkeys(TIMED, metrics.not_measured["latency"])
    return reasons


def _not_measured(findings: Findings) -> dict[str, str]:
    """Return what is missing from a report or too noisy to be relied on, and why."""
    timings = findings.timings
    missing = dict(findings.metrics.not_measured)
    for name, timing in {
        "latency": timings.artifact,
        **{f"latency.{k}": v for k, v in _baselines(timings).items()},
    }.items():
        if isinstance(timing, EdgekilnError):
            missing[name] = str(timing)
        elif isinstance(timing, Latency):
            missing |= _too_noisy(name, timing, findings.max_spread)
    for name, timing in {"latency": timings.artifact, "latency.fp16_artifact": timings.fp16_artifact}.items():
        if isinstance(timing, Latency) and timing.no_cold_load:
            missing[f"{name}.cold_load_seconds"] = timing.no_cold_load
    return missing


def _too_noisy(name: str, timing: Latency, max_spread: float) -> dict[str, str]:
    rounds = max(map(len, timing.samples.values()))
    return {
        f"{name}.{figure}": f"too noisy: {rounds} rounds scatter by {spread:.0%}, beyond {max_spread:.0%}"
        for figure, spread in timing.spread.items()
        if spread > max_spread
    }


def verdict(
    checks: Iterable[CheckReport], gates: Iterable[GateOutcome], allow_not_measured: Collection[str] = ()
) -> tuple[BuildStatus, str | None]:
    """Return status and reason: a build passes when all its checks and gates do.

    A gate that was not measured fails as well, unless it is allowed, or this machine cannot judge it by design; it is
    only named as a reason where nothing else is, since a failed check is usually why.
    """
    outcomes = tuple(gates)
    reasons = [f"{check.check}: {check.detail}" for check in checks if check.outcome == "fail"]
    reasons += [f"{gate.metric}: {gate.reason}" for gate in outcomes if gate.outcome == "fail"]
    unmeasured = [
        gate
        for gate in outcomes
        if gate.outcome == "not_measured" and gate.binding and gate.metric not in allow_not_measured
    ]
    if unmeasured and not reasons:
        reasons = [f"{gate.metric} was not measured: {gate.reason}" for gate in unmeasured]
    return ("failed", "; ".join(reasons)) if reasons else ("passed", None)


def _gate_reports(outcomes: Iterable[GateOutcome]) -> tuple[GateReport, ...]:
    return tuple(
        GateReport(metric=o.metric, limit=o.limit, value=o.value, outcome=o.outcome, reason=o.reason, binding=o.binding)
        for o in outcomes
    )


def judged(base: BuildReport, findings: Findings) -> BuildReport:
    """Return the report of a build with all that was measured, the outcome of its gates, and its verdict.

    Args:
        base: What is known without a measurement; its status and reason are replaced.
        findings: The measurements.
    """
    metrics, timings = findings.metrics, findings.timings
    error = findings.error or (timings.artifact if isinstance(timings.artifact, EdgekilnError) else None)
    checks, parity = _check_reports(metrics), _parity_report(metrics)
    values = _values(metrics, parity, timings.artifact)
    outcomes = judge_gates(findings, values, missing_reasons(metrics, timings))
    status, reason = verdict(checks, outcomes, findings.allow_not_measured)
    report = base.model_copy(
        update={
            "status": status if error is None else "error",
            "reason": reason if error is None else str(error),
            "size_bytes": metrics.size_bytes,
            "weights_bytes": metrics.weights_bytes,
            "bits_per_weight": metrics.bits_per_weight,
            "structure": checks,
            "parity": parity,
            "latency": _latency_report(timings, findings.threads),
            "gates": _gate_reports(outcomes),
            "not_measured": _not_measured(findings),
        }
    )
    return report.model_copy(update={"health": health_report(report)})
