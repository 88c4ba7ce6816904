"""What all builds of one checkpoint share: settings, protocol, reference, baselines, store and logs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import TypeAdapter

from edgekiln.artifact import MANIFEST, Manifest
from edgekiln.checkpoint import Checkpoint
from edgekiln.console import Console
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import EdgekilnError, ExitCode, UsageError
from edgekiln.exporters.base import ExportPlan
from edgekiln.host import hardware_names, logical_cores, memory_bytes, physical_cores
from edgekiln.pipelines.export import plan_export, write_artifact
from edgekiln.pipelines.measure import Rounds, Subject, Timing, time_alternating
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.workspace import publish
from edgekiln.process import Limits
from edgekiln.scheme import Scheme
from edgekiln.steps import Step, Store
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.corpus import read_corpus
from edgekiln.validators.kinds import identify
from edgekiln.validators.report import CheckpointReport, HostReport, ProtocolReport, Report
from edgekiln.validators.validate import ArtifactMetrics, Reference, make_reference, open_reference, validate_artifact

_METRICS: Final = "metrics.json"
#: Room for a templated chat prompt before its greedy reply.
_PROMPT_TOKENS: Final = 480
_REFERENCE: Final = "Transformers on the fp16-rounded weights, computed in float32 on the CPU"
#: The container whose fp16 artifact is the fair baseline of a format.
BASELINE_FORMAT: Final[Mapping[str, str]] = MappingProxyType({"onnx": "onnx", "foundry-local": "onnx", "gguf": "gguf"})


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    report: Report
    exit_code: ExitCode


def make_protocol(settings: Settings, threads: int) -> MeasurementProtocol:
    """Return how things are measured under these settings; each repeat of latency is a process of its own."""
    return MeasurementProtocol(
        window=settings.window,
        windows=settings.windows,
        greedy_tokens=settings.greedy_tokens,
        prefill_tokens=settings.prefill_tokens,
        decode_tokens=settings.decode_tokens,
        warmups=settings.warmups,
        repeats=1,
        processes=settings.repeats,
        threads=threads,
        context=max(
            settings.window,
            max(settings.prefill_tokens) + 1,
            max(settings.decode_tokens) + 1,
            settings.greedy_tokens + _PROMPT_TOKENS,
        ),
    )


def check_context(protocol: MeasurementProtocol, checkpoint: Checkpoint) -> None:
    """Refuse a measurement that is longer than the model's context.

    Raises:
        UsageError: Names the settings to lower.
    """
    limit = checkpoint.config.max_position_embeddings
    if protocol.context > limit:
        raise UsageError(
            f"the measurement needs a context of {protocol.context} tokens, but {checkpoint.source} has {limit}; "
            "lower window, prefill_tokens, decode_tokens or greedy_tokens"
        )


class Session:
    """What all builds of one checkpoint share: settings, reference, store, logs."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, store: Store, logs: Path, console: Console) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.store = store
        self.logs = logs
        self.console = console
        # A child that outgrows the machine is ended before the machine is.
        self.limits = Limits(seconds=settings.step_timeout_seconds, memory_bytes=memory_bytes())
        self.threads = settings.threads or physical_cores()
        self.protocol = make_protocol(settings, self.threads)
        check_context(self.protocol, checkpoint)
        self._published: dict[str, Path] = {}

    def log(self, name: str) -> Path:
        """Return the log file of a build or of the reference."""
        return self.logs / f"{name}.log"

    def reference(self) -> Reference:
        """Return the reference's results, running it once."""
        corpus = read_corpus(self.settings.corpus)
        parameters = {**dataclasses.asdict(self.protocol), "corpus": corpus.sha256}

        def run(directory: Path) -> None:
            make_reference(
                self.checkpoint,
                self.protocol,
                directory,
                log=self.log("reference"),
                corpus=self.settings.corpus,
                limits=self.limits,
            )

        with self.console.step("reference", "logits and replies of the checkpoint"):
            path = self.store.get(Step("reference", (self.checkpoint.identity,), parameters, run))
        return open_reference(path, self.checkpoint)

    def export(self, plan: ExportPlan, requested: str, *, publish_as: str | None = None) -> tuple[Path, Manifest]:
        """Return the artifact of a plan and its manifest, making it if need be.

        Args:
            plan: What to make.
            requested: Precision as the user named it.
            publish_as: A build's id: the artifact is moved to where it stays.
        """
        parameters = {
            "format": plan.format,
            "scheme": dataclasses.asdict(plan.scheme),
            "device": dataclasses.asdict(plan.device),
            "requested": requested,
        }

        def run(directory: Path) -> None:
            write_artifact(self.checkpoint, plan, requested, directory)

        step = Step("export", (self.checkpoint.identity,), parameters, run)
        published = self._published.get(step.key)
        path = published or self.store.get(step)
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        if publish_as is not None:
            path = publish(path, manifest, self.settings.out, publish_as, keep=published is not None)
            self._published[step.key] = path
        return path, manifest

    def validate(self, name: str, artifact: Path, reference: Reference, threads: int) -> ArtifactMetrics:
        """Return what validation finds out about an artifact, latency left out."""
        protocol = dataclasses.replace(self.protocol, threads=threads)
        metrics = TypeAdapter(ArtifactMetrics)

        def run(directory: Path) -> None:
            found = validate_artifact(artifact, reference, protocol, log=self.log(name), limits=self.limits)
            (directory / _METRICS).write_bytes(metrics.dump_json(found))

        inputs = (str(artifact), str(reference.directory))
        path = self.store.get(Step("validate", inputs, dataclasses.asdict(protocol), run))
        return metrics.validate_json((path / _METRICS).read_bytes())

    def time(
        self,
        group: str,
        subjects: Mapping[str, Subject],
        reference: Reference,
        threads: int,
        *,
        until_quiet: bool = True,
    ) -> dict[str, Timing]:
        """Return latencies, measured in turn; `until_quiet` adds rounds while they scatter."""
        protocol, settings = dataclasses.replace(self.protocol, threads=threads), self.settings
        most = max(settings.repeats, settings.max_repeats) if until_quiet else settings.repeats
        rounds = Rounds(settings.repeats, most, settings.max_spread)
        return time_alternating(
            subjects, reference, protocol, rounds, group=group, limits=self.limits, console=self.console
        )

    def time_reference(self, reference: Reference, threads: int) -> Timing:
        """Return the latency of the reference itself, which is no artifact: its scatter is not worth more rounds."""
        subject = Subject("reference", self.checkpoint.directory, self.log("reference"), cold_load=False)
        found = self.time("reference", {"reference": subject}, reference, threads, until_quiet=False)
        return found["reference"]

    def baseline(self, format_name: str, device: Device = ANY_CPU) -> Subject | EdgekilnError:
        """Return the fp16 artifact of the same container and device as something to time, or why there is none."""
        container = BASELINE_FORMAT[format_name]
        name = f"fp16-{container}"
        try:
            plan = plan_export(self.checkpoint, container, Scheme("fp16"), device)
            with self.console.step(name, "exporting the baseline"):
                path, _ = self.export(plan, "fp16")
        except EdgekilnError as error:
            return error
        return Subject(container, identify(path).path, self.log(name))


