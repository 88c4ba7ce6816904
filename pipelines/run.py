"""Running a plan: the steps of every build, made where they are missing, then verdicts and the report.

A build that fails does not stop the others; what happened to each is in the report, and the gravest of it is the exit
code.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from edgekiln.artifact import write_atomically
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.console import Console
from edgekiln.engine import survey
from edgekiln.engine.step import Step
from edgekiln.errors import EdgekilnError, ExitCode, InterruptError, MachineError, worst
from edgekiln.files import require_utf8
from edgekiln.host import hardware_names, logical_cores, tool_versions
from edgekiln.memory import uncollected
from edgekiln.pipelines.cells import Cell, check_runtime, prepare
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions, engine_room
from edgekiln.pipelines.export import check_outside
from edgekiln.pipelines.graph import LATENCY_JSON, TIMED_JSON, TIMINGS, Conditions, Graph, read_metrics
from edgekiln.pipelines.identify import identify
from edgekiln.pipelines.measure import Timing
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.protocol import Outcome, describe_checkpoint, describe_host, describe_protocol
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.verdict import UNTIMED, Findings, Timings, elsewhere, judged, measured, stand_in_report
from edgekiln.pipelines.workspace import point_to, workspace
from edgekiln.validators.gates import TOO_NOISY
from edgekiln.validators.health import health_report
from edgekiln.validators.markdown import render_markdown
from edgekiln.validators.report import BuildReport, CorpusReport, Report, TargetsReport
from edgekiln.validators.validate import Expected, Reference, open_reference

REPORT: Final = "report.json"
REPORT_MARKDOWN: Final = "report.md"
LOGS: Final = "logs"


@dataclass(frozen=True)
class ArtifactSteps:
    """What is done with an artifact.

    Attributes:
        validate: Finds out all but its speed.
        latency: Times it.
        reference_latency: Times the reference with as many threads; None where nobody asked for it.
        baseline: Makes the fp16 artifact that it is compared with, or why there is none; None as before.
    """

    validate: Step
    latency: Step
    reference_latency: Step | None
    baseline: Step | EdgekilnError | None

    @property
    def measurements(self) -> list[Step]:
        """What a report needs."""
        return [self.validate, self.latency, *([self.reference_latency] if self.reference_latency else [])]


@dataclass(frozen=True)
class BuildSteps(ArtifactSteps):
    """The steps of one build.

    Attributes:
        export: Makes the artifact, perhaps for several builds.
        publish: Brings it to where this build's lies.
    """

    export: Step
    publish: Step


#: How steps ended.
Outcomes: TypeAlias = Mapping[Step, survey.Outcome]


def read_timings(steps: ArtifactSteps, outcomes: Outcomes) -> Timings:
    """Return the speeds of an artifact and of what it is compared with, or why they are missing."""
    timed = outcomes.get(steps.latency)
    if timed is None or (timed.path is None and timed.error is None):
        return UNTIMED
    reference = _reference_timing(outcomes.get(steps.reference_latency)) if steps.reference_latency else None
    if timed.path is None:
        return Timings(timed.error, reference, timed.error)  # its baseline is measured in turn with it
    found = TIMED_JSON.validate_json((timed.path / TIMINGS).read_bytes())
    return Timings(found.artifact, reference, found.fp16_artifact or _why_no_baseline(steps, outcomes))


def _reference_timing(outcome: survey.Outcome | None) -> Timing | None:
    if outcome is None or outcome.path is None:
        return None if outcome is None else outcome.error
    return LATENCY_JSON.validate_json((outcome.path / TIMINGS).read_bytes())


def _why_no_baseline(steps: ArtifactSteps, outcomes: Outcomes) -> EdgekilnError | None:
    if not isinstance(steps.baseline, Step):
        return steps.baseline
    outcome = outcomes.get(steps.baseline)
    return None if outcome is None else outcome.error


def run_plan(plan: Plan, console: Console, options: RunOptions = RunOptions()) -> Outcome:  # noqa: B008 - frozen
    """Make, run and judge every build of a plan, and write the report.

    Raises:
        UsageError: The checkpoint or a scheme is impossible; nothing was written.
        MachineError: The output folder cannot be used.
        KeyboardInterrupt: The user interrupted; the report says what was done until then.
    """
    settings = plan.settings.values
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline, listener=console)
    check_outside(settings.out, checkpoint)
    require_utf8(checkpoint.directory, "rename a folder of it")
    with uncollected():
        cells = prepare(plan, checkpoint)
        for cell in cells:
            _refuse_runtime(cell)
    logs = settings.out / LOGS
    with (
        workspace(settings.out) as scratch,
        engine_room(settings, options, scratch, lambda step: logs / f"{step.name}.log", console) as room,
    ):
        # What an earlier run said must not be taken for this one's, should this one end early.
        for stale in (settings.out / REPORT, settings.out / REPORT_MARKDOWN):
            stale.unlink(missing_ok=True)
        run = _Run(plan, cells, checkpoint, room, scratch)
        try:
            run.make()
        except KeyboardInterrupt:
            run.report()
            raise
        return run.report()


def _refuse_runtime(cell: Cell) -> None:
    """Stop a build that nothing here could judge, before an hour goes into the reference."""
    try:
        if cell.alive:
            check_runtime(cell.build)
    except MachineError as error:
        cell.error = error


def threads_here(build: Build) -> int:
    """Return the target's threads, or as many as this machine has: more would only wait for each other."""
    return min(build.threads, _cores())


