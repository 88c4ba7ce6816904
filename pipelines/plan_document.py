"""The plan as JSON, `edgekiln.plan/1`: every build with each effective value and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekiln.exporters.onnx_providers import PROVIDERS
from edgekiln.pipelines.forecast import Forecast, PredictedStep, Totals
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.predict import BuildPrediction

PLAN_SCHEMA: Final = "edgekiln.plan/1"


class _Value(BaseModel):
    """A frozen part of a plan; readers ignore keys they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class PlannedTargets(_Value):
    """A targets file."""

    name: str = Field(description="The file as the user named it.", examples=["targets.yaml (shipped)"])
    sha256: str = Field(description="Of its bytes, in hex.", examples=["9f86d081…"])


class PlannedSetting(_Value):
    """The effective value of a setting."""

    value: Any = Field(description="The value.", examples=[8])
    origin: str = Field(
        description="default, file:line:column, the variable, --set or the flag.", examples=["p.yaml:3:12", "--set"]
    )


class PlannedRuntime(_Value):
    """A runtime and its versions."""

    name: str = Field(description="The runtime.", examples=["llama.cpp"])
    version: str = Field(description="Versions that the artifact must work with.", examples=[">=0.3.36"])


class PlannedDevice(_Value):
    """What decides how an artifact is written, and what it must fit into."""

    description: str = Field(description="The target in one line.", examples=["Raspberry Pi 5, 8 GB"])
    execution_provider: str = Field(description="Where the runtime computes.", examples=["cpu"])
    context_length: int | None = Field(
        description="Tokens of context to plan for; null for the model's own.", examples=[4096]
    )
    memory: int | None = Field(
        description="Bytes that a process with the model may take; null where nothing is said.", examples=[2**32]
    )


class PlannedGate(_Value):
    """A limit that holds."""

    gate: str = Field(description="Metric, operator and limit.", examples=["mean_kld <= 0.05"])
    why: str = Field(description="The reason for the limit.", examples=["limit of target raspberry-pi-5"])
    origin: str = Field(
        description="default of a precision, the target, or file:line:column.", examples=["default of q4_0"]
    )


class PlannedMemory(_Value):
    """What a model takes on its device, in bytes."""

    total: int = Field(description="All of it.", examples=[674000000])
    weights: int = Field(description="The weights as the runtime holds them.", examples=[547484160])
    cache: int = Field(description="Keys and values at the context.", examples=[50331648])
    overhead: int = Field(description="The runtime itself.", examples=[109073152])
    context_length: int = Field(description="Tokens of context that the cache is for.", examples=[4096])


class Prediction(_Value):
    """What a build will be, from metadata alone."""

    artifact_bytes: int = Field(description="All files of the artifact.", examples=[352225026])
    memory: PlannedMemory = Field(description="On the device.", examples=[{"total": 674000000}])
    fit: Literal["fits", "tight", "does not fit", "unknown"] = Field(
        description="Whether that fits into the target's memory: tight from 85 % on, unknown where it has none.",
        examples=["fits"],
    )


class PlannedStep(_Value):
    """One step of a run."""

    id: str = Field(description="Unique in the plan.", examples=["gguf-cpu-int4.export"])
    kind: Literal["reference", "export", "publish", "validate", "latency"] = Field(
        description="What it does.", examples=["export"]
    )
    needs: tuple[str, ...] = Field(
        description="Ids of the steps whose results it reads.", examples=[["reference", "gguf-cpu-int4.publish"]]
    )
    memory_bytes: int | None = Field(
        description="Peak memory of its processes; null where the checkpoint is not on this machine.",
        examples=[316523684],
    )
    disk_bytes: int | None = Field(description="What it leaves on the disk; null likewise.", examples=[352225026])
    cached: Literal["hit", "miss", "unknown"] = Field(
        description="Whether the cache has its result; unknown where the checkpoint was never hashed.",
        examples=["hit"],
    )


