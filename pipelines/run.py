"""Running a plan: reference, exports, validation, latency, verdicts, report.

Every piece of work is a step in a store, but latency, which is measured anew and alone. A build that fails does not
stop the others; what happened to each is in the report, and the gravest of it is the exit code.
"""

from __future__ import annotations

import platform
import time
import traceback
from pathlib import Path
from typing import Final, TypeAlias

from edgekiln.artifact import write_atomically
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.console import Console
from edgekiln.device import Device
from edgekiln.errors import BugError, EdgekilnError, ExitCode, MachineError, worst
from edgekiln.files import require_utf8
from edgekiln.host import hardware_names, logical_cores, tool_versions
from edgekiln.pipelines.cells import Cell, check_runtime, prepare
from edgekiln.pipelines.export import check_outside
from edgekiln.pipelines.measure import Subject, Timing
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.session import (
    BASELINE_FORMAT,
    Outcome,
    Session,
    describe_checkpoint,
    describe_host,
    describe_protocol,
)
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.verdict import UNTIMED, Findings, Timings, elsewhere, judged, stand_in_report
from edgekiln.pipelines.workspace import workspace
from edgekiln.redact import redact
from edgekiln.steps import LocalStore
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.health import health_report
from edgekiln.validators.kinds import identify
from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import (
    BuildReport,
    CorpusReport,
    Report,
    TargetsReport,
)
from edgekiln.validators.validate import Reference

REPORT: Final = "report.json"
REPORT_MARKDOWN: Final = "report.md"


def run_plan(plan: Plan, console: Console) -> Outcome:
    """Make, run and judge every build of a plan, and write the report.

    Raises:
        UsageError: The checkpoint or a scheme is impossible; nothing was written.
        MachineError: The output folder cannot be used.
    """
    settings = plan.settings.values
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline, listener=console)
    check_outside(settings.out, checkpoint)
    require_utf8(checkpoint.directory, "rename a folder of it")
    cells = prepare(plan, checkpoint)
    for cell in cells:
        _refuse_runtime(cell)
    with workspace(settings.out) as scratch:
        logs = settings.out / "logs"
        # What an earlier run said must not be taken for this one's, should this one end early.
        for stale in (settings.out / REPORT, settings.out / REPORT_MARKDOWN, *logs.glob("*.log")):
            stale.unlink(missing_ok=True)
        session = Session(checkpoint, settings, LocalStore(scratch), logs, console)
        living = [cell for cell in cells if cell.alive]
        groups = {_group(cell) for cell in living}
        console.expect(2 * len(living) + (1 + settings.repeats if living else 0) + len(groups) * (1 + settings.repeats))
        reference = _run_reference(session, living)
        for cell in living:
            _make(cell, session, reference)
        timings = _time_all(living, session, reference)
        builds = tuple(_report(cell, timings.get(cell.build.id, UNTIMED), settings) for cell in cells)
        report = _assemble(plan, checkpoint, reference, session, builds)
        write_atomically(settings.out / REPORT, report.to_json())
        write_atomically(settings.out / REPORT_MARKDOWN, render_markdown(report))
    return Outcome(report, worst(_exit_code(cell, build) for cell, build in zip(cells, builds, strict=True)))


def _refuse_runtime(cell: Cell) -> None:
    """Stop a build that nothing here could judge, before an hour goes into the reference."""
    try:
        if cell.alive:
            check_runtime(cell.build)
    except MachineError as error:
        cell.error = error


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
        begin = time.monotonic()
        with session.console.step(build.id, f"exporting {cell.plan.container_type}"):
            cell.artifact, cell.manifest = session.export(cell.plan, build.requested, publish_as=build.id)
        cell.export_seconds = time.monotonic() - begin
        with session.console.step(build.id, f"structure and parity in {RUNTIME_NAMES[build.format]}"):
            cell.metrics = session.validate(build.id, cell.artifact, reference, _threads(build))
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs one build, not the report of the others
        cell.error = _as_error(error, session.log(build.id))
        session.console.say(f"{build.id}: {cell.error}")


def _as_error(error: Exception, log: Path) -> EdgekilnError:
    """Return what stopped a build as an error of ours: a fault of the machine, or a mistake of Edgekiln's."""
    if isinstance(error, EdgekilnError):
        return error
    return MachineError(str(error)) if isinstance(error, OSError) else _bug(error, log)


