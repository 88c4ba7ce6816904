"""Judging one artifact of any origin, with the same steps and the same report as a build.

What the reference and the baseline give comes from the cache where it is there; the artifact itself is measured anew,
since that is what was asked for.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.device import ANY_CPU
from edgekiln.engine import survey
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.record import content_digest
from edgekiln.errors import EdgekilnError, ExitCode, StepError
from edgekiln.files import require_utf8
from edgekiln.host import physical_cores, tool_versions
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions, engine_room
from edgekiln.pipelines.graph import Given, Graph, read_metrics
from edgekiln.pipelines.identify import identify as identify_checkpoint
from edgekiln.pipelines.protocol import Outcome, describe_checkpoint, describe_host, describe_protocol
from edgekiln.pipelines.run import ArtifactSteps, read_timings
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.verdict import Findings, judged
from edgekiln.validators.gates import TIMED, Gate, combine, default_gates
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.report import BuildReport, CorpusReport, Report
from edgekiln.validators.storage import main_type
from edgekiln.validators.validate import open_reference

#: What its steps are called.
_NAME: Final = "artifact"


def run_validation(artifact: Path, settings: Settings, limits: tuple[Gate, ...], console: Console) -> Outcome:
    """Measure and judge one artifact.

    Args:
        artifact: A GGUF file, or a directory that ORT GenAI or Foundry Local loads.
        settings: `checkpoint` is the reference; `out` is not used, since nothing is kept.
        limits: Gates of the user's; each replaces the default for the same metric.
        console: Shows the steps.

    Raises:
        ArtifactError: There is no artifact there.
        UnsupportedError: It is of no known kind, or the reference of no known family.
    """
    kind = identify(artifact)
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline, listener=console)
    require_utf8(checkpoint.directory, "rename a folder of it")
    require_utf8(artifact, "rename it")
    threads = settings.threads or physical_cores()
    with (
        tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch,
        _logs() as logs,
        engine_room(
            settings, RunOptions(from_kind="validate"), Path(scratch), lambda step: logs / f"{step.name}.log", console
        ) as room,
    ):
        identified = identify_checkpoint(checkpoint, room.memory)
        graph = Graph(identified, settings, room.memory)
        steps = _steps(graph, artifact, kind, room, threads)
        goals = [steps.validate, steps.latency, steps.reference_latency]
        room.announce(goals)
        outcomes = room.engine.run(goals)
        metrics = read_metrics(_require(outcomes.get(steps.validate)))
        reference = open_reference(_require(outcomes.get(graph.reference)), identified.checkpoint)
        timings = read_timings(steps, outcomes)
        findings = Findings(metrics, timings, (), threads, settings.max_spread)
        build = _judge(artifact, kind, limits, findings)
        report = Report(
            checkpoint=describe_checkpoint(identified.checkpoint, reference),
            tools=tool_versions(),
            host=describe_host(),
            corpus=CorpusReport(**reference.corpus),
            protocol=describe_protocol(settings, reference, {threads}),
            builds=(build,),
        )
    if build.status == "error":
        failed = timings.artifact
        return Outcome(report, failed.exit_code if isinstance(failed, EdgekilnError) else ExitCode.STEP_FAILED)
    return Outcome(report, ExitCode.PASSED if build.status == "passed" else ExitCode.GATE_FAILED)


@contextmanager
def _logs() -> Iterator[Path]:
    """Yield a directory for logs, which is removed unless an error leaves the block: that names the log."""
    logs = Path(tempfile.mkdtemp(prefix="edgekiln-logs-"))
    yield logs
    shutil.rmtree(logs, ignore_errors=True)


def _steps(graph: Graph, artifact: Path, kind: ArtifactKind, room: EngineRoom, threads: int) -> ArtifactSteps:
    """Return what is to be done with the artifact."""
    given = Given(artifact, _digest(artifact, room.memory))
    validate = graph.validate(_NAME, kind.format, given, threads)
    baseline = graph.baseline(_NAME, kind.format)
    return ArtifactSteps(
        validate=validate,
        latency=graph.latency(_NAME, kind.format, given, validate, baseline, ANY_CPU, threads),
        reference_latency=graph.reference_latency(threads),
        baseline=baseline,
    )


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


def _judge(artifact: Path, kind: ArtifactKind, limits: tuple[Gate, ...], findings: Findings) -> BuildReport:
    """Judge by the user's gates over the defaults of the precision that most weights have."""
    types = findings.metrics.weights_by_type
    precision = main_type(types)
    defaults = [gate for gate in default_gates(precision) if gate.metric not in TIMED] if precision else []
    base = BuildReport(
        id=artifact.name,
        target=None,
        format=kind.format,
        requested=None,
        precision=precision,
        container_type=", ".join(f"{name} {count:,}" for name, count in types.items()) or None,
        status="error",
        reason=None,
    )
    return judged(base, replace(findings, gates=combine(defaults, limits)))