class PlannedTotals(_Value):
    """What a whole run takes."""

    peak_memory_bytes: int = Field(description="Memory of the hungriest step.", examples=[4843613939])
    peak_disk_bytes: int = Field(
        description="Disk for reference, fp16 baselines, every artifact and its published copy.",
        examples=[30276893728],
    )
    kept_disk_bytes: int = Field(
        description="The same without artifacts that are not kept; they go when a run ends.", examples=[30276893728]
    )
    artifact_bytes: int = Field(description="The artifacts alone; equal ones count once.", examples=[6474373096])


class PlannedBuild(_Value):
    """One cell of the matrix."""

    id: str = Field(description="Unique in the plan, and a safe file name.", examples=["raspberry-pi-5-int4"])
    target: str = Field(description="Name of the target.", examples=["raspberry-pi-5"])
    format: str = Field(description="Container.", examples=["gguf"])
    runtime: PlannedRuntime = Field(
        description="The program that loads the artifact on the device.",
        examples=[{"name": "llama.cpp", "version": ">=0.3.36"}],
    )
    device: PlannedDevice = Field(
        description="What decides how the artifact is written.", examples=[{"execution_provider": "cpu"}]
    )
    stand_in: str | None = Field(
        description="What validates here in place of the device's runtime; null where it is the same.",
        examples=["llama.cpp on this machine's CPU stands in for llama.cpp on metal"],
    )
    requested: str = Field(description="Precision as asked for.", examples=["int4"])
    precision: str = Field(description="Precision that the container holds.", examples=["q4_0"])
    group_size: int | None = Field(
        description="Weights that share a scale; null for the container's own.", examples=[32]
    )
    symmetric: bool = Field(description="No zero points.", examples=[True])
    embedding_precision: str | None = Field(
        description="Precision of the embeddings; null for the container's own.", examples=["int8"]
    )
    head_precision: str | None = Field(
        description="Precision of the output head; null for the container's own.", examples=["int8"]
    )
    embedding_group_size: int | None = Field(
        description="Group size of embeddings and head; null for the container's own.", examples=[64]
    )
    overrides: dict[str, str] = Field(
        description="Precisions of single matrices by pattern.",
        examples=[{"model.layers.0.mlp.down_proj": "int8"}],
    )
    accuracy_level: int | None = Field(
        description="What MatMulNBits computes in, by default the execution provider's own; null where there is none.",
        examples=[4],
    )
    gguf_source: str = Field(description="What GGUF types are quantized from.", examples=["source", "f16"])
    split_max_size: int | None = Field(
        description="Bytes of tensor data that one file may have; null for no limit.", examples=[2 * 10**9]
    )
    threads: int = Field(description="Threads of the runtimes.", examples=[4])
    gates: tuple[PlannedGate, ...] = Field(description="Limits that hold.", examples=[[{"gate": "mean_kld <= 0.05"}]])
    unsupported: str | None = Field(
        description="Why it cannot be built; null when it can.", examples=["gguf does not hold nf4; use iq4_nl"]
    )
    allow_unsupported: bool = Field(description="It does not fail the run when it cannot be built.", examples=[False])
    keep: bool = Field(description="The artifact stays; else it is built and judged only.", examples=[True])
    allow_not_measured: tuple[str, ...] = Field(
        description="Metrics whose gates may stay unmeasured.", examples=[["peak_rss_bytes"]]
    )
    origins: dict[str, str] = Field(
        description="Where each of these came from, by key: file:line:column, a target, default, a variable or a flag.",
        examples=[{"threads": "target raspberry-pi-5 (targets.yaml:196:5)"}],
    )
    prediction: Prediction | None = Field(
        description="What it will be; null where it cannot be built, or the checkpoint is not on this machine.",
        examples=[{"artifact_bytes": 352225026, "fit": "fits"}],
    )