def describe_host() -> HostReport:
    """Return this machine as reports name it."""
    return HostReport(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        processor=hardware_names(),
        logical_cores=logical_cores(),
        memory_bytes=memory_bytes(),
    )


def describe_checkpoint(checkpoint: Checkpoint, reference: Reference | None) -> CheckpointReport:
    """Return the checkpoint as reports name it."""
    return CheckpointReport(
        source=checkpoint.source,
        revision=checkpoint.revision,
        identity=checkpoint.identity,
        model_type=checkpoint.config.model_type,
        weights=checkpoint.weight_count,
        fp16_overflows=reference.overflowed if reference else None,
        fp16_underflows=reference.underflowed if reference else None,
    )


def describe_protocol(session: Session, reference: Reference, threads: set[int]) -> ProtocolReport:
    """Return how it was measured."""
    protocol = session.protocol
    return ProtocolReport(
        window=protocol.window,
        scored_tokens=reference.scored_tokens,
        threads=threads.pop() if len(threads) == 1 else None,
        repeats=protocol.processes,
        warmups=protocol.warmups,
        prefill_tokens=protocol.prefill_tokens[0],
        decode_tokens=protocol.decode_tokens[0],
        prefill_lengths=protocol.prefill_tokens,
        decode_lengths=protocol.decode_tokens,
        max_spread=session.settings.max_spread,
        greedy_tokens=protocol.greedy_tokens,
        greedy_prompts=reference.greedy_prompts,
        reference=_REFERENCE,
    )
