"""Judging one artifact of any origin, with the same steps and the same report as a build.

What the reference and the baseline give comes from the cache where it is there; the artifact itself is measured anew,
since that is what was asked for.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.device import ANY_CPU
from edgekiln.engine import survey
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.record import content_digest
from edgekiln.errors import EdgekilnError, ExitCode, StepError, UnsupportedError
from edgekiln.files import require_utf8
from edgekiln.host import hardware_names, logical_cores, physical_cores, tool_versions
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions, engine_room
from edgekiln.pipelines.graph import Conditions, Given, Graph, read_metrics
from edgekiln.pipelines.identify import identify as identify_checkpoint
from edgekiln.pipelines.plan import settle
from edgekiln.pipelines.protocol import Outcome, describe_checkpoint, describe_host, describe_protocol
from edgekiln.pipelines.run import ArtifactSteps, read_timings
from edgekiln.pipelines.settings import Settings, assignments_layer, environment_layer, flags_layer, resolve_settings
from edgekiln.pipelines.targets import Target
from edgekiln.pipelines.verdict import Elsewhere, Findings, Timings, elsewhere, judged, stand_in_report
from edgekiln.validators.gates import TIMED, Gate, combine, default_gates, parse_gate
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.report import BuildReport, CorpusReport, Report
from edgekiln.validators.storage import main_type
from edgekiln.validators.validate import Expected, open_reference

#: What its steps are called.
_NAME: Final = "artifact"
_NO_BASELINE: Final = "the quick profile times no baseline; use --profile full"


@dataclass(frozen=True)
class Question:
    """What is asked about an artifact.

    Attributes:
        artifact: A GGUF file, or a directory that ORT GenAI or Foundry Local loads.
        target: The device whose runtime, threads and gates count; None for this machine, without gates on speed.
        limits: Gates of the user's; each replaces the default, or the target's, for the same metric.
    """

    artifact: Path
    target: Target | None = None
    limits: tuple[Gate, ...] = ()


def ask(
    artifact: Path,
    target: str | None,
    gates: Iterable[str],
    assignments: Iterable[str],
    flags: Mapping[str, object],
    environment: Mapping[str, str],
) -> tuple[Question, Settings]:
    """Return what the command line asks, and the settings; without a target no targets file is read.

    Args:
        artifact: The file or directory.
        target: Name of a target.
        gates: Limits as texts.
        assignments: `KEY=VALUE` texts of `--set`.
        flags: Settings given as flags; None for those that were not.
        environment: The process's environment.

    Raises:
        UsageError: A gate, a setting or a name is wrong.
    """
    limits = tuple(parse_gate(text) for text in gates)
    layers = environment_layer(environment), assignments_layer(assignments), flags_layer(flags)
    if target is None:
        return Question(artifact, None, limits), resolve_settings(*layers).values
    targets, settings = settle(*layers)
    return Question(artifact, targets.get(target), limits), settings.values


def run_validation(question: Question, settings: Settings, console: Console) -> Outcome:
    """Measure and judge one artifact.

    Args:
        question: The artifact, and what it is judged by.
        settings: `checkpoint` is the reference; `out` is not used, since nothing is kept.
        console: Shows the steps.

    Raises:
        ArtifactError: There is no artifact there.
        UnsupportedError: It is of no known kind, the reference of no known family, or the target loads another format.
    """
    artifact, kind = question.artifact, identify(question.artifact)
    _check_target(question, kind)
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline, listener=console)
    require_utf8(checkpoint.directory, "rename a folder of it")
    require_utf8(artifact, "rename it")
    threads = _threads(question.target, settings)
    with (
        tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch,
        _logs() as logs,
        engine_room(
            settings, RunOptions(from_kind="validate"), Path(scratch), lambda step: logs / f"{step.name}.log", console
        ) as room,
    ):
        identified = identify_checkpoint(checkpoint, room.memory)
        graph = Graph(identified, settings, room.memory)
        steps = _steps(graph, question, kind, room, threads)
        goals = steps.measurements
        room.announce(goals)
        outcomes = room.engine.run(goals)
        metrics = read_metrics(_require(outcomes.get(steps.validate)))
        reference = open_reference(_require(outcomes.get(graph.reference)), identified.checkpoint)
        timings = read_timings(steps, outcomes)
        findings = Findings(metrics, timings, (), threads, settings.max_spread)
        build = _judge(question, kind, settings, findings)
        report = Report(
            checkpoint=describe_checkpoint(identified.checkpoint, reference),
            tools=tool_versions(),
            host=describe_host(),
            corpus=CorpusReport(**reference.corpus),
            protocol=describe_protocol(settings, reference, {threads}),
            builds=(build,),
        )
    return Outcome(report, _exit_code(build, timings))


@contextmanager
def _logs() -> Iterator[Path]:
    """Yield a directory for logs, which is removed unless an error leaves the block: that names the log."""
    logs = Path(tempfile.mkdtemp(prefix="edgekiln-logs-"))
    yield logs
    shutil.rmtree(logs, ignore_errors=True)


def _check_target(question: Question, kind: ArtifactKind) -> None:
    """Refuse a target that loads something else.

    Raises:
        UnsupportedError: Names both formats.
    """
    target = question.target
    if target is not None and target.format != kind.format:
        raise UnsupportedError(
            f"{question.artifact} is {kind.format}, but the target {target.name} loads {target.format}; "
            "name another target, or none to judge it by the runtime of this machine"
        )


def _threads(target: Target | None, settings: Settings) -> int:
    """Return the threads of the runtimes: as the user says, else as the target, never more than there are cores."""
    wanted = settings.threads or (target.threads if target is not None else None) or physical_cores()
    return min(wanted, logical_cores())


def _steps(graph: Graph, question: Question, kind: ArtifactKind, room: EngineRoom, threads: int) -> ArtifactSteps:
    """Return what is to be done with the artifact; a quick look does without anything to compare its speed with."""
    given, target = Given(question.artifact, _digest(question.artifact, room.memory)), question.target
    device = target.device if target is not None else ANY_CPU
    batches = target.batch_sizes if target is not None else ()
    quick = graph.settings.profile == "quick"
    validate = graph.validate(_NAME, kind.format, given, threads, _expected(target, quick=quick))
    baseline = None if quick else graph.baseline(_NAME, kind.format, device)
    return ArtifactSteps(
        validate=validate,
        latency=graph.latency(_NAME, kind.format, given, validate, baseline, Conditions(device, threads, batches)),
        reference_latency=None if quick else graph.reference_latency(threads),
        baseline=baseline,
    )


def _expected(target: Target | None, *, quick: bool) -> Expected:
    if target is None:
        return Expected(sampled=quick)
    return Expected(None, target.runtime.name, target.runtime.version, target.execution_provider, quick)


def _digest(artifact: Path, memory: HashMemory) -> str:
    """Return the digest of an artifact's content."""
    files = [artifact] if artifact.is_file() else sorted(path for path in artifact.rglob("*") if path.is_file())
    digests = memory.digests(files)
    names = (path.relative_to(artifact).as_posix() if path != artifact else path.name for path in files)
    return content_digest(dict(zip(names, digests, strict=True)))