class PlanDocument(_Value):
    """What a run is going to do."""

    schema_id: Literal["edgekiln.plan/1"] = Field(
        default=PLAN_SCHEMA, alias="schema", description="Kind and version of this document.", examples=[PLAN_SCHEMA]
    )
    pipeline: str = Field(description="Name of the pipeline.", examples=["default"])
    targets: PlannedTargets = Field(
        description="The targets file used.", examples=[{"name": "targets.yaml (shipped)", "sha256": "9f86d081…"}]
    )
    settings: dict[str, PlannedSetting] = Field(
        description="Every setting by name.", examples=[{"windows": {"value": 8, "origin": "default"}}]
    )
    builds: tuple[PlannedBuild, ...] = Field(
        description="In the order of the pipeline.", examples=[[{"id": "onnx-cpu-int4"}]]
    )
    steps: tuple[PlannedStep, ...] = Field(
        description="What a run does, in an order in which it can be done; equal artifacts are exported once.",
        examples=[[{"id": "gguf-cpu-int4.export", "kind": "export", "needs": []}]],
    )
    totals: PlannedTotals | None = Field(
        description="What a run takes; null where the checkpoint is not on this machine.",
        examples=[{"peak_memory_bytes": 4843613939}],
    )


def planned_prediction(found: BuildPrediction | None) -> Prediction | None:
    """Return a prediction as it is published."""
    if found is None:
        return None
    memory = found.memory
    return Prediction(
        artifact_bytes=found.artifact_bytes,
        memory=PlannedMemory(
            total=memory.total,
            weights=memory.weights,
            cache=memory.cache,
            overhead=memory.overhead,
            context_length=memory.context,
        ),
        fit=found.fit,
    )


def _step(step: PredictedStep) -> PlannedStep:
    return PlannedStep(
        id=step.id,
        kind=step.kind,
        needs=step.needs,
        memory_bytes=step.memory_bytes,
        disk_bytes=step.disk_bytes,
        cached=step.cached,
    )


def _totals(totals: Totals | None) -> PlannedTotals | None:
    if totals is None:
        return None
    return PlannedTotals(
        peak_memory_bytes=totals.peak_memory_bytes,
        peak_disk_bytes=totals.peak_disk_bytes,
        kept_disk_bytes=totals.kept_disk_bytes,
        artifact_bytes=totals.artifact_bytes,
    )


def _accuracy_level(build: Build) -> int | None:
    """Return the level as asked, or the provider's where something is quantized."""
    provider, asked = PROVIDERS.get(build.target.execution_provider), build.scheme.accuracy_level
    if asked is not None or provider is None or build.format == "gguf":
        return asked
    return provider.accuracy_level if set(build.scheme.precisions) != {"fp16"} else None


def _planned(build: Build, reason: str | None, found: BuildPrediction | None) -> PlannedBuild:
    target, scheme = build.target, build.scheme
    return PlannedBuild(
        id=build.id,
        target=target.name,
        format=build.format,
        runtime=PlannedRuntime(name=target.runtime.name, version=target.runtime.version),
        device=PlannedDevice(
            description=target.description,
            execution_provider=target.execution_provider,
            context_length=build.context_length,
            memory=target.memory,
        ),
        stand_in=target.stand_in,
        requested=build.requested,
        precision=build.precision,
        **{**scheme.options, "accuracy_level": _accuracy_level(build)},
        threads=build.threads,
        gates=tuple(
            PlannedGate(gate=str(gate), why=gate.why, origin=origin)
            for gate, origin in zip(build.gates, build.gate_origins, strict=True)
        ),
        unsupported=reason,
        allow_unsupported=build.allow_unsupported,
        keep=build.keep,
        allow_not_measured=tuple(sorted(build.allow_not_measured)),
        origins=dict(build.origins),
        prediction=planned_prediction(found),
    )


def plan_document(plan: Plan, forecast: Forecast, reasons: Mapping[str, str]) -> PlanDocument:
    """Return a plan as it is published; `reasons` says by build id why a build cannot be made."""
    settings = plan.settings
    return PlanDocument(
        pipeline=plan.pipeline.spec.name,
        targets=PlannedTargets(name=plan.targets.name, sha256=plan.targets.document.sha256),
        settings={
            key: PlannedSetting(value=value, origin=settings.origins[key])
            for key, value in settings.values.model_dump(mode="json").items()
        },
        builds=tuple(_planned(b, reasons.get(b.id), forecast.builds.get(b.id)) for b in plan.builds),
        steps=tuple(map(_step, forecast.steps)),
        totals=_totals(forecast.totals),
    )
