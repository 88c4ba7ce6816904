"""Given only a model and a device: which precisions fit there, and how large each would be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from edgekiln.errors import MachineError
from edgekiln.pipelines.cells import look_ahead
from edgekiln.pipelines.fit_document import FitDocument, FitPrecision
from edgekiln.pipelines.forecast import forecast
from edgekiln.pipelines.plan import Build, Formats, Plan, expand
from edgekiln.pipelines.plan_document import planned_prediction
from edgekiln.pipelines.plan_table import memory_text, options_text, size_text
from edgekiln.pipelines.predict import BuildPrediction
from edgekiln.pipelines.settings import EffectiveSettings
from edgekiln.pipelines.spec import parse_pipeline
from edgekiln.pipelines.targets import Target, TargetsFile
from edgekiln.scheme import GENERIC_PRECISIONS
from edgekiln.table import plain_table
from edgekiln.yamlfile import parse_yaml

_NAME = "--fit"


@dataclass(frozen=True)
class Candidate:
    """One precision on a device.

    Attributes:
        build: What it would be.
        container_type: What the container would hold; None where it cannot be made.
        prediction: Its size and memory; None likewise.
        reason: Why it cannot be made; None where it can.
    """

    build: Build
    container_type: str | None
    prediction: BuildPrediction | None
    reason: str | None


@dataclass(frozen=True)
class FitReport:
    """Every precision that a device could have of a model, the largest first.

    Attributes:
        target: The device.
        settings: The effective settings; `checkpoint` is the model.
        candidates: The precisions.
    """

    target: Target
    settings: EffectiveSettings
    candidates: tuple[Candidate, ...]


def _precisions(target: Target, formats: Formats) -> Iterator[str]:
    """Yield what the target maps, and what its container holds beside that."""
    yield from target.precisions
    container = formats.get(target.format)
    for name in container.precisions if container is not None else ():
        if name not in target.precisions:
            yield name


def _plan(target: Target, targets: TargetsFile, settings: EffectiveSettings, formats: Formats) -> Plan:
    """Return a plan with one build for each precision."""
    names = sorted(_precisions(target, formats), key=lambda name: name not in GENERIC_PRECISIONS)
    document = {
        "schema": "edgekiln.pipeline/1",
        "name": "fit",
        "builds": [{"target": target.name, "precisions": names}],
    }
    return expand(parse_pipeline(parse_yaml(json.dumps(document).encode(), _NAME)), targets, settings, formats=formats)


def fit(name: str, targets: TargetsFile, settings: EffectiveSettings, formats: Formats) -> FitReport:
    """Predict every precision of a model on a device.

    A precision that the device's container or provider does not hold is left out, unless the target itself says why.

    Args:
        name: Of the target.
        targets: The device profiles.
        settings: The effective settings; `checkpoint` is the model.
        formats: The exporters by format.

    Raises:
        UsageError: There is no such target, or no such checkpoint.
        MachineError: The checkpoint is not on this machine.
    """
    target = targets.get(name)
    plan = _plan(target, targets, settings, formats)
    outlook = look_ahead(plan)
    if outlook.checkpoint is None:
        raise MachineError(f"{outlook.note} Fetch it first, for example with hf download.")
    found = forecast(plan, outlook).builds
    candidates = [
        Candidate(
            build,
            outlook.plans[build.id].container_type if build.id in outlook.plans else None,
            found.get(build.id),
            outlook.reasons.get(build.id),
        )
        for build in plan.builds
        if build.unsupported is None or build.requested in target.precisions or target.unsupported
    ]
    candidates.sort(key=lambda each: -(each.prediction.artifact_bytes if each.prediction else 0))
    return FitReport(target, settings, tuple(candidates))


_COLUMNS = (
    ("precision", False),
    ("holds", False),
    ("options", False),
    ("artifact", True),
    ("on device", True),
    ("fit", False),
)


def fit_text(report: FitReport) -> str:
    """Return one row per precision, the largest first."""
    target, rows = report.target, []
    for each in report.candidates:
        found = each.prediction
        rows.append(
            [
                each.build.requested,
                each.container_type or "–",
                options_text(each.build.scheme),
                size_text(found.artifact_bytes if found else None),
                memory_text(found.memory.total if found else None),
                found.fit if found else "unsupported",
            ]
        )
    lines = [plain_table(_COLUMNS, rows), ""]
    lines += [f"{each.build.requested}: {each.reason}" for each in report.candidates if each.reason]
    context = next((each.prediction.memory.context for each in report.candidates if each.prediction), None)
    tokens = f", {context:,} tokens of context" if context else ""
    memory = f"{memory_text(target.memory)} for the process" if target.memory else "no limit on memory given"
    lines.append(
        "On device: weights as the runtime holds them, a reordered copy included, key-value cache, the runtime itself."
    )
    lines.append(f"{target.name}: {target.description}; {memory}{tokens}")
    lines.append(f"Checkpoint: {report.settings.values.checkpoint} ({report.settings.origins['checkpoint']})")
    return "\n".join(lines)


def fit_json(report: FitReport) -> str:
    """Return the same as JSON."""
    document = FitDocument(
        checkpoint=report.settings.values.checkpoint,
        target=report.target.name,
        memory=report.target.memory,
        precisions=tuple(map(_entry, report.candidates)),
    )
    return document.model_dump_json(by_alias=True, indent=2)


def _entry(each: Candidate) -> FitPrecision:
    return FitPrecision(
        requested=each.build.requested,
        precision=each.build.precision,
        container_type=each.container_type,
        unsupported=each.reason,
        prediction=planned_prediction(each.prediction),
    )