@functools.cache
def _cores() -> int:
    """Return the cores of this machine; control groups are a dozen files, and every build asks several times."""
    return logical_cores()


@functools.cache
def _hardware() -> str:
    """Return the names of this machine, which lie in several files as well."""
    return hardware_names()


def make_steps(cells: Sequence[Cell], graph: Graph, out: Path, scratch: Path) -> dict[str, BuildSteps]:
    """Return the steps of every build that can be made, by its id.

    Args:
        cells: The builds.
        graph: Makes the steps.
        out: Where artifacts that are kept go.
        scratch: Where the others go until the run ends.
    """
    found: dict[str, BuildSteps] = {}
    for cell in cells:
        if cell.plan is None or not cell.alive:
            continue
        build, threads = cell.build, threads_here(cell.build)
        export = graph.export(build.id, cell.plan, build.requested)
        publish = graph.publish(build.id, export, out if build.keep else scratch / "unkept")
        runtime = build.target.runtime
        expected = Expected(
            build.precision,
            runtime.name,
            runtime.version,
            build.device.execution_provider,
            graph.settings.profile == "quick",
        )
        validate = graph.validate(build.id, build.format, publish, threads, expected)
        baseline = graph.baseline(build.id, build.format, build.device)
        found[build.id] = BuildSteps(
            export=export,
            publish=publish,
            validate=validate,
            latency=graph.latency(
                build.id,
                build.format,
                publish,
                validate,
                baseline,
                Conditions(build.device, threads, build.target.batch_sizes),
            ),
            reference_latency=graph.reference_latency(threads),
            baseline=baseline,
        )
    return found


def goals_of(cells: Sequence[Cell], steps: Mapping[str, BuildSteps]) -> list[Step]:
    """Return what a run is to have made at its end."""
    goals: list[Step] = []
    for cell in cells:
        if (found := steps.get(cell.build.id)) is not None:
            goals += [found.publish] if cell.build.keep else []
            goals += found.measurements
    return list(dict.fromkeys(goals))


