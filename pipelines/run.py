"""Running a plan: reference, exports, validation, latency, verdicts, report.

Every piece of work is a step in a store, but latency, which is measured anew and alone. A build that fails does not
stop the others; what happened to each is in the report, and the gravest of it is the exit code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.artifact import Manifest, write_atomically
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.console import Console
from edgekiln.errors import EdgekilnError, ExitCode, MachineError, UnsupportedError, UsageError, worst
from edgekiln.exporters.base import ExportPlan
from edgekiln.host import tool_versions
from edgekiln.pipelines.export import check_outside, plan_export
from edgekiln.pipelines.measure import Subject
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.session import (
    BASELINE_FORMAT,
    Outcome,
    Session,
    describe_checkpoint,
    describe_host,
    describe_protocol,
)
from edgekiln.pipelines.verdict import (
    Timings,
    check_reports,
    flatten,
    gate_reports,
    judge_gates,
    latency_report,
    missing_reasons,
    not_measured,
    parity_report,
    verdict,
)
from edgekiln.pipelines.workspace import workspace
from edgekiln.steps import LocalStore
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.kinds import identify
from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import (
    BuildReport,
    CorpusReport,
    Report,
    TargetsReport,
)
from edgekiln.validators.validate import ArtifactMetrics, Reference

REPORT: Final = "report.json"
REPORT_MARKDOWN: Final = "report.md"
#: The Python package whose version a target's range speaks of.
RUNTIME_PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"onnxruntime-genai": "onnxruntime-genai", "llama.cpp": "llama-cpp-python", "foundry-local": "foundry-local-sdk"}
)


@dataclass
class Cell:
    """A build on its way; each phase fills in what it found.

    Attributes:
        build: What is to be made.
        plan: Decided from metadata; None when the cell is unsupported.
        unsupported: Why it cannot be made.
        error: What stopped it.
    """

    build: Build
    plan: ExportPlan | None = None
    unsupported: str | None = None
    error: EdgekilnError | None = None
    artifact: Path | None = None
    manifest: Manifest | None = None
    export_seconds: float | None = None
    metrics: ArtifactMetrics | None = None

    @property
    def alive(self) -> bool:
        """Nothing has stopped it so far."""
        return self.plan is not None and self.error is None


def prepare(plan: Plan, checkpoint: Checkpoint) -> list[Cell]:
    """Decide every tensor of every build from metadata, before anything is written.

    Raises:
        UsageError: A scheme contradicts itself or the shapes; the message begins with the build's id.
    """
    return [_prepare(build, checkpoint) for build in plan.builds]


def _prepare(build: Build, checkpoint: Checkpoint) -> Cell:
    cell = Cell(build, unsupported=build.unsupported)
    if cell.unsupported is not None:
        return cell
    try:
        cell.plan = plan_export(checkpoint, build.format, build.scheme)
    except UnsupportedError as error:
        cell.unsupported = str(error)
        return cell
    except UsageError as error:
        raise UsageError(f"{build.id}: {error}") from None
    memory = build.target.memory
    if memory is not None and cell.plan.weights_bytes > memory:
        needed, given = cell.plan.weights_bytes / 2**20, memory / 2**20
        cell.unsupported = (
            f"its weights take {needed:.0f} MiB, but {build.target.name} gives a model {given:.0f} MiB; "
            "use a smaller precision or checkpoint"
        )
        cell.plan = None
    return cell


def reasons_against(plan: Plan) -> tuple[dict[str, str], str | None]:
    """Return why builds cannot be made, by id, and what could not be looked at.

    The checkpoint's metadata is read where it is on this machine already; no weight is read, nothing is written.
    """
    settings = plan.settings.values
    try:
        checkpoint = open_checkpoint(settings.checkpoint, offline=True)
    except MachineError:
        known = {build.id: build.unsupported for build in plan.builds if build.unsupported}
        return known, f"{settings.checkpoint} is not on this machine yet, so its shapes were not looked at."
    reasons: dict[str, str] = {}
    for build in plan.builds:
        try:
            cell = _prepare(build, checkpoint)
        except UsageError as error:
            reasons[build.id] = str(error).removeprefix(f"{build.id}: ")
            continue
        if cell.unsupported is not None:
            reasons[build.id] = cell.unsupported
    return reasons, None


def run_plan(plan: Plan, console: Console) -> Outcome:
    """Make, run and judge every build of a plan, and write the report.

    Raises:
        UsageError: The checkpoint or a scheme is impossible; nothing was written.
        MachineError: The output folder cannot be used.
    """
    settings = plan.settings.values
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline)
    check_outside(settings.out, checkpoint)
    cells = prepare(plan, checkpoint)
    with workspace(settings.out) as scratch:
        logs = settings.out / "logs"
        # What an earlier run said must not be taken for this one's, should this one end early.
        for stale in (settings.out / REPORT, settings.out / REPORT_MARKDOWN, *logs.glob("*.log")):
            stale.unlink(missing_ok=True)
        session = Session(checkpoint, settings, LocalStore(scratch), logs, console)
        living = [cell for cell in cells if cell.alive]
        groups = {(BASELINE_FORMAT[cell.build.format], cell.build.threads) for cell in living}
        console.expect(2 * len(living) + (1 + settings.repeats if living else 0) + len(groups) * (1 + settings.repeats))
        reference = _run_reference(session, living)
        for cell in living:
            _make(cell, session, reference)
        timings = _time_all(living, session, reference)
        builds = tuple(_report(cell, timings.get(cell.build.id), settings.out) for cell in cells)
        report = _assemble(plan, checkpoint, reference, session, builds)
        write_atomically(settings.out / REPORT, report.to_json())
        write_atomically(settings.out / REPORT_MARKDOWN, render_markdown(report))
    return Outcome(report, worst(_exit_code(cell, build) for cell, build in zip(cells, builds, strict=True)))


def _run_reference(session: Session, living: list[Cell]) -> Reference | None:
    """Run the reference if any build needs it; if it fails, no build can be judged."""
    if not living:
        return None
    try:
        return session.reference()
    except EdgekilnError as error:
        for cell in living:
            cell.error = error
        return None


def _make(cell: Cell, session: Session, reference: Reference | None) -> None:
    """Export, publish and validate one build; what goes wrong is the build's own."""
    build = cell.build
    if cell.plan is None or reference is None:
        return
    try:
        _check_runtime(build)
        begin = time.monotonic()
        with session.console.step(build.id, f"exporting {cell.plan.container_type}"):
            cell.artifact, cell.manifest = session.export(cell.plan, build.requested, publish_as=build.id)
        cell.export_seconds = time.monotonic() - begin
        with session.console.step(build.id, f"structure and parity in {RUNTIME_NAMES[build.format]}"):
            cell.metrics = session.validate(build.id, cell.artifact, reference, build.threads)
    except EdgekilnError as error:
        session.console.say(f"{build.id}: {error}")
        cell.error = error
    except OSError as error:
        cell.error = MachineError(f"{build.id}: {error}")


