"""The pipeline file: which builds to make of a checkpoint, parsed once into frozen values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.settings import Layer, Settings, file_layer
from edgekiln.pipelines.shipped import shipped
from edgekiln.pipelines.targets import GateText, Precision, SchemeOptions
from edgekiln.validators.gates import METRICS
from edgekiln.yamlfile import Document, Strict, Text, read_yaml, validate

SCHEMA: Final = "edgekiln.pipeline/1"
MAX_BUILDS: Final = 100_000


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name[:60]!r}; {nearest(name[:60], METRICS)}")
    return name


MetricName: TypeAlias = Annotated[Text, AfterValidator(_known_metric)]


class BuildSpec(SchemeOptions):
    """One line of the matrix: a target, and one or several precisions for it."""

    target: Text = Field(description="Name of a target in the targets file.", examples=["onnx-cpu"])
    precision: Precision | None = Field(
        default=None,
        description="fp16, int8, int4, nf4, or a precision of the container's own; or give 'precisions'.",
        examples=["int4", "q4_k_m"],
    )
    precisions: tuple[Precision, ...] = Field(
        default=(), description="Several precisions, one build each.", examples=[["int4", "int8"]]
    )
    gates: tuple[GateText, ...] = Field(
        default=(),
        description="Limits; each replaces the target's and the default on the same metric, if relative as it is.",
        examples=[["mean_kld <= 0.05", "size_bytes <= 350 MB"]],
    )
    allow_unsupported: bool = Field(
        default=False,
        description="A build that the target or container cannot hold is reported and does not fail the run.",
        examples=[True],
    )
    keep: bool = Field(
        default=True,
        description="false for an artifact that is built and judged, but not kept.",
        examples=[False],
    )
    allow_not_measured: tuple[MetricName, ...] = Field(
        default=(),
        description="Metrics whose gates may stay unmeasured without failing the build.",
        examples=[["peak_rss_bytes"]],
    )

    @model_validator(mode="after")
    def _one_way_to_name_precisions(self) -> Self:
        if (self.precision is None) == (not self.precisions):
            raise ValueError("a build needs either 'precision' or 'precisions'; give one of them")
        return self


class Pipeline(Strict):
    """A pipeline file: the builds to make of a checkpoint."""

    schema_id: Literal["edgekiln.pipeline/1"] = Field(
        alias="schema", description="Kind and version of this file.", examples=[SCHEMA]
    )
    name: Text = Field(min_length=1, max_length=100, description="Name for reports.", examples=["nightly"])
    description: Text | None = Field(
        default=None, description="What the pipeline is for.", examples=["Every artifact that we ship"]
    )
    checkpoint: Text | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A model directory, a Hub id like org/name@revision, or tiny-qwen3 (the default).",
        examples=["Qwen/Qwen3-0.6B"],
    )
    settings: Settings = Field(
        default_factory=Settings, description="Settings for all builds.", examples=[{"threads": 4, "windows": 16}]
    )
    builds: tuple[BuildSpec, ...] = Field(
        min_length=1,
        max_length=MAX_BUILDS,
        description="The matrix.",
        examples=[[{"target": "onnx-cpu", "precisions": ["int4", "int8"]}]],
    )


@dataclass(frozen=True)
class PipelineFile:
    """A pipeline file that was read.

    Attributes:
        spec: Its content.
        document: The file: name, sha256 and positions.
    """

    spec: Pipeline
    document: Document

    @property
    def settings(self) -> Layer:
        """Its layer of settings; the `checkpoint` beside the builds is one of them."""
        layer = file_layer(self.document, self.spec.settings)
        if self.spec.checkpoint is None:
            return layer
        where = self.document.where(("checkpoint",), key=True)
        return Layer({**layer.values, "checkpoint": self.spec.checkpoint}, {**layer.origins, "checkpoint": where})


def parse_pipeline(document: Document) -> PipelineFile:
    """Return the pipeline of a document.

    Raises:
        UsageError: It does not fit the schema; one line per problem, with file, line and column.
    """
    spec = validate(document, Pipeline)
    if spec.checkpoint is not None and "checkpoint" in spec.settings.model_fields_set:
        where = document.where(("settings", "checkpoint"), key=True)
        raise UsageError(f"{where}: the checkpoint is given twice, here and beside the builds; remove one")
    return PipelineFile(spec, document)


def load_pipeline(argument: str = "default") -> PipelineFile:
    """Read a pipeline.

    Args:
        argument: Path of a pipeline file, or the name of a shipped pipeline.

    Raises:
        UsageError: There is none, or it does not fit the schema.
    """
    path = Path(argument)
    try:
        is_path = path.name != argument or path.suffix in {".yaml", ".yml"} or path.is_file()
    except OSError as error:
        raise UsageError(f"{argument[:100]!r} is no usable file name: {error.strerror}") from None
    if is_path:
        return parse_pipeline(read_yaml(path))
    return parse_pipeline(replace(read_yaml(shipped(argument)), name=f"{argument}.yaml"))