class _Run:
    """One run of a plan: makes its steps, then says what came of them."""

    def __init__(self, plan: Plan, cells: list[Cell], checkpoint: Checkpoint, room: EngineRoom, scratch: Path) -> None:
        self._plan, self._cells, self._room, self._scratch = plan, cells, room, scratch
        self._settings = plan.settings.values
        self._checkpoint = checkpoint
        self._graph: Graph | None = None
        self._steps: dict[str, BuildSteps] = {}
        self._outcomes: Outcomes = {}

    def make(self) -> None:
        """Make every step that is missing."""
        if not any(cell.alive for cell in self._cells):
            return
        identified = identify(self._checkpoint, self._room.memory)
        self._checkpoint = identified.checkpoint
        with uncollected():
            self._graph = Graph(identified, self._settings, self._room.memory)
            self._steps = make_steps(self._cells, self._graph, self._settings.out, self._scratch)
        goals = goals_of(self._cells, self._steps)
        self._room.announce(goals)
        try:
            self._room.engine.run(goals)
        finally:
            self._outcomes = self._room.engine.outcomes()
        self._tidy()

    def _tidy(self) -> None:
        """Point `latest` to what was built, and let go of artifacts that need not stay."""
        kept = {
            self._steps[cell.build.id].export
            for cell in self._cells
            if cell.build.id in self._steps and cell.build.keep
        }
        for cell in self._cells:
            if (steps := self._steps.get(cell.build.id)) is None:
                continue
            path = self._path(steps.publish)
            if cell.build.keep and path is not None:
                point_to(path)
            outcome = self._outcomes.get(steps.export)
            if steps.export not in kept and outcome is not None and outcome.record is not None:
                self._room.store.drop_files(outcome.record.key)

    def _path(self, step: Step) -> Path | None:
        outcome = self._outcomes.get(step)
        return None if outcome is None else outcome.path

    def report(self) -> Outcome:
        """Judge every build, write the report, and return it with the exit code."""
        reference = self._reference()
        with uncollected():
            described = [self._describe(cell) for cell in self._cells]
            others = measured_builds(described)
            builds = tuple(self._judge(cell, each, others) for cell, each in zip(self._cells, described, strict=True))
            report = self._assemble(reference, builds)
            write_atomically(self._settings.out / REPORT, report.to_json())
            write_atomically(self._settings.out / REPORT_MARKDOWN, render_markdown(report))
        codes = (_exit_code(cell, build) for cell, build in zip(self._cells, builds, strict=True))
        return Outcome(report, worst(codes))

    def _reference(self) -> Reference | None:
        """Return the reference, if anything needed it or it was made before."""
        if self._graph is None:
            return None
        step = self._graph.reference
        path = self._path(step)
        if path is None and (record := self._room.engine.survey.record(step)) is not None:
            path = self._room.store.open(record)
        return None if path is None else open_reference(path, self._checkpoint)

    def _describe(self, cell: Cell) -> Described:
        """Take what the steps of a build found."""
        timings = UNTIMED
        steps = self._steps.get(cell.build.id)
        if steps is not None:
            self._collect(cell, steps)
            timings = read_timings(steps, self._outcomes)
        elif cell.alive:
            cell.error = InterruptError("the run was interrupted before it began")
        return _described(cell, timings, self._settings, self._cached(steps))

    def _judge(self, cell: Cell, described: Described, others: Mapping[str, BuildReport | str]) -> BuildReport:
        """Judge one build, where gates may compare it with others."""
        report, findings = described.base, described.findings
        if findings is None:
            return report.model_copy(update={"health": health_report(report)})
        report = judged(report, replace(findings, others=others))
        steps = self._steps.get(cell.build.id)
        if steps is not None and any(gate.reason and gate.reason.startswith(TOO_NOISY) for gate in report.gates):
            self._forget(steps.latency)
        return report

    def _forget(self, step: Step) -> None:
        """Measure anew next time: noise has left a gate open."""
        outcome = self._outcomes.get(step)
        if outcome is not None and outcome.record is not None:
            self._room.store.remove(outcome.record.key)

    def _collect(self, cell: Cell, steps: BuildSteps) -> None:
        for step in (steps.export, steps.publish, steps.validate):
            outcome = self._outcomes.get(step)
            if cell.error is None and outcome is not None:
                cell.error = outcome.error
        export, validate = self._outcomes.get(steps.export), self._outcomes.get(steps.validate)
        cell.export_seconds = None if export is None else export.seconds
        cell.artifact = self._path(steps.publish) if cell.build.keep else None
        if validate is not None and validate.path is not None:
            cell.metrics = read_metrics(validate.path)
        elif cell.error is None:
            cell.error = MachineError("the run ended before it was judged")

    def _cached(self, steps: BuildSteps | None) -> tuple[str, ...]:
        """Return the kinds of steps whose results were there before this run."""
        if steps is None:
            return ()
        each = (steps.export, steps.validate, steps.latency)
        found = {step.kind: self._outcomes.get(step) for step in each}
        return tuple(kind for kind, outcome in found.items() if outcome is not None and outcome.ending == "hit")

    def _assemble(self, reference: Reference | None, builds: tuple[BuildReport, ...]) -> Report:
        plan = self._plan
        threads = {threads_here(build) for build in plan.builds}
        return Report(
            checkpoint=describe_checkpoint(self._checkpoint, reference),
            tools=tool_versions(),
            host=describe_host(),
            targets=TargetsReport(name=plan.targets.name, sha256=plan.targets.document.sha256),
            pipeline=plan.pipeline.spec.name,
            corpus=CorpusReport(**reference.corpus) if reference else None,
            protocol=describe_protocol(self._settings, reference, threads) if reference else None,
            builds=builds,
        )


@dataclass(frozen=True)
class Described:
    """All that is known of one build before any is judged.

    Attributes:
        base: What is known without a measurement.
        findings: The measurements; None where there are none.
    """

    base: BuildReport
    findings: Findings | None


def measured_builds(described: Iterable[Described]) -> dict[str, BuildReport | str]:
    """Return what was measured of each build that a gate of another names, by id, or why nothing was."""
    known = tuple(described)
    named = {gate.relative_to for each in known if each.findings for gate in each.findings.gates}
    return {
        each.base.id: measured(each.base, each.findings)
        if each.findings is not None
        else f"nothing was measured of {each.base.id}: {each.base.reason}"
        for each in known
        if each.base.id in named
    }


def _described(cell: Cell, timings: Timings, settings: Settings, cached: tuple[str, ...]) -> Described:
    """Describe one build, and say what it is judged by."""
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
        log=_log(build, settings),
        cached=cached,
    )
    if cell.metrics is None:
        return Described(base, None)
    if cell.error is None and isinstance(timings.artifact, EdgekilnError):
        cell.error = timings.artifact
    findings = Findings(
        metrics=cell.metrics,
        timings=timings,
        gates=build.gates,
        threads=threads_here(build),
        max_spread=settings.max_spread,
        allow_not_measured=build.allow_not_measured,
        error=cell.error,
        elsewhere=elsewhere(build.target, platform.machine(), _hardware()),
    )
    return Described(base, findings)


def _log(build: Build, settings: Settings) -> str | None:
    """Return the log of a build's last step that wrote one."""
    for kind in ("latency", "validate", "export"):
        path = settings.out / LOGS / f"{build.id}.{kind}.log"
        if path.exists() and path.stat().st_size:
            return path.relative_to(settings.out).as_posix()
    return None


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
    notes += cell.plan.notes
    if (threads := threads_here(cell.build)) < cell.build.threads:
        notes.append(f"run with {threads} threads instead of {cell.build.threads}: this machine has no more")
    return tuple(notes)


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
