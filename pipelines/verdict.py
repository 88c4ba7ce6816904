"""From measurements to a verdict: gates, status and the report of one build."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeVar

from edgekiln.errors import EdgekilnError
from edgekiln.pipelines.measure import Timing
from edgekiln.pipelines.targets import RUNTIMES, Target
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.conservation import Conservation
from edgekiln.validators.figures import baseline_figures, evidence, figures
from edgekiln.validators.gates import BASELINES, OF_MACHINE, Figures, Gate, GateOutcome, judge
from edgekiln.validators.health import health_report
from edgekiln.validators.latency import Latency
from edgekiln.validators.precision import Precision
from edgekiln.validators.report import (
    BuildReport,
    BuildStatus,
    CheckReport,
    ConservationReport,
    FindingReport,
    GateReport,
    LatencyReport,
    ParityReport,
    PrecisionReport,
    RequirementReport,
    Speeds,
    StandInReport,
)
from edgekiln.validators.validate import ArtifactMetrics

_Model = TypeVar("_Model", ConservationReport, PrecisionReport)


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
        others: What was measured of other builds of the pipeline that gates name, by id, or why nothing was.
    """

    metrics: ArtifactMetrics
    timings: Timings
    gates: tuple[Gate, ...]
    threads: int
    max_spread: float
    allow_not_measured: frozenset[str] = frozenset()
    error: EdgekilnError | None = None
    elsewhere: Elsewhere | None = None
    others: Mapping[str, BuildReport | str] = field(default_factory=dict)


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
        if gate.metric not in OF_MACHINE:
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
    kinds: dict[str, dict[str, float]] = {"by_length": {}, "by_depth": {}, "by_batch": {}}
    for name, value in medians:
        if name not in OF_MACHINE:
            kinds["by_depth" if " @ d" in name else "by_batch" if " × " in name else "by_length"][name] = value
    return Speeds.model_validate(
        {
            **{name: int(value) if name.endswith("_bytes") else value for name, value in medians if name in OF_MACHINE},
            **kinds,
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
    values = {name: value for name, value in asdict(metrics.parity).items() if name in fields}
    return ParityReport(**values, runtime=RUNTIME_NAMES[metrics.format])


def _section(model: type[_Model], found: Conservation | Precision | None) -> _Model | None:
    """Return a part of the report from the value of the same fields."""
    return None if found is None else model.model_validate(asdict(found))


def _check_reports(metrics: ArtifactMetrics) -> tuple[CheckReport, ...]:
    return tuple(
        CheckReport(
            check=check.check,
            outcome=check.outcome,
            detail=check.detail,
            findings=tuple(FindingReport(**vars(finding)) for finding in check.findings),
        )
        for check in metrics.structure
    )


def judge_gates(build: BuildReport, findings: Findings, missing: Mapping[str, str]) -> tuple[GateOutcome, ...]:
    """Return the outcome of every gate; one that may stay unmeasured, or that is judged elsewhere, does not bind then.

    Args:
        build: What was measured.
        findings: The gates, what this machine cannot judge, and what was measured of other builds.
        missing: Why figures are missing, by metric.
    """
    values, others = figures(build), findings.others
    named = {gate.relative_to for gate in findings.gates if gate.relative_to} - set(BASELINES)
    baselines: dict[str, Figures | str] = {**baseline_figures(build)}
    for name in named:
        other = others.get(name, f"{name} is not part of this run")
        baselines[name] = other if isinstance(other, str) else figures(other)
    known = {name: other for name, other in others.items() if isinstance(other, BuildReport)}
    behind = evidence(build, findings.max_spread, known)
    outcomes = []
    for gate in findings.gates:
        reason = findings.elsewhere.reason(gate) if findings.elsewhere else None
        if reason is not None:
            value = values.get(gate.metric)
            outcome = GateOutcome(gate.metric, gate.limit_text, value, "not_measured", reason, binding=False)
        else:
            outcome = judge(gate, values, baselines, missing=missing, evidence=behind)
        if outcome.outcome == "not_measured" and gate.metric in findings.allow_not_measured:
            outcome = replace(outcome, binding=False)
        outcomes.append(outcome)
    return tuple(outcomes)


def _baselines(timings: Timings) -> dict[str, Timing | None]:
    return {"fp16_artifact": timings.fp16_artifact, "reference": timings.reference}


#: Metrics by the name under which their lack is explained, the general ones first.
_MEASURED_TOGETHER: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "parity": (*ParityReport.model_fields, "perplexity_ratio", "decode_mean_kld", "long_context_mean_kld"),
        "parity.decode": ("decode_mean_kld",),
        "parity.long_context": ("long_context_mean_kld",),
        "conservation": ("weights_relative_error",),
        "latency": OF_MACHINE,
    }
)


def missing_reasons(metrics: ArtifactMetrics, timings: Timings) -> dict[str, str]:
    """Return why figures are missing, by metric, where that is known."""
    reasons: dict[str, str] = {}
    for group, names in _MEASURED_TOGETHER.items():
        if group in metrics.not_measured:
            reasons |= dict.fromkeys(names, metrics.not_measured[group])
    if isinstance(timings.artifact, EdgekilnError):
        reasons |= dict.fromkeys(OF_MACHINE, str(timings.artifact))
    elif isinstance(timings.artifact, Latency):
        reasons |= {"joules_per_token": "no energy counters of this machine could be read"}
        if timings.artifact.no_cold_load:
            reasons["cold_load_seconds"] = timings.artifact.no_cold_load
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


def measured(base: BuildReport, findings: Findings) -> BuildReport:
    """Return the report of a build with all that was measured, before it is judged.

    Args:
        base: What is known without a measurement.
        findings: The measurements.
    """
    metrics = findings.metrics
    return base.model_copy(
        update={
            "size_bytes": metrics.size_bytes,
            "weights_bytes": metrics.weights_bytes,
            "bits_per_weight": metrics.bits_per_weight,
            "structure": _check_reports(metrics),
            "conservation": _section(ConservationReport, metrics.conservation),
            "precision_built": _section(PrecisionReport, metrics.precision),
            "requirements": tuple(RequirementReport(**vars(entry)) for entry in metrics.requirements),
            "parity": _parity_report(metrics),
            "latency": _latency_report(findings.timings, findings.threads),
            "not_measured": _not_measured(findings),
        }
    )


def judged(base: BuildReport, findings: Findings) -> BuildReport:
    """Return the report of a build with all that was measured, the outcome of its gates, and its verdict.

    Args:
        base: What is known without a measurement; its status and reason are replaced.
        findings: The measurements.
    """
    timings = findings.timings
    error = findings.error or (timings.artifact if isinstance(timings.artifact, EdgekilnError) else None)
    found = measured(base, findings)
    outcomes = judge_gates(found, findings, missing_reasons(findings.metrics, timings))
    status, reason = verdict(found.structure, outcomes, findings.allow_not_measured)
    report = found.model_copy(
        update={
            "status": status if error is None else "error",
            "reason": reason if error is None else str(error),
            "gates": _gate_reports(outcomes),
        }
    )
    return report.model_copy(update={"health": health_report(report)})