def _check_runtime(build: Build) -> None:
    """Refuse to judge for a runtime version that this machine does not have.

    Raises:
        MachineError: The installed runtime lies outside the target's range.
    """
    package = RUNTIME_PACKAGES[build.target.runtime.name]
    found = version(package)
    if not build.target.runtime.accepts(found):
        raise MachineError(
            f"target {build.target.name} wants {build.target.runtime.name} {build.target.runtime.version}, but this "
            f"machine has {package} {found}; install one in that range or change the target"
        )


def _time_all(living: list[Cell], session: Session, reference: Reference | None) -> dict[str, Timings]:
    """Time everything that ran, grouped so that what is compared alternates."""
    ready = [cell for cell in living if cell.alive and cell.metrics is not None and cell.metrics.parity is not None]
    if reference is None or not ready:
        return {}
    of_reference = session.time_reference(reference)
    timings: dict[str, Timings] = {}
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in ready:
        groups.setdefault((BASELINE_FORMAT[cell.build.format], cell.build.threads), []).append(cell)
    for (container, threads), cells in groups.items():
        baseline = session.baseline(container)
        subjects = {
            cell.build.id: Subject(cell.build.format, identify(cell.artifact).path, session.log(cell.build.id))
            for cell in cells
            if cell.artifact is not None
        }
        if isinstance(baseline, Subject):
            subjects["fp16"] = baseline
        found = session.time(container, subjects, reference, threads)
        fp16 = found.get("fp16", baseline if isinstance(baseline, EdgekilnError) else None)
        for cell in cells:
            timings[cell.build.id] = Timings(found[cell.build.id], of_reference, fp16)
    return timings


