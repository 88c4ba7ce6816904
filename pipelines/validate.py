"""Judging one artifact of any origin, with the same steps and the same report as a build."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.errors import EdgekilnError, ExitCode
from edgekiln.files import require_utf8
from edgekiln.host import tool_versions
from edgekiln.pipelines.measure import Subject
from edgekiln.pipelines.session import (
    BASELINE_FORMAT,
    Outcome,
    Session,
    describe_checkpoint,
    describe_host,
    describe_protocol,
)
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.verdict import UNTIMED, Findings, Timings, judged
from edgekiln.steps import LocalStore
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.gates import TIMED, Gate, combine, default_gates
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.report import BuildReport, CorpusReport, Report
from edgekiln.validators.storage import main_type
from edgekiln.validators.validate import ArtifactMetrics, Reference


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
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch, _logs() as logs:
        session = Session(checkpoint, settings, LocalStore(Path(scratch)), logs, console)
        console.expect(4 + 2 * settings.repeats)
        reference = session.reference()
        with console.step(artifact.name, f"structure and parity in {RUNTIME_NAMES[kind.format]}"):
            metrics = session.validate("artifact", artifact, reference, session.threads)
        timings = _time(kind, session, reference, metrics)
        build = _judge(artifact, kind, limits, Findings(metrics, timings, (), session.threads, settings.max_spread))
        report = Report(
            checkpoint=describe_checkpoint(checkpoint, reference),
            tools=tool_versions(),
            host=describe_host(),
            corpus=CorpusReport(**reference.corpus),
            protocol=describe_protocol(session, reference, {session.threads}),
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


def _time(kind: ArtifactKind, session: Session, reference: Reference, metrics: ArtifactMetrics) -> Timings:
    """Time artifact and baselines, where the artifact ran at all."""
    if metrics.parity is None:
        return UNTIMED
    of_reference = session.time_reference(reference, session.threads)
    baseline = session.baseline(kind.format)
    subjects = {"artifact": Subject(kind.format, kind.path, session.log("artifact"))}
    if isinstance(baseline, Subject):
        subjects["fp16"] = baseline
    found = session.time(BASELINE_FORMAT[kind.format], subjects, reference, session.threads)
    return Timings(found["artifact"], of_reference, found["fp16"] if isinstance(baseline, Subject) else baseline)


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