def _require(outcome: survey.Outcome | None) -> Path:
    """Return the files of a step.

    Raises:
        EdgekilnError: What stopped it.
    """
    if outcome is not None and outcome.path is not None:
        return outcome.path
    raise (outcome.error if outcome is not None and outcome.error is not None else StepError("it was not made"))


def _judge(question: Question, kind: ArtifactKind, settings: Settings, findings: Findings) -> BuildReport:
    """Judge by the user's gates over the target's, and those over the defaults of the precision that it has."""
    types, target = findings.metrics.weights_by_type, question.target
    precision = main_type(types)
    defaults = default_gates(precision) if precision else ()
    if target is None:
        defaults = tuple(gate for gate in defaults if gate.metric not in TIMED)
    of_target = [replace(gate, why=f"limit of target {target.name}") for gate in target.gates] if target else []
    base = BuildReport(
        id=question.artifact.name,
        target=None if target is None else target.name,
        format=kind.format,
        requested=None,
        precision=precision,
        container_type=", ".join(f"{name} {count:,}" for name, count in types.items()) or None,
        status="error",
        reason=None,
        stand_in=None if target is None else stand_in_report(target),
    )
    gates = combine(defaults, of_target, question.limits)
    return judged(base, replace(findings, gates=gates, elsewhere=_elsewhere(target, settings)))


def _elsewhere(target: Target | None, settings: Settings) -> Elsewhere | None:
    """Return what cannot be judged here."""
    found = None if target is None else elsewhere(target, platform.machine(), hardware_names())
    if settings.profile != "quick":
        return found
    return Elsewhere(None if found is None else found.absolute, _NO_BASELINE)


#: Findings of a structural check that say that the artifact is damaged rather than another model.
_DAMAGE: Final = ("gguf/header", "gguf/offsets", "files/", "onnx/", "parity/run")


def _exit_code(build: BuildReport, timings: Timings) -> ExitCode:
    """Return 4 where the artifact could not be read or run, 1 where it was judged and failed, else 0."""
    if build.status == "error":
        failed = timings.artifact
        return failed.exit_code if isinstance(failed, EdgekilnError) else ExitCode.STEP_FAILED
    found = [finding.id for check in build.structure for finding in check.findings if finding.severity == "error"]
    if any(name.startswith(_DAMAGE) for name in found):
        return ExitCode.STEP_FAILED
    return ExitCode.PASSED if build.status == "passed" else ExitCode.GATE_FAILED