def _report(cell: Cell, timings: Timings | None, out: Path) -> BuildReport:
    """Judge one build and describe it."""
    build = cell.build
    base = BuildReport(
        id=build.id,
        target=build.target.name,
        format=build.format,
        requested=build.requested,
        precision=build.precision,
        container_type=cell.plan.container_type if cell.plan else None,
        status="unsupported" if cell.plan is None else "error",
        reason=cell.unsupported or str(cell.error),
        artifact=cell.artifact.relative_to(out).as_posix() if cell.artifact else None,
        export_seconds=cell.export_seconds,
        notes=_notes(cell.plan) if cell.plan else (),
        log=f"logs/{build.id}.log" if cell.artifact else None,
    )
    if cell.metrics is None:
        return base
    timings = timings or Timings(None, None, None)
    if cell.error is None and isinstance(timings.artifact, EdgekilnError):
        cell.error = timings.artifact
    metrics, checks = cell.metrics, check_reports(cell.metrics)
    parity = parity_report(metrics, RUNTIME_NAMES[build.format])
    values = flatten(metrics, parity, timings.artifact)
    outcomes = judge_gates(build.gates, values, timings, missing_reasons(metrics, timings))
    status, reason = verdict(checks, outcomes, build.allow_not_measured)
    return base.model_copy(
        update={
            "status": status if cell.error is None else "error",
            "reason": reason if cell.error is None else str(cell.error),
            "size_bytes": metrics.size_bytes,
            "weights_bytes": metrics.weights_bytes,
            "bits_per_weight": metrics.bits_per_weight,
            "structure": checks,
            "parity": parity,
            "latency": latency_report(timings, build.threads),
            "gates": gate_reports(outcomes),
            "not_measured": not_measured(metrics, timings),
        }
    )


def _notes(plan: ExportPlan) -> tuple[str, ...]:
    """Return what is stored otherwise than asked for: one line per reason."""
    by_reason: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        if tensor.note:
            by_reason.setdefault(tensor.note, []).append(tensor.name)
    return tuple(
        f"{names[0]}: {reason}" if len(names) == 1 else f"{len(names)} tensors, first {names[0]}: {reason}"
        for reason, names in by_reason.items()
    )


def _assemble(
    plan: Plan, checkpoint: Checkpoint, reference: Reference | None, session: Session, builds: tuple[BuildReport, ...]
) -> Report:
    return Report(
        checkpoint=describe_checkpoint(checkpoint, reference),
        tools=tool_versions(),
        host=describe_host(),
        targets=TargetsReport(name=plan.targets.name, sha256=plan.targets.document.sha256),
        pipeline=plan.pipeline.spec.name,
        corpus=CorpusReport(**reference.corpus) if reference else None,
        protocol=describe_protocol(session, reference, {build.threads for build in plan.builds}) if reference else None,
        builds=builds,
    )


def _exit_code(cell: Cell, build: BuildReport) -> ExitCode:
    """Return what one build contributes to the exit code."""
    match build.status:
        case "passed":
            return ExitCode.PASSED
        case "failed":
            return ExitCode.GATE_FAILED
        case "unsupported":
            return ExitCode.PASSED if cell.build.allow_unsupported else ExitCode.UNSUPPORTED
        case "error":
            return cell.error.exit_code if cell.error is not None else ExitCode.STEP_FAILED