def _bug(error: Exception, log: Path) -> BugError:
    """Return what to say of an exception that nobody should have let pass; the traceback goes to the build's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(redact("".join(traceback.format_exception(error))))
    return BugError(redact(f"a bug in Edgekiln: {type(error).__name__}: {error}; please file it with {log}"))


#: What is timed in turn: it shares a container, its threads and the device that it was made for.
_Group: TypeAlias = tuple[str, int, Device]


def _threads(build: Build) -> int:
    """Return the target's threads, or as many as this machine has: more would only wait for each other."""
    return min(build.threads, logical_cores())


def _group(cell: Cell) -> _Group:
    build = cell.build
    return BASELINE_FORMAT[build.format], _threads(build), build.device


def _time_all(living: list[Cell], session: Session, reference: Reference | None) -> dict[str, Timings]:
    """Time everything that ran, grouped so that what is compared alternates."""
    ready = [cell for cell in living if cell.alive and cell.metrics is not None and cell.metrics.parity is not None]
    if reference is None:
        return {}
    groups: dict[_Group, list[Cell]] = {}
    for cell in ready:
        groups.setdefault(_group(cell), []).append(cell)
    of_reference: dict[int, Timing] = {}
    timings: dict[str, Timings] = {}
    for group, cells in groups.items():
        threads = group[1]
        try:
            if threads not in of_reference:
                of_reference[threads] = session.time_reference(reference, threads)
            found, fp16 = _time_group(group, cells, session, reference)
            timings |= {c.build.id: Timings(found[c.build.id], of_reference[threads], fp16) for c in cells}
        except Exception as error:  # noqa: BLE001 - as above: what was exported and compared is reported all the same
            failed = _as_error(error, session.log("latency"))
            timings |= {cell.build.id: Timings(failed, None, None) for cell in cells}
    return timings


def _time_group(
    group: _Group, cells: list[Cell], session: Session, reference: Reference
) -> tuple[dict[str, Timing], Timing | None]:
    """Return the timing of each build of a group by its id, and that of their fp16 baseline."""
    container, threads, device = group
    baseline = session.baseline(container, device)
    subjects = {
        cell.build.id: Subject(cell.build.format, identify(cell.artifact).path, session.log(cell.build.id))
        for cell in cells
        if cell.artifact is not None
    }
    if isinstance(baseline, Subject):
        subjects["fp16"] = baseline
    found = session.time(container, subjects, reference, threads)
    return found, found.get("fp16", baseline if isinstance(baseline, EdgekilnError) else None)


def _report(cell: Cell, timings: Timings, settings: Settings) -> BuildReport:
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
        artifact=cell.artifact.relative_to(settings.out).as_posix() if cell.artifact else None,
        export_seconds=cell.export_seconds,
        notes=_notes(cell),
        stand_in=stand_in_report(build.target),
        log=f"logs/{build.id}.log" if (settings.out / "logs" / f"{build.id}.log").exists() else None,
    )
    if cell.metrics is None:
        return base.model_copy(update={"health": health_report(base)})
    if cell.error is None and isinstance(timings.artifact, EdgekilnError):
        cell.error = timings.artifact
    findings = Findings(
        metrics=cell.metrics,
        timings=timings,
        gates=build.gates,
        threads=_threads(build),
        max_spread=settings.max_spread,
        allow_not_measured=build.allow_not_measured,
        error=cell.error,
        elsewhere=elsewhere(build.target, platform.machine(), hardware_names()),
    )
    return judged(base, findings)


def _notes(cell: Cell) -> tuple[str, ...]:
    """Return what was done otherwise than asked for: one line per reason."""
    if cell.plan is None:
        return ()
    by_reason: dict[str, list[str]] = {}
    for tensor in cell.plan.tensors:
        if tensor.note:
            by_reason.setdefault(tensor.note, []).append(tensor.name)
    notes = [
        f"{names[0]}: {reason}" if len(names) == 1 else f"{len(names)} tensors, first {names[0]}: {reason}"
        for reason, names in by_reason.items()
    ]
    if (threads := _threads(cell.build)) < cell.build.threads:
        notes.append(f"run with {threads} threads instead of {cell.build.threads}: this machine has no more")
    return tuple(notes)


def _assemble(
    plan: Plan, checkpoint: Checkpoint, reference: Reference | None, session: Session, builds: tuple[BuildReport, ...]
) -> Report:
    threads = {_threads(build) for build in plan.builds}
    return Report(
        checkpoint=describe_checkpoint(checkpoint, reference),
        tools=tool_versions(),
        host=describe_host(),
        targets=TargetsReport(name=plan.targets.name, sha256=plan.targets.document.sha256),
        pipeline=plan.pipeline.spec.name,
        corpus=CorpusReport(**reference.corpus) if reference else None,
        protocol=describe_protocol(session, reference, threads) if reference else None,
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
