"""What changed between two reports, published as `edgekiln.comparison/1`, and gates on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from edgekiln.validators.figures import baseline_figures, evidence, figures, samples
from edgekiln.validators.gates import METRICS, OF_MACHINE, OLD, Figures, Gate, GateOutcome, judge
from edgekiln.validators.report import BuildReport, Report
from edgekiln.validators.spread import middle_half

SCHEMA: Final = "edgekiln.comparison/1"
Direction: TypeAlias = Literal["better", "worse", "same", "unknown"]
#: Metrics that say nothing of the artifact's text and nothing of the machine.
_OF_FILES: Final = frozenset({"size_bytes", "weights_bytes", "bits_per_weight", "weights_relative_error"})
_OF_CORPUS: Final = frozenset(METRICS) - _OF_FILES - set(OF_MACHINE)
#: The interval of a metric, as a field of the report's parity.
_INTERVALS: Final[Mapping[str, str]] = MappingProxyType(
    {"mean_kld": "mean_kld_interval", "perplexity_ratio": "perplexity_ratio_interval"}
)


class _Value(BaseModel):
    """A frozen part of a comparison."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, defer_build=True)


class Compared(_Value):
    """One of the two reports."""

    name: str = Field(description="The file as the user named it.", examples=["main/report.json"])
    sha256: str = Field(
        description="Of its bytes, in hex.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    builds: int = Field(description="Number of its builds.", examples=[12])


class MetricChange(_Value):
    """One metric of one build, before and after."""

    metric: str = Field(description="As gates know it.", examples=["mean_kld"])
    section: str | None = Field(
        default=None, description="Part of the corpus; null for all of it.", examples=["code", None]
    )
    unit: str = Field(description="Of its values.", examples=["nats"])
    old: float | None = Field(description="Value in the old report; null where it has none.", examples=[0.0219])
    new: float | None = Field(description="Value in the new report; null where it has none.", examples=[0.0254])
    delta: float | None = Field(description="New minus old; null where one is missing.", examples=[0.0035])
    direction: Direction = Field(
        description="Whether the new value is better or worse; unknown where they cannot be compared.",
        examples=["worse"],
    )
    within_noise: bool | None = Field(
        description="Whether the difference is within what repeated measurements scatter by, or within the confidence "
        "intervals; null where neither is known.",
        examples=[False],
    )
    reason: str | None = Field(
        default=None,
        description="Why they cannot be compared, or what the noise was judged by.",
        examples=["the reports were made on different machines"],
    )


class OutcomeChange(_Value):
    """A gate or check whose outcome is another one; null on the side that has none."""

    kind: Literal["gate", "check"] = Field(description="What it is.", examples=["check"])
    name: str = Field(description="Metric and limit of a gate, id of a check.", examples=["conservation"])
    old: str | None = Field(description="Outcome in the old report.", examples=["pass"])
    new: str | None = Field(description="Outcome in the new report.", examples=["fail"])
    reason: str = Field(description="What the report that has it last says.", examples=["2 tensors are swapped"])


class FindingChange(_Value):
    """A finding that only one of the reports has; they are matched by id and subject."""

    change: Literal["new", "gone"] = Field(description="Which report has it.", examples=["new"])
    id: str = Field(description="Stable id.", examples=["conservation/swapped"])
    severity: Literal["error", "warning", "note"] = Field(description="How much it weighs.", examples=["error"])
    subject: str = Field(description="What it is about.", examples=["blk.1.ffn_up.weight"])
    detail: str = Field(description="What was found.", examples=["holds what another layer has"])
    fix: str = Field(description="What to do about it.", examples=["Export the artifact again."])


class ComparedGate(_Value):
    """A gate of this comparison, on one build."""

    metric: str = Field(description="What it limits.", examples=["mean_kld"])
    limit: str = Field(description="Operator and limit.", examples=["<= 1.1 * old"])
    value: float | None = Field(description="Value in the new report.", examples=[0.0254])
    outcome: Literal["pass", "fail", "not_measured"] = Field(description="What became of it.", examples=["pass"])
    reason: str = Field(description="Why it failed or was not measured.", examples=["0.03 is above 0.024"])
    binding: bool = Field(
        default=True,
        description="False where the build is unsupported and was so before, or has nothing to be compared with.",
        examples=[True],
    )


class JudgedBuild(_Value):
    """One build of the new report, and what became of the gates there."""

    id: str = Field(description="Its id in the new report.", examples=["gguf-cpu-int4"])
    gates: tuple[ComparedGate, ...] = Field(
        default=(),
        description="Gates of this comparison.",
        examples=[[{"metric": "mean_kld", "limit": "<= 1.1 * old", "outcome": "pass"}]],
    )


class BuildChange(JudgedBuild):
    """One build that both reports have."""

    old_id: str = Field(
        description="Its id in the old report; another one only where each report judges one artifact.",
        examples=["gguf-cpu-int4"],
    )
    old_status: str = Field(description="How it ended in the old report.", examples=["passed"])
    new_status: str = Field(description="How it ended in the new report.", examples=["failed"])
    metrics: tuple[MetricChange, ...] = Field(
        description="Every metric that one of them has, changed or not; of the sections, mean_kld.",
        examples=[[{"metric": "mean_kld", "old": 0.0219, "new": 0.0254, "direction": "worse"}]],
    )
    outcomes: tuple[OutcomeChange, ...] = Field(
        description="Gates and checks with another outcome.",
        examples=[[{"kind": "check", "name": "conservation", "old": "pass", "new": "fail"}]],
    )
    findings: tuple[FindingChange, ...] = Field(
        description="Findings that are new or gone.",
        examples=[[{"change": "new", "id": "conservation/swapped", "subject": "blk.1.ffn_up.weight"}]],
    )


class AddedBuild(JudgedBuild):
    """A build that only the new report has."""

    status: str = Field(description="How it ended.", examples=["passed"])


class Comparison(_Value):
    """What `edgekiln compare --json` prints."""

    schema_id: Literal["edgekiln.comparison/1"] = Field(
        default=SCHEMA, alias="schema", description="Kind and version of this document.", examples=[SCHEMA]
    )
    old: Compared = Field(description="The old report.", examples=[{"name": "main/report.json", "builds": 12}])
    new: Compared = Field(description="The new report.", examples=[{"name": "report.json", "builds": 12}])
    status: Literal["passed", "failed"] = Field(
        description="failed when a gate of this comparison failed or was not measured.", examples=["passed"]
    )
    notes: tuple[str, ...] = Field(
        description="What the reports do not share, and what follows from it.",
        examples=[["the reports were made on different machines, so speeds are not compared"]],
    )
    tools: dict[str, tuple[str | None, str | None]] = Field(
        description="Versions that differ, old and new; null where one has none.",
        examples=[{"onnxruntime": ["1.30.0", "1.31.0"]}],
    )
    builds: tuple[BuildChange, ...] = Field(
        description="Builds that both have, in the order of the new report.",
        examples=[[{"id": "gguf-cpu-int4", "old_status": "passed", "new_status": "passed"}]],
    )
    added: tuple[AddedBuild, ...] = Field(
        description="Builds that only the new report has.", examples=[[{"id": "gguf-cpu-q4-k-m", "status": "passed"}]]
    )
    removed: tuple[str, ...] = Field(description="Builds that only the old report has.", examples=[["onnx-cpu-nf4"]])

    @property
    def judged(self) -> tuple[JudgedBuild, ...]:
        """Every build of the new report: those that both have first."""
        return (*self.builds, *self.added)

    def to_json(self) -> str:
        """Return the comparison as published."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


@dataclass(frozen=True)
class _Pair:
    """The same build in both reports."""

    old: BuildReport
    new: BuildReport


@dataclass(frozen=True)
class _Apart:
    """Why figures of the two reports cannot be compared; None where they can.

    Attributes:
        corpus: Of what is measured on text.
        machine: Of what a machine decides.
    """

    corpus: str | None
    machine: str | None

    def reason(self, metric: str) -> str | None:
        """Return why values of a metric cannot be compared."""
        return self.machine if metric in OF_MACHINE else self.corpus if metric in _OF_CORPUS else None


def _same_machine(old: Report, new: Report) -> str | None:
    """Return why speeds of the reports cannot be compared, or None."""
    for what in ("processor", "machine", "logical_cores"):
        before, after = getattr(old.host, what), getattr(new.host, what)
        if before != after:
            return f"the reports were made on different machines ({before} and {after})"
    one, other = old.protocol, new.protocol
    if one is None or other is None:
        return None
    lengths = [(p.prefill_tokens, p.decode_tokens) for p in (one, other)]
    if lengths[0] != lengths[1]:
        return f"the reports timed other lengths (prefill and decode of {lengths[0]} and {lengths[1]} tokens)"
    return None


def _same_corpus(old: Report, new: Report) -> str | None:
    """Return why parity of the reports cannot be compared, or None."""
    if old.corpus is None or new.corpus is None or old.protocol is None or new.protocol is None:
        return None
    if old.corpus.sha256 != new.corpus.sha256:
        return f"the reports compare on different corpora ({old.corpus.name} and {new.corpus.name}, of other content)"
    scored = (old.protocol.scored_tokens, new.protocol.scored_tokens)
    if scored[0] != scored[1] or old.protocol.window != new.protocol.window:
        return f"the reports score other parts of the corpus ({scored[0]} and {scored[1]} positions)"
    return None


def _notes(old: Report, new: Report, apart: _Apart) -> Iterator[str]:
    if apart.machine is not None:
        yield f"{apart.machine}, so speeds and memory are not compared"
    elif old.host.system != new.host.system:
        yield f"the systems differ ({old.host.system} and {new.host.system}); speeds may, too"
    if apart.corpus is not None:
        yield f"{apart.corpus}, so parity is not compared"
    before, after = old.checkpoint, new.checkpoint
    if before and after and before.identity != after.identity:
        names = [f"{each.source} {each.identity[:16]}" for each in (before, after)]
        yield f"the checkpoints differ ({names[0]} and {names[1]})"


def _matched(old: Report, new: Report) -> tuple[list[_Pair], list[BuildReport], list[str]]:
    """Return the builds that both have, those that only the new report has, and the ids that only the old one has."""
    validations = old.pipeline is None or new.pipeline is None
    if validations and len(old.builds) == len(new.builds) == 1:
        return [_Pair(old.builds[0], new.builds[0])], [], []
    before, after = ({build.id: build for build in report.builds} for report in (old, new))
    pairs = [_Pair(before[name], build) for name, build in after.items() if name in before]
    added = [build for name, build in after.items() if name not in before]
    return pairs, added, [name for name in before if name not in after]


def _timed_alike(pair: _Pair) -> str | None:
    """Return why two builds were not timed in the same way, or None."""
    old, new = pair.old.latency, pair.new.latency
    if old is not None and new is not None and old.threads != new.threads:
        return f"they were timed with {old.threads} and {new.threads} threads"
    return None


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1])


def _noise(metric: str, pair: _Pair) -> tuple[bool | None, str | None]:
    """Return whether the difference is within the noise, and what that was judged by."""
    if (field := _INTERVALS.get(metric)) is not None and pair.old.parity and pair.new.parity:
        one, other = getattr(pair.old.parity, field), getattr(pair.new.parity, field)
        if one is not None and other is not None:
            return _overlap(one, other), "95 % confidence intervals"
    before, after = (samples(build.latency).get(metric, ()) for build in (pair.old, pair.new))
    if len(before) > 1 and len(after) > 1:
        rounds = f"middle halves of {len(before)} and {len(after)} rounds"
        return _overlap(middle_half(before), middle_half(after)), rounds
    return (False, None) if metric in _OF_FILES else (None, None)


def _direction(metric: str, old: float | None, new: float | None) -> Direction:
    """Return which of two values is better."""
    if old is None or new is None or not (math.isfinite(old) and math.isfinite(new)):
        return "unknown"
    if old == new:
        return "same"
    return "better" if (new < old) == (METRICS[metric].better == "lower") else "worse"


def _change(metric: str, values: tuple[float | None, float | None], pair: _Pair, apart: _Apart) -> MetricChange:
    old, new = values
    both = old is not None and new is not None
    reason = apart.reason(metric) or (_timed_alike(pair) if metric in OF_MACHINE else None)
    within, by = (None, reason) if reason is not None or not both else _noise(metric, pair)
    return MetricChange(
        metric=metric,
        unit=METRICS[metric].unit,
        old=old,
        new=new,
        delta=new - old if old is not None and new is not None else None,
        direction="unknown" if reason is not None else _direction(metric, old, new),
        within_noise=True if both and old == new else within,
        reason=by,
    )


def _section_changes(pair: _Pair, apart: _Apart) -> Iterator[MetricChange]:
    """Yield the mean KLD of each part of the corpus."""
    before, after = (
        {section.section: section.mean_kld for section in (build.parity.sections if build.parity else ())}
        for build in (pair.old, pair.new)
    )
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        yield MetricChange(
            metric="mean_kld",
            section=name,
            unit=METRICS["mean_kld"].unit,
            old=old,
            new=new,
            delta=new - old if old is not None and new is not None else None,
            direction="unknown" if apart.corpus is not None else _direction("mean_kld", old, new),
            within_noise=True if old is not None and old == new else None,
            reason=apart.corpus,
        )


def _metric_changes(pair: _Pair, apart: _Apart) -> Iterator[MetricChange]:
    before, after = figures(pair.old), figures(pair.new)
    for metric in METRICS:
        values = before.get(metric), after.get(metric)
        if values != (None, None):
            yield _change(metric, values, pair, apart)
    yield from _section_changes(pair, apart)


_Outcomes: TypeAlias = dict[tuple[Literal["gate", "check"], str], tuple[str, str]]


def _outcomes(build: BuildReport) -> _Outcomes:
    """Return outcome and reason of every gate and check."""
    found: _Outcomes = {("check", check.check): (check.outcome, check.detail) for check in build.structure}
    return found | {("gate", f"{gate.metric} {gate.limit}"): (gate.outcome, gate.reason) for gate in build.gates}


def _outcome_changes(pair: _Pair) -> Iterator[OutcomeChange]:
    before, after = _outcomes(pair.old), _outcomes(pair.new)
    for kind, name in dict.fromkeys((*after, *before)):
        old, new = before.get((kind, name)), after.get((kind, name))
        if (old and old[0]) != (new and new[0]):
            reason = (new or old or ("", ""))[1]
            yield OutcomeChange(kind=kind, name=name, old=old and old[0], new=new and new[0], reason=reason)


def _finding_changes(pair: _Pair) -> Iterator[FindingChange]:
    before, after = (
        {(finding.id, finding.subject): finding for check in build.structure for finding in check.findings}
        for build in (pair.old, pair.new)
    )
    sides: tuple[tuple[Literal["new", "gone"], Mapping[tuple[str, str], BaseModel], Iterable[tuple[str, str]]], ...] = (
        ("new", after, (key for key in after if key not in before)),
        ("gone", before, (key for key in before if key not in after)),
    )
    for change, findings, keys in sides:
        for key in keys:
            yield FindingChange(change=change, **dict(findings[key]))


def _tool_changes(old: Report, new: Report) -> dict[str, tuple[str | None, str | None]]:
    names = sorted({*old.tools, *new.tools})
    return {
        name: (old.tools.get(name), new.tools.get(name)) for name in names if old.tools.get(name) != new.tools.get(name)
    }


def _not_asked(gate: Gate, build: BuildReport, old: BuildReport | None) -> str | None:
    """Return why a gate does not count for a build, or None."""
    if build.status == "unsupported" and (old is None or old.status == "unsupported"):
        return f"{build.id} is unsupported{'' if old is None else ', as it was before'}"
    if gate.relative_to == build.id:
        return f"{build.id} is what the others are compared with"
    if gate.relative_to == OLD and old is None:
        return f"the old report has no {build.id}"
    return None


def _old_figures(metric: str, build: BuildReport, old: BuildReport, apart: _Apart) -> Figures | str:
    """Return the figures of a build in the old report, or why they are nothing to compare a metric with."""
    reason = apart.reason(metric) or (_timed_alike(_Pair(old, build)) if metric in OF_MACHINE else None)
    return figures(old) if reason is None else reason


def _judge(gate: Gate, build: BuildReport, old: BuildReport | None, report: Report, apart: _Apart) -> ComparedGate:
    """Judge one gate on a build of the new report.

    Args:
        gate: The gate.
        build: The build.
        old: The same in the old report; None where that lacks it.
        report: The new report, whose other builds a gate may name.
        apart: Why the reports cannot be compared.
    """
    values = figures(build)
    if (reason := _not_asked(gate, build, old)) is not None:
        value = values.get(gate.metric)
        outcome = GateOutcome(gate.metric, gate.limit_text, value, "not_measured", reason, binding=False)
        return ComparedGate.model_validate(outcome, from_attributes=True)
    others = {each.id: each for each in report.builds if each.id == gate.relative_to}
    baselines: dict[str, Figures | str] = {**baseline_figures(build)}
    baselines |= {name: figures(other) for name, other in others.items()}
    if old is not None:
        others[OLD] = old
        baselines[OLD] = _old_figures(gate.metric, build, old, apart)
    most = report.protocol.max_spread if report.protocol else None
    behind = evidence(build, math.inf if most is None else most, others)
    outcome = judge(gate, values, baselines, missing=build.not_measured, evidence=behind)
    return ComparedGate.model_validate(outcome, from_attributes=True)


def compare(old: Report, new: Report, names: tuple[Compared, Compared], gates: Sequence[Gate] = ()) -> Comparison:
    """Return what changed from one report to another, and what became of the gates.

    Args:
        old: What was.
        new: What is.
        names: What to call them.
        gates: Limits on every build of `new`, made for the place `comparison`.
    """
    apart = _Apart(_same_corpus(old, new), _same_machine(old, new))
    pairs, added, removed = _matched(old, new)
    changed = tuple(
        BuildChange(
            id=pair.new.id,
            old_id=pair.old.id,
            old_status=pair.old.status,
            new_status=pair.new.status,
            metrics=tuple(_metric_changes(pair, apart)),
            outcomes=tuple(_outcome_changes(pair)),
            findings=tuple(_finding_changes(pair)),
            gates=tuple(_judge(gate, pair.new, pair.old, new, apart) for gate in gates),
        )
        for pair in pairs
    )
    arrived = tuple(
        AddedBuild(
            id=build.id, status=build.status, gates=tuple(_judge(gate, build, None, new, apart) for gate in gates)
        )
        for build in added
    )
    judged = [gate for gates_of in (changed, arrived) for build in gates_of for gate in build.gates]
    failed = any(gate.outcome != "pass" and (gate.binding or gate.outcome == "fail") for gate in judged)
    return Comparison(
        old=names[0],
        new=names[1],
        status="failed" if failed else "passed",
        notes=tuple(_notes(old, new, apart)),
        tools=_tool_changes(old, new),
        builds=changed,
        added=arrived,
        removed=tuple(removed),
    )
