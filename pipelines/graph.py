"""The steps of builds: what depends on what, what decides each result, and what each takes.

    checkpoint ─┬─ reference ─────────────────┬─ reference latency
                ├─ export ─ publish ─┬─ validate ─ latency
                └─ fp16 baseline ────┴───────────────┘

A step that is to come between checkpoint and export, such as calibration, is another method here and another input of
`export`; the engine need not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from pydantic import TypeAdapter

from edgekiln import __version__
from edgekiln.checkpoint import EMBEDDED, Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.engine.code_version import code_version
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.step import Batch, Needs, Step, Work
from edgekiln.engine.tool_versions import platform_version, tool_versions
from edgekiln.errors import EdgekilnError
from edgekiln.exporters.base import ExportPlan
from edgekiln.host import hardware_names, logical_cores, memory_bytes, physical_cores
from edgekiln.hub import parse_hub_id
from edgekiln.journal import DoneCounter
from edgekiln.pipelines.export import artifact_tools, plan_export
from edgekiln.pipelines.export_task import export_in_child
from edgekiln.pipelines.forecast import BASELINE_FORMAT
from edgekiln.pipelines.identify import Identified
from edgekiln.pipelines.measure import Rounds, Subject, Timing, time_alternating
from edgekiln.pipelines.predict import (
    export_memory,
    latency_memory,
    reference_budget,
    reference_memory,
    validate_memory,
)
from edgekiln.pipelines.protocol import check_context, make_protocol
from edgekiln.pipelines.settings import Settings
from edgekiln.pipelines.workspace import publish, published
from edgekiln.scheme import Scheme
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.base import MeasurementProtocol
from edgekiln.validators.corpus import read_corpus
from edgekiln.validators.kinds import identify as identify_artifact
from edgekiln.validators.latency import Latency
from edgekiln.validators.validate import ArtifactMetrics, Expected, make_reference, open_reference, validate_artifact

#: Kinds of steps in the order of a build, as `--from` takes them: one and all that come after it are made anew.
KINDS: Final = ("reference", "export", "publish", "validate", "latency")
METRICS: Final = "metrics.json"
TIMINGS: Final = "timings.json"
#: Packages that touch what is measured: in every validation, and by what is run.
_VALIDATION_TOOLS: Final = ("gguf", "jinja2", "numpy", "onnx", "tokenizers", "transformers", "xllamacpp")
_RUNTIME_TOOLS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gguf": ("llama-cpp-python",),
        "onnx": ("onnxruntime", "onnxruntime-genai", "onnxruntime-genai-core"),
        "foundry-local": ("foundry-local-sdk", "onnxruntime", "onnxruntime-genai", "onnxruntime-genai-core"),
        "reference": ("numpy", "tokenizers", "torch", "transformers"),
    }
)
_ASKED_FOR: Final = "who asks about an artifact has it measured anew each time"
_VALIDATION: Final = "edgekiln.validators.tasks"
#: What the steps do themselves; what this imports beyond their own modules decides about none of their results.
_OWN: Final = __name__


@dataclass(frozen=True)
class Timed:
    """What a latency step keeps of one artifact.

    Attributes:
        artifact: Its own speeds.
        fp16_artifact: Those of its baseline from the same rounds; None where it has none.
    """

    artifact: Latency
    fp16_artifact: Latency | None


@dataclass(frozen=True)
class Given:
    """An artifact that is there already, whoever made it.

    Attributes:
        path: A file or a directory.
        digest: Of its content.
    """

    path: Path
    digest: str


#: What is judged: the result of a step, or what somebody made.
Artifact: TypeAlias = Step | Given


@dataclass(frozen=True)
class Conditions:
    """What an artifact is timed under; only what shares them is timed in turn.

    Attributes:
        device: What it was made for.
        threads: Of the runtime.
        batches: Numbers of sequences that are decoded side by side.
    """

    device: Device
    threads: int
    batches: tuple[int, ...] = ()

    def group(self, format_name: str) -> str:
        """Return the name of the artifacts of a container that are timed in turn."""
        context = f", context {self.device.context_length}" if self.device.context_length else ""
        batches = f", batches of {', '.join(map(str, self.batches))}" if self.batches else ""
        provider, threads = self.device.execution_provider, self.threads
        return f"latency of {BASELINE_FORMAT[format_name]} on {provider}, {threads} threads{context}{batches}"


class _Memory(Protocol):
    """Predicts the peak memory of a step."""

    def __call__(self, checkpoint: Checkpoint, format_name: str, *, settings: Settings) -> int: ...


METRICS_JSON: Final = TypeAdapter(ArtifactMetrics)
TIMED_JSON: Final = TypeAdapter(Timed)
LATENCY_JSON: Final = TypeAdapter(Latency)


def read_metrics(directory: Path) -> ArtifactMetrics:
    """Return what a validate step kept."""
    return METRICS_JSON.validate_json((directory / METRICS).read_bytes())


def _plain(latency: Latency) -> Latency:
    """Return the same with plain mappings, which can be written as JSON."""
    return dataclasses.replace(
        latency, values=dict(latency.values), spread=dict(latency.spread), samples=dict(latency.samples)
    )


class Graph:
    """Makes the steps of all builds of one checkpoint; equal steps are one.

    Args:
        identified: The checkpoint.
        settings: How things are measured.
        memory: Remembers hashes of published artifacts.

    Raises:
        UsageError: The corpus is missing, or a measurement is longer than the model's context.
    """

    def __init__(self, identified: Identified, settings: Settings, memory: HashMemory) -> None:
        self._identified, self._checkpoint = identified, identified.checkpoint
        self.settings, self._memory = settings, memory
        self._protocol = make_protocol(settings, settings.threads or physical_cores())
        check_context(self._protocol, self._checkpoint)
        self._exports: dict[tuple[object, ...], Step] = {}
        self._baselines: dict[tuple[str, str], ExportPlan | EdgekilnError] = {}
        self._batches: dict[str, Batch] = {}
        self._reference_latencies: dict[int, Step] = {}
        self._timed: dict[Step, Artifact] = {}
        self._predicted: dict[tuple[_Memory, str], int] = {}
        self._source = {"checkpoint": self._checkpoint.identity}
        self._processor = {"platform": platform_version(), "processor": hardware_names()}
        self._cores = logical_cores()
        self._machine = {"cores": [physical_cores(), self._cores], "memory_bytes": memory_bytes()}
        self.reference = self._reference()

    # --- reference --------------------------------------------------------------------------------------------------

    def _reference(self) -> Step:
        settings, protocol = self.settings, self._protocol

        def run(work: Work) -> None:
            make_reference(
                self._checkpoint,
                protocol,
                work.directory,
                log=work.log,
                memory_bytes=reference_budget(self._checkpoint),
                corpus=settings.corpus,
                limits=work.limits,
            )
            self._identified.require_unchanged()

        # What of the protocol is left out concerns latency only.
        kept = ("window", "windows", "greedy_tokens", "long_context", "threads", "context")
        measured = {name: getattr(protocol, name) for name in kept}
        return Step(
            name="reference",
            kind="reference",
            action="predictions and replies of the checkpoint",
            sources={**self._source, "corpus": read_corpus(settings.corpus).sha256},
            parameters={**measured, "prompt_tokens": max(protocol.prefill_tokens), **self._processor},
            code=code_version(_VALIDATION, "edgekiln.validators.validate", own=_OWN),
            tools=tool_versions(_RUNTIME_TOOLS["reference"]),
            needs=Needs(reference_memory(self._checkpoint), protocol.threads, seconds=settings.step_timeout_seconds),
            run=run,
        )

    def reference_latency(self, threads: int) -> Step:
        """Return the step that times the reference itself."""
        if threads not in self._reference_latencies:
            self._reference_latencies[threads] = self._time_reference(threads)
        return self._reference_latencies[threads]

    def _time_reference(self, threads: int) -> Step:
        protocol = dataclasses.replace(self._protocol, threads=threads, depths=(), batches=())

        def run(work: Work) -> None:
            subject = Subject("reference", self._checkpoint.directory, work.log, cold_load=False)
            # It is no artifact: its scatter is not worth more rounds.
            found = self._time({"reference": subject}, work, protocol, until_quiet=False)["reference"]
            if isinstance(found, EdgekilnError):
                raise found
            self._identified.require_unchanged()
            (work.directory / TIMINGS).write_bytes(LATENCY_JSON.dump_json(_plain(found)))

        return Step(
            name=f"reference-{threads}-threads.latency",
            kind="latency",
            action="latency of the reference",
            inputs={"reference": self.reference},
            sources=self._source,
            parameters={**self._latency_parameters(protocol), "subject": "reference"},
            code=code_version("edgekiln.pipelines.measure", _VALIDATION, own=_OWN),
            tools=tool_versions(_RUNTIME_TOOLS["reference"]),
            needs=Needs(latency_memory(self._checkpoint, None, settings=self.settings), threads, alone=True),
            run=run,
        )

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def export(self, name: str, plan: ExportPlan, requested: str) -> Step:
        """Return the step that makes an artifact; `name` counts for the first build that asks for it."""
        key = (plan.format, plan.scheme, plan.device, requested)
        if key not in self._exports:
            self._exports[key] = self._export(name, plan, requested)
        return self._exports[key]

    def _export(self, name: str, plan: ExportPlan, requested: str) -> Step:
        checkpoint, device = self._checkpoint, dataclasses.asdict(plan.device)
        public = checkpoint.source == EMBEDDED or (checkpoint.revision and parse_hub_id(checkpoint.source))

        def run(work: Work) -> None:
            answer = export_in_child(
                checkpoint, plan, requested, work.directory, work.journal, log=work.log, limits=work.limits
            )
            self._identified.require_unchanged()
            if work.limits.watch is not None:
                work.limits.watch.peak_bytes = max(work.limits.watch.peak_bytes, answer.peak_memory_bytes)
            work.hashes |= {file.path: file.sha256 for file in answer.files}
            work.done_before, work.done_now = answer.tensors_before, answer.tensors_now

        return Step(
            name=f"{name}.export",
            kind="export",
            action=f"exporting {plan.container_type}",
            sources=self._source,
            parameters={
                "format": plan.format,
                "scheme": dataclasses.asdict(plan.scheme),
                "device": device,
                "requested": requested,
                "named": checkpoint.source if public else None,
                "revision": checkpoint.revision,
                "platform": platform_version(),
            },
            code=code_version("edgekiln.pipelines.export_task", own=_OWN),
            tools={**tool_versions(set(artifact_tools(plan)) - {"edgekiln"}), "edgekiln": __version__},
            needs=Needs(export_memory(plan, checkpoint, self._cores), seconds=self.settings.step_timeout_seconds),
            run=run,
            resumable=True,
            progress=_Progress(len(plan.tensors)),
        )

    def baseline(self, name: str, format_name: str, device: Device = ANY_CPU) -> Step | EdgekilnError:
        """Return the step that makes the fp16 artifact of the same container and device, or why there is none."""
        key = BASELINE_FORMAT[format_name], device.execution_provider
        if key not in self._baselines:
            self._baselines[key] = self._plan_baseline(*key)
        plan = self._baselines[key]
        if isinstance(plan, EdgekilnError):
            return plan
        return self.export(f"{name}.baseline", dataclasses.replace(plan, device=device), "fp16")

    def _plan_baseline(self, format_name: str, provider: str) -> ExportPlan | EdgekilnError:
        """Return a plan for devices of any context, which changes no tensor."""
        try:
            return plan_export(self._checkpoint, format_name, Scheme("fp16"), Device(provider))
        except EdgekilnError as error:
            return error

    def publish(self, name: str, export: Step, out: Path) -> Step:
        """Return the step that brings an artifact to the output folder."""

        def run(work: Work) -> None:
            record = work.records["artifact"]
            work.place = publish(work.inputs["artifact"], record, out, name, self._memory)

        return Step(
            name=f"{name}.publish",
            kind="publish",
            action="copying to the output folder",
            inputs={"artifact": export},
            parameters={"out": str(out.absolute()), "build": name},
            run=run,
            outside=lambda records: published(records["artifact"], out, name, self._memory),
        )

    # --- measurements -------------------------------------------------------------------------------------------------

    def validate(self, name: str, format_name: str, artifact: Artifact, threads: int, expected: Expected) -> Step:
        """Return the step that finds out all about an artifact but its speed."""
        protocol = dataclasses.replace(self._protocol, threads=threads)

        def run(work: Work) -> None:
            reference = open_reference(work.inputs["reference"], self._checkpoint)
            path = _place(artifact, work)
            found = validate_artifact(path, reference, protocol, expected, log=work.log, limits=work.limits)
            self._identified.require_unchanged()
            if found.parity is None:
                work.volatile = "the artifact did not run, which may not be its own fault"
            if isinstance(artifact, Given):
                work.volatile = _ASKED_FOR
            (work.directory / METRICS).write_bytes(METRICS_JSON.dump_json(found))

        return Step(
            name=f"{name}.validate",
            kind="validate",
            action=f"structure and parity in {RUNTIME_NAMES[format_name]}",
            inputs={"reference": self.reference, **_inputs(artifact)},
            sources={**self._source, **_sources(artifact)},
            parameters={
                "format": format_name,
                "greedy_tokens": protocol.greedy_tokens,
                "decode_positions": protocol.decode_positions,
                "context": protocol.context,
                "threads": threads,
                "expected": dataclasses.asdict(expected),
                **self._processor,
            },
            code=code_version(_VALIDATION, "edgekiln.validators.validate", own=_OWN),
            tools=tool_versions({*_VALIDATION_TOOLS, *_RUNTIME_TOOLS[format_name]}),
            needs=Needs(
                self._needed(validate_memory, format_name), threads, seconds=self.settings.step_timeout_seconds
            ),
            run=run,
        )

    def latency(
        self,
        name: str,
        format_name: str,
        artifact: Artifact,
        validate: Step,
        baseline: Step | EdgekilnError | None,
        conditions: Conditions,
    ) -> Step:
        """Return the step that times an artifact and its fp16 baseline, in turn with all others of its kind."""
        protocol = self._timing_protocol(conditions)
        inputs = {"reference": self.reference, "validation": validate, **_inputs(artifact)}
        if isinstance(baseline, Step):
            inputs["baseline"] = baseline
        step = Step(
            name=f"{name}.latency",
            kind="latency",
            action="speed and memory, in turn with its fp16 baseline",
            inputs=inputs,
            optional=frozenset({"baseline"}),
            sources=_sources(artifact),
            parameters={**self._latency_parameters(protocol), "subject": format_name},
            code=code_version("edgekiln.pipelines.measure", _VALIDATION, own=_OWN),
            tools=tool_versions(_RUNTIME_TOOLS[format_name]),
            needs=Needs(self._needed(latency_memory, format_name), conditions.threads, alone=True),
            batch=self._batch(format_name, conditions),
            skip=lambda paths: read_metrics(paths["validation"]).not_measured.get("latency"),
        )
        self._timed[step] = artifact
        return step

    def _timing_protocol(self, conditions: Conditions) -> MeasurementProtocol:
        """Return the protocol with the conditions in it; its context has room for the largest batch."""
        together = max(conditions.batches, default=0) * (min(self._protocol.decode_tokens) + 1)
        return dataclasses.replace(
            self._protocol,
            threads=conditions.threads,
            batches=conditions.batches,
            context=max(self._protocol.context, together),
        )

    def _batch(self, format_name: str, conditions: Conditions) -> Batch:
        """Return what times all artifacts of a container under some conditions in turn."""
        name = conditions.group(format_name)
        if name not in self._batches:
            protocol = self._timing_protocol(conditions)
            self._batches[name] = Batch(name, lambda works: self._time_together(works, protocol))
        return self._batches[name]

    def _time_together(self, works: Sequence[Work], protocol: MeasurementProtocol) -> dict[Work, EdgekilnError]:
        """Time artifacts and their baseline in turn; each gets its own speeds and those of the baseline."""
        subjects: dict[str, Subject] = {}
        for work in works:
            kind = identify_artifact(_place(self._timed[work.step], work))
            subjects[work.step.name] = Subject(kind.format, kind.path, work.log)
        baseline = next((work.inputs["baseline"] for work in works if "baseline" in work.inputs), None)
        if baseline is not None:
            kind = identify_artifact(baseline)
            subjects["fp16"] = Subject(kind.format, kind.path, works[0].log.with_name("baseline.latency.log"))
        found = self._time(subjects, works[0], protocol, until_quiet=True, others=works[1:])
        fp16 = found.get("fp16")
        failed: dict[Work, EdgekilnError] = {}
        for work in works:
            timing = found[work.step.name]
            if isinstance(timing, EdgekilnError):
                failed[work] = timing
                continue
            work.volatile = str(fp16) if isinstance(fp16, EdgekilnError) else None
            if "artifact" not in work.inputs:
                work.volatile = _ASKED_FOR
            timed = Timed(_plain(timing), _plain(fp16) if isinstance(fp16, Latency) else None)
            (work.directory / TIMINGS).write_bytes(TIMED_JSON.dump_json(timed))
        return failed

    def _time(
        self,
        subjects: Mapping[str, Subject],
        work: Work,
        protocol: MeasurementProtocol,
        *,
        until_quiet: bool,
        others: Sequence[Work] = (),
    ) -> dict[str, Timing]:
        """Return latencies, measured in turn; `until_quiet` adds rounds while they scatter."""
        settings = self.settings
        most = max(settings.repeats, settings.max_repeats) if until_quiet else settings.repeats
        rounds = Rounds(settings.repeats, most, settings.max_spread)
        reference = open_reference(work.inputs["reference"], self._checkpoint)

        def advance(share: float) -> None:
            for each in (work, *others):
                each.share = share

        return time_alternating(subjects, reference, protocol, rounds, limits=work.limits, advance=advance)

    def _needed(self, predict: _Memory, format_name: str) -> int:
        """Return the memory of running an artifact of a container, as if at fp16, which takes the most."""
        if (predict, format_name) not in self._predicted:
            self._predicted[predict, format_name] = predict(self._checkpoint, format_name, settings=self.settings)
        return self._predicted[predict, format_name]

    def _latency_parameters(self, protocol: MeasurementProtocol) -> dict[str, object]:
        """Return all that a speed depends on beside the artifact: how it is measured, and on what."""
        settings = self.settings
        return {
            **dataclasses.asdict(protocol),
            "max_repeats": settings.max_repeats,
            "max_spread": settings.max_spread,
            **self._machine,
            **self._processor,
        }


class _Progress:
    """Says how far an export is, by its journal."""

    def __init__(self, tensors: int) -> None:
        self._tensors = tensors
        self._counter: DoneCounter | None = None

    def __call__(self, work: Work) -> float | None:
        if self._counter is None:
            self._counter = DoneCounter(work.journal)
        return self._counter.count() / self._tensors


def _inputs(artifact: Artifact) -> dict[str, Step]:
    return {"artifact": artifact} if isinstance(artifact, Step) else {}


def _sources(artifact: Artifact) -> dict[str, str]:
    return {} if isinstance(artifact, Step) else {"artifact": artifact.digest}


def _place(artifact: Artifact, work: Work) -> Path:
    return work.inputs["artifact"] if isinstance(artifact, Step) else artifact.path
