"""What a run of a plan will do: its steps, what each needs, and the most memory and disk that it takes.

The steps are those of `edgekiln.pipelines.graph`, by the same names: the reference, the export of each distinct
artifact and of the fp16 baselines, and for each build its publication, validation and latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from edgekiln.checkpoint import Checkpoint
from edgekiln.device import Device
from edgekiln.errors import UnsupportedError, UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan
from edgekiln.host import logical_cores
from edgekiln.pipelines.cells import Outlook
from edgekiln.pipelines.export import plan_export
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.predict import (
    BuildPrediction,
    artifact_bytes,
    device_memory,
    export_memory,
    held_weights,
    judge_fit,
    latency_memory,
    reference_bytes,
    reference_memory,
    validate_memory,
)
from edgekiln.pipelines.settings import Settings
from edgekiln.scheme import Scheme

Cached: TypeAlias = Literal["hit", "miss", "unknown"]
Kind: TypeAlias = Literal["reference", "export", "publish", "validate", "latency"]
#: The container whose fp16 artifact is timed beside those of a format.
BASELINE_FORMAT: Final[Mapping[str, str]] = MappingProxyType({"onnx": "onnx", "foundry-local": "onnx", "gguf": "gguf"})
_NOTHING_CACHED: Final[Mapping[str, Cached]] = MappingProxyType({})
REFERENCE: Final = "reference"
#: Copying an artifact.
_PUBLISH_MEMORY: Final = 40 << 20
#: What a measurement leaves.
_SMALL: Final = 16 << 10


@dataclass(frozen=True)
class PredictedStep:
    """One step of a run.

    Attributes:
        id: Unique in the plan.
        kind: What it does.
        needs: Ids of the steps whose results it reads.
        memory_bytes: Peak memory of its processes; None where the checkpoint is not on this machine.
        disk_bytes: What it leaves; None likewise.
        cached: Whether the cache has its result.
    """

    id: str
    kind: Kind
    needs: tuple[str, ...]
    memory_bytes: int | None
    disk_bytes: int | None
    cached: Cached = "unknown"


@dataclass(frozen=True)
class Totals:
    """What the whole run takes.

    Attributes:
        peak_memory_bytes: Of the hungriest step.
        peak_disk_bytes: Reference, baselines, every artifact and its published copy.
        kept_disk_bytes: The same without the artifacts that are not kept, which go when the run ends.
        artifact_bytes: The artifacts alone; equal ones count once.
    """

    peak_memory_bytes: int
    peak_disk_bytes: int
    kept_disk_bytes: int
    artifact_bytes: int


@dataclass(frozen=True)
class Forecast:
    """All that can be said of a run before it.

    Attributes:
        builds: By build id; none for what cannot be made, or where the checkpoint is not on this machine.
        steps: In an order in which they can run.
        totals: None where the checkpoint is not on this machine.
    """

    builds: Mapping[str, BuildPrediction]
    steps: tuple[PredictedStep, ...]
    totals: Totals | None


#: What makes the tensors of two artifacts the same: container, scheme, provider.
_Tensors: TypeAlias = tuple[str, Scheme, str]


@dataclass(frozen=True)
class _Facts:
    """What equal artifacts have in common, and is found out once.

    Attributes:
        artifact: Bytes of all files.
        held: Bytes of the weights as the runtime on the device holds them.
        export: Peak memory of making it.
        validate: Peak memory of validating it.
    """

    artifact: int | None = None
    held: int = 0
    export: int | None = None
    validate: int | None = None


#: Where the checkpoint is not on this machine.
_UNKNOWN: Final = _Facts()


@dataclass
class _Collector:
    """Collects steps and predictions, build by build."""

    plan: Plan
    checkpoint: Checkpoint | None
    cached: Mapping[str, Cached]
    steps: list[PredictedStep] = field(default_factory=list)
    builds: dict[str, BuildPrediction] = field(default_factory=dict)
    facts: dict[_Tensors, _Facts] = field(default_factory=dict)
    exports: dict[tuple[_Tensors, int | None, str], str] = field(default_factory=dict)
    baselines: dict[tuple[str, Device], str | None] = field(default_factory=dict)
    latencies: dict[str | None, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    threads: set[int] = field(default_factory=set)
    cores: int = field(default_factory=logical_cores)

    @property
    def settings(self) -> Settings:
        return self.plan.settings.values

    def add(self, name: str, kind: Kind, needs: tuple[str, ...], memory: int | None, disk: int | None) -> str:
        """Add a step and return its id."""
        self.steps.append(PredictedStep(name, kind, needs, memory, disk, self.cached.get(name, "unknown")))
        return name

    def start(self) -> None:
        """Add the reference, which every build is compared with."""
        checkpoint, settings = self.checkpoint, self.settings
        memory = reference_memory(checkpoint) if checkpoint else None
        disk = reference_bytes(settings)
        self.add(REFERENCE, "reference", (), memory, disk)

    def look(self, plan: ExportPlan | None) -> _Facts:
        """Return what is known of an artifact."""
        if plan is None or self.checkpoint is None:
            return _UNKNOWN
        key = plan.format, plan.scheme, plan.device.execution_provider
        if key not in self.facts:
            self.facts[key] = _Facts(
                artifact=artifact_bytes(self.checkpoint, plan),
                held=held_weights(plan),
                export=export_memory(plan, self.checkpoint),
                validate=validate_memory(self.checkpoint, plan.format, plan, self.settings),
            )
        return self.facts[key]

    def export(self, name: str, build: Build, scheme: Scheme, format_name: str, plan: ExportPlan | None) -> str:
        """Add the export of an artifact unless an equal one is there; return its step."""
        device, requested = build.device, build.requested if scheme is build.scheme else scheme.precision
        key = (format_name, scheme, device.execution_provider), device.context_length, requested
        if key not in self.exports:
            facts = self.look(plan)
            self.exports[key] = self.add(f"{name}.export", "export", (), facts.export, facts.artifact)
        return self.exports[key]

    def baseline(self, build: Build) -> str | None:
        """Add the export of a build's fp16 baseline; None where its container has none."""
        key = BASELINE_FORMAT[build.format], build.device
        if key not in self.baselines:
            self.baselines[key] = self._make_baseline(build, key[0])
        return self.baselines[key]

    def _make_baseline(self, build: Build, format_name: str) -> str | None:
        scheme, plan = Scheme("fp16"), None
        if self.checkpoint is None:
            if EXPORTERS[format_name].unsupported(scheme, build.device):
                return None
        else:
            try:
                plan = plan_export(self.checkpoint, format_name, scheme, build.device)
            except (UnsupportedError, UsageError):
                return None
        return self.export(f"{build.id}.baseline", build, scheme, format_name, plan)

    def build(self, build: Build, plan: ExportPlan | None) -> None:
        """Add the steps of one build that can be made, and what it will be."""
        facts, config = self.look(plan), self.checkpoint.config if self.checkpoint else None
        if config is not None and facts.artifact is not None:
            prompt = max(self.settings.prefill_tokens)
            memory = device_memory(config, build.format, build.device, facts.held, prompt)
            fit = judge_fit(memory.total, build.target.memory)
            self.builds[build.id] = BuildPrediction(facts.artifact, memory, fit)
        export = self.export(build.id, build, build.scheme, build.format, plan)
        publish = self.add(f"{build.id}.publish", "publish", (export,), _PUBLISH_MEMORY, facts.artifact)
        if build.keep:
            self.kept |= {export, publish}
        needs = (REFERENCE, publish)
        validated = self.add(f"{build.id}.validate", "validate", needs, facts.validate, _SMALL)
        baseline = self.baseline(build)
        needs = (REFERENCE, publish, validated, *((baseline,) if baseline else ()))
        self.add(f"{build.id}.latency", "latency", needs, self.latency_memory(build.format), _SMALL)
        self.threads.add(min(build.threads, self.cores))

    def latency_memory(self, format_name: str | None) -> int | None:
        """Return the memory of timing artifacts of a container, fp16 baselines among them, or the reference."""
        if self.checkpoint is None:
            return None
        if format_name not in self.latencies:
            self.latencies[format_name] = latency_memory(self.checkpoint, format_name, settings=self.settings)
        return self.latencies[format_name]

    def end(self) -> None:
        """Add the reference's own latency, once for each number of threads."""
        for threads in sorted(self.threads):
            name = f"reference-{threads}-threads.latency"
            self.add(name, "latency", (REFERENCE,), self.latency_memory(None), _SMALL)

    def totals(self) -> Totals | None:
        """Return sums and maxima over all steps; None where the checkpoint is not here."""
        if self.checkpoint is None:
            return None
        disk = {step.id: step.disk_bytes or 0 for step in self.steps}
        made = set(self.exports.values()) - set(self.baselines.values())
        published = {step.id for step in self.steps if step.kind == "publish"}
        return Totals(
            peak_memory_bytes=max((step.memory_bytes or 0 for step in self.steps), default=0),
            peak_disk_bytes=sum(disk.values()),
            kept_disk_bytes=sum(disk.values()) - sum(disk[name] for name in (made | published) - self.kept),
            artifact_bytes=sum(disk[name] for name in made),
        )


def forecast(plan: Plan, outlook: Outlook, cached: Mapping[str, Cached] = _NOTHING_CACHED) -> Forecast:
    """Predict a run.

    Args:
        plan: The expanded pipeline.
        outlook: What its builds will be; see `edgekiln.pipelines.cells.look_ahead`.
        cached: By a step's id, whether the cache has its result; what is missing is unknown.
    """
    collector = _Collector(plan, outlook.checkpoint, cached)
    builds = [build for build in plan.builds if build.id not in outlook.reasons]
    if builds:
        collector.start()
    for build in builds:
        collector.build(build, outlook.plans.get(build.id))
    collector.end()
    return Forecast(MappingProxyType(collector.builds), tuple(collector.steps), collector.totals())
