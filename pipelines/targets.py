"""The targets file: one profile per device, parsed once into frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StringConstraints, WithJsonSchema

from edgekiln.device import Device
from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.settings import Counts, Settings
from edgekiln.pipelines.shipped import CATALOGUE, shipped
from edgekiln.scheme import LEAST_SPLIT, OPTIONS, GgufSource
from edgekiln.units import parse_size
from edgekiln.validators.gates import Gate, parse_pipeline_gate
from edgekiln.yamlfile import (
    Document,
    Loc,
    Strict,
    Text,
    check_part,
    extended,
    parsed_by,
    read_yaml,
    source_text,
    validate,
)

SCHEMA: Final = "edgekiln.targets/1"
Format: TypeAlias = Literal["onnx", "gguf", "foundry-local"]
Runtime: TypeAlias = Literal["onnxruntime-genai", "onnxruntime-web", "llama.cpp", "openvino-genai", "foundry-local"]
Generic: TypeAlias = Literal["fp16", "int8", "int4", "nf4"]
Machine: TypeAlias = Literal["aarch64", "arm64", "x86_64"]
Figure: TypeAlias = Literal[
    "hardware",
    "runtime",
    "execution_provider",
    "memory",
    "threads",
    "context_length",
    "fp16",
    "int8",
    "int4",
    "nf4",
    "gates",
    "unsupported",
]


@dataclass(frozen=True)
class RuntimeFacts:
    """What Edgekiln knows of a runtime that a target may name.

    Attributes:
        title: Its name for people.
        formats: What it loads.
        package: The Python package that runs its artifacts on this machine.
        stand_in: The runtime whose package that is, where it is another; the version range then speaks of the
            runtime's own versions, which nothing here can check.
    """

    title: str
    formats: tuple[Format, ...]
    package: str
    stand_in: Runtime | None = None


RUNTIMES: Final[Mapping[Runtime, RuntimeFacts]] = MappingProxyType(
    {
        "onnxruntime-genai": RuntimeFacts("ONNX Runtime GenAI", ("onnx",), "onnxruntime-genai"),
        "onnxruntime-web": RuntimeFacts("ONNX Runtime Web", ("onnx",), "onnxruntime-genai", "onnxruntime-genai"),
        "llama.cpp": RuntimeFacts("llama.cpp", ("gguf",), "llama-cpp-python"),
        "openvino-genai": RuntimeFacts("OpenVINO GenAI", ("gguf",), "llama-cpp-python", "llama.cpp"),
        "foundry-local": RuntimeFacts("Foundry Local", ("foundry-local",), "foundry-local-sdk"),
    }
)
#: Names that systems give one and the same instruction set.
_SAME_MACHINE: Final[Mapping[str, str]] = MappingProxyType({"arm64": "aarch64", "amd64": "x86_64"})
#: Names that Windows reserves, with any extension.
_RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)
_NAME_PATTERN: Final = "[a-z0-9]+([.-][a-z0-9]+)*"
_NAME_LENGTH: Final = 40


def _lower(value: object) -> object:
    text = source_text(value)
    return text.lower() if isinstance(text, str) else text


def _target_name(name: str) -> str:
    if len(name) > _NAME_LENGTH or not re.fullmatch(_NAME_PATTERN, name):
        raise ValueError(
            f"{name[:60]!r} cannot name a target; use lower-case letters, digits, single '-' and '.' between them, "
            f"at most {_NAME_LENGTH} characters"
        )
    if name.partition(".")[0] in _RESERVED:
        raise ValueError(f"{name!r} cannot name a target: Windows reserves it as a device name; add a word")
    return name


def _parse_range(text: str) -> str:
    try:
        return str(SpecifierSet(text)) and text
    except InvalidSpecifier:
        raise UsageError(f"{text!r} is no version range; write one like '>=0.18,<0.19' (PEP 440)") from None


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no date; write one like 2026-11-22") from None


def _never(value: object) -> object:
    """Return None for the word `never`; anything else is for the schema to judge."""
    if value == "never":
        return None
    if not isinstance(value, dict):
        wanted = "verified is either never or has a date and a report, like {date: 2026-11-22, report: …}"
        raise ValueError(wanted)  # noqa: TRY004 - pydantic locates these
    return value


#: A precision as written; `Q4_K_M` and `q4_k_m` are the same.
Precision: TypeAlias = Annotated[str, BeforeValidator(_lower), StringConstraints(min_length=1, max_length=40)]
TargetName: TypeAlias = Annotated[
    str,
    AfterValidator(_target_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME_PATTERN}$", "maxLength": _NAME_LENGTH}),
]
GateText: TypeAlias = Annotated[
    Gate,
    PlainValidator(parsed_by(parse_pipeline_gate, "a gate like 'mean_kld <= 0.05'")),
    WithJsonSchema({"type": "string"}),
]
FileSize: TypeAlias = Annotated[
    int,
    PlainValidator(parsed_by(parse_size, "a size like '2 GB'")),
    Field(ge=LEAST_SPLIT),
    WithJsonSchema({"type": ["string", "integer"]}),
]
Size: TypeAlias = Annotated[
    int,
    PlainValidator(parsed_by(parse_size, "a size like '4 GiB'")),
    WithJsonSchema({"type": ["string", "integer"]}),
]
VersionRange: TypeAlias = Annotated[
    str, PlainValidator(parsed_by(_parse_range, "a version range like '>=0.18'")), WithJsonSchema({"type": "string"})
]
GroupSize: TypeAlias = Annotated[int, Field(ge=1, le=65_536)]
Pattern: TypeAlias = Annotated[Text, Field(min_length=1, max_length=500)]


class RuntimeSpec(Strict):
    """The program that loads the artifact on the device."""

    name: Runtime = Field(description="The runtime.", examples=["onnxruntime-genai", "llama.cpp"])
    version: VersionRange = Field(
        description="Versions that the artifact must work with, as a PEP 440 range of the runtime's Python package "
        "(onnxruntime-genai, llama-cpp-python, foundry-local-sdk); of the runtime itself where it has none "
        "(onnxruntime-web, openvino-genai).",
        examples=[">=0.18,<0.19"],
    )

    @property
    def facts(self) -> RuntimeFacts:
        """What Edgekiln knows of the runtime."""
        return RUNTIMES[self.name]

    def accepts(self, version: str) -> bool:
        """Tell whether a version, pre-releases included, lies in the range; what is no version does not."""
        try:
            return SpecifierSet(self.version).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False


class SchemeOptions(Strict):
    """How weights are stored, beside their precision; what is left out is the target's, then the container's own."""

    group_size: GroupSize | None = Field(
        default=None, description="Weights that share a scale: 16 to 256 in ONNX, 32 in GGUF.", examples=[32, 128]
    )
    symmetric: bool | None = Field(
        default=None, description="false adds zero points (in GGUF minima).", examples=[True, False]
    )
    embedding_precision: Precision | None = Field(
        default=None, description="Precision of the embeddings.", examples=["int8"]
    )
    head_precision: Precision | None = Field(
        default=None, description="Precision of the output head.", examples=["int8"]
    )
    embedding_group_size: GroupSize | None = Field(
        default=None, description="Weights of embeddings and head that share a scale.", examples=[64]
    )
    overrides: dict[Pattern, Precision] | None = Field(
        default=None,
        max_length=1000,
        description="Precisions of single matrices, by the checkpoint's name: * stands for anything, {0,23} for one of "
        "a list. The last pattern that matches decides.",
        examples=[{"model.layers.{0,23}.mlp.down_proj": "int8"}],
    )
    accuracy_level: Annotated[int, Field(ge=0, le=4)] | None = Field(
        default=None,
        description="What ONNX Runtime's MatMulNBits computes in: 0 and 1 float32, 2 float16, 3 bfloat16, 4 int8 where "
        "there is a kernel for it.",
        examples=[4],
    )
    gguf_source: GgufSource | None = Field(
        default=None,
        description="What GGUF types are quantized from: the checkpoint's own weights, or these rounded to fp16, as "
        "llama.cpp's two steps do.",
        examples=["source", "f16"],
    )
    split_max_size: FileSize | None = Field(
        default=None,
        description="Most tensor data that one file of the artifact may have; a larger tensor has a file of its own.",
        examples=["2 GB"],
    )

    def given(self) -> dict[str, Any]:
        """Return the options that are given, as `Scheme` has them."""
        values = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        if self.overrides is not None:
            values["overrides"] = tuple(self.overrides.items())
        return values


class Meaning(SchemeOptions):
    """What a generic precision means on a target."""

    container: Precision | None = Field(
        default=None,
        description="Precision as the container names it; without it the generic name, as the format takes it.",
        examples=["q4_k_m", "int4"],
    )
    unsupported: Text | None = Field(
        default=None,
        min_length=1,
        description="Why this precision cannot run on the target, and what to use instead.",
        examples=["the WebGPU provider has no MatMulBnb4; use int4"],
    )
    why: Text = Field(
        min_length=1, description="The reason for this choice.", examples=["the kernels of Arm CPUs repack Q4_0"]
    )


class Hardware(Strict):
    """Which machine the target is, so that absolute limits on speed and memory are judged on it alone."""

    machine: Machine = Field(
        description="Instruction set; aarch64 and arm64 are the same.", examples=["aarch64", "x86_64"]
    )
    processor: tuple[Text, ...] = Field(
        min_length=1,
        description="Texts of which one is part of the machine's name as the system gives it: the processor's model "
        "name, or the board's; case does not matter.",
        examples=[["Raspberry Pi 5"], ["Apple M4"]],
    )


class Source(Strict):
    """Where a figure comes from."""

    title: Text = Field(
        min_length=1,
        description="The document: a specification, the runtime's documentation, or a measurement.",
        examples=["ONNX Runtime: Working with Large Models"],
    )
    url: Text | None = Field(
        default=None,
        pattern=r"^https?://[^\s]+$",
        description="Its address; without it the title says where to look.",
        examples=["https://onnxruntime.ai/docs/tutorials/web/large-models.html"],
    )
    why: Text | None = Field(
        default=None,
        min_length=1,
        description="What the document says, and how the figure follows from it.",
        examples=["8 GB in all; half of it, since the system and the application need the rest"],
    )


class Verified(Strict):
    """When artifacts for the target ran on the device itself, and where that is shown."""

    date: Annotated[
        str,
        PlainValidator(parsed_by(_date, "a date like 2026-11-22")),
        WithJsonSchema({"type": "string", "format": "date"}),
    ] = Field(description="The day.", examples=["2026-11-22"])
    report: Text = Field(
        min_length=1, description="Path or address of the report that shows it.", examples=["docs/reports/pi-5.json"]
    )


class TargetSpec(Strict):
    """One device profile, as the file has it under its name."""

    extends: Text | None = Field(
        default=None,
        description="Name of a target or template whose keys hold where this one has none of its own; mappings are "
        "merged key by key, lists and scalars replaced.",
        examples=["arm-phone"],
    )
    description: Text = Field(
        min_length=1, description="The device, in one line.", examples=["Raspberry Pi 5, 8 GB, Raspberry Pi OS"]
    )
    format: Format = Field(description="Container that the runtime loads.", examples=["onnx", "gguf"])
    runtime: RuntimeSpec = Field(
        description="Runtime and its versions.", examples=[{"name": "llama.cpp", "version": ">=0.3.36"}]
    )
    execution_provider: Text = Field(
        default="cpu",
        pattern=r"^[a-z][a-z0-9-]{0,31}$",
        description="Where the runtime computes on the device: cpu, or what the format's exporter serves beside it.",
        examples=["cpu", "cuda", "webgpu", "metal"],
    )
    hardware: Hardware | None = Field(
        default=None,
        description="The machine that this target is; without it any machine is, as for generic targets.",
        examples=[{"machine": "aarch64", "processor": ["Raspberry Pi 5"]}],
    )
    memory: Size | None = Field(
        default=None,
        description="All that a process with the model may take on the device: weights, key-value cache at "
        "context_length, and the runtime.",
        examples=["4 GiB"],
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Threads of the runtime; without it all physical cores.", examples=[4]
    )
    context_length: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Tokens of context to plan for; without it the model's own.",
        examples=[4096],
    )
    batch_sizes: Counts = Field(
        default=(),
        description="Numbers of sequences that the device serves side by side; decode speed is measured at each.",
        examples=[[4, 8]],
    )
    precisions: Mapping[Generic, Meaning] = Field(
        default_factory=dict,
        description="What int8, int4, nf4 and fp16 mean here; one that is missing means what the format makes of it.",
        examples=[{"int4": {"container": "q4_0", "why": "Arm kernels repack it"}}],
    )
    gates: tuple[GateText, ...] = Field(
        default=(),
        description="Limits for every build for this target; each replaces the default on the same metric, if relative "
        "as it is.",
        examples=[["decode_tokens_per_second >= 0.9 * fp16_artifact", "size_bytes <= 350 MB"]],
    )
    sources: Mapping[Figure, Source] = Field(
        default_factory=dict,
        description="Where the figures come from, by the key that has them.",
        examples=[{"memory": {"title": "Raspberry Pi 5 product brief", "why": "half of 8 GB"}}],
    )
    verified: Annotated[
        Verified | None,
        BeforeValidator(_never),
        WithJsonSchema(
            {
                "anyOf": [
                    {"const": "never"},
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            name: {"type": "string", "description": field.description, "examples": field.examples}
                            for name, field in Verified.model_fields.items()
                        },
                        "required": list(Verified.model_fields),
                    },
                ]
            }
        ),
    ] = Field(
        default=None,
        description="never, or the day on which artifacts ran on the device itself and the report that shows it.",
        examples=["never", {"date": "2026-11-22", "report": "docs/reports/pi-5.json"}],
    )
    unsupported: Text | None = Field(
        default=None,
        min_length=1,
        description="Why nothing can be exported for this target, and the way out.",
        examples=["the NPU needs the vendor's SDK; export for the CPU instead"],
    )

    def meaning(self, precision: str) -> Meaning | None:
        """Return what a precision means here; None where the file says nothing about it."""
        return next((meaning for name, meaning in self.precisions.items() if name == precision), None)


class Target(TargetSpec):
    """One device profile with its name."""

    name: str

    @property
    def device(self) -> Device:
        """What an exporter needs to know of the target."""
        return Device(self.execution_provider, self.context_length)

    @property
    def stand_in(self) -> str | None:
        """What validates here in place of what runs on the device; None where it is the same."""
        facts = self.runtime.facts
        here = RUNTIMES[facts.stand_in].title if facts.stand_in else facts.title
        if facts.stand_in is None and self.execution_provider == "cpu":
            return None
        return f"{here} on this machine's CPU stands in for {facts.title} on {self.execution_provider}"

    def is_this_machine(self, machine: str, processor: str) -> bool:
        """Tell whether a machine is the target, so that absolute speeds measured on it count.

        It never is where another runtime or provider stands in for the target's.

        Args:
            machine: Instruction set, as `platform.machine()` gives it.
            processor: Names of processor and board, as `edgekiln.host.hardware_names` gives them.
        """
        if self.stand_in is not None:
            return False
        if self.hardware is None:
            return True
        wanted, found = (_SAME_MACHINE.get(name.lower(), name.lower()) for name in (self.hardware.machine, machine))
        return wanted == found and any(text.lower() in processor.lower() for text in self.hardware.processor)


class TargetsSpec(Strict):
    """A targets file: the devices that artifacts are made for."""

    schema_id: Literal["edgekiln.targets/1"] = Field(
        alias="schema", description="Kind and version of this file.", examples=[SCHEMA]
    )
    settings: Settings = Field(
        default_factory=Settings,
        description="Settings for all builds with these targets; the pipeline's go over them.",
        examples=[{"repeats": 5}],
    )
    shared: Any = Field(
        default=None,
        description="Anything; a place for YAML anchors that targets refer to.",
        examples=[{"cpu": {"execution_provider": "cpu"}}],
    )
    templates: Mapping[TargetName, Any] = Field(
        default_factory=dict,
        description="Parts of device profiles by name, for targets and other templates to extend.",
        examples=[{"arm-phone": {"format": "gguf", "runtime": {"name": "llama.cpp", "version": ">=0.3.36"}}}],
    )
    targets: Mapping[TargetName, TargetSpec] = Field(
        min_length=1,
        description="Device profiles by name: lower-case letters, digits, '-' and '.', at most 40 characters.",
        examples=[
            {
                "pi-5": {
                    "description": "Raspberry Pi 5",
                    "format": "gguf",
                    "runtime": {"name": "llama.cpp", "version": ">=0.3.36"},
                }
            }
        ],
    )


@dataclass(frozen=True)
class TargetsFile:
    """A targets file that was read.

    Attributes:
        targets: Profiles by name, in the order of the file.
        settings: Its settings block.
        document: The file: name, sha256 and positions.
        is_shipped: It is the catalogue that comes with Edgekiln.
    """

    targets: Mapping[str, Target]
    settings: Settings
    document: Document
    is_shipped: bool = False

    @property
    def name(self) -> str:
        """The file as reports name it."""
        return f"{CATALOGUE} (shipped)" if self.is_shipped else self.document.name

    def where(self, loc: Loc, *, key: bool = False) -> str:
        """Return `file:line:column` of what stands at `loc`, as plans name it."""
        position = self.document.position(loc, key=key)
        name = CATALOGUE if self.is_shipped else self.document.name
        return f"{name}:{position.line}:{position.column}"

    def get(self, name: str) -> Target:
        """Return a profile.

        Raises:
            UsageError: There is none of that name.
        """
        if name not in self.targets:
            raise UsageError(f"unknown target {name!r} in {self.name}; {nearest(name, self.targets)}")
        return self.targets[name]


def _check(document: Document, spec: TargetsSpec) -> None:
    """Check what no single field shows."""
    if "targets" in spec.settings.model_fields_set:
        where = document.where(("settings", "targets"), key=True)
        raise UsageError(f"{where}: a targets file cannot name another; remove 'targets' from its settings")
    for name, target in spec.targets.items():
        if target.format not in target.runtime.facts.formats:
            allowed = [runtime for runtime, facts in RUNTIMES.items() if target.format in facts.formats]
            where = document.where(("targets", name, "runtime", "name"))
            raise UsageError(
                f"{where}: {target.runtime.name} does not load {target.format}; choose one of {', '.join(allowed)}"
            )


def parse_targets(document: Document, *, is_shipped: bool = False) -> TargetsFile:
    """Return the targets of a document that was read from a targets file.

    Raises:
        UsageError: It does not fit the schema; one line per problem, with file, line and column.
    """
    document = extended(document, "targets", "templates")
    spec = validate(document, TargetsSpec)
    for name in spec.templates:
        check_part(document, ("templates", name), TargetSpec)
    _check(document, spec)
    targets = {
        name: Target.model_construct(target.model_fields_set | {"name"}, name=name, **dict(target))
        for name, target in spec.targets.items()
    }
    return TargetsFile(MappingProxyType(targets), spec.settings, document, is_shipped)


def load_targets(path: Path | None = None) -> TargetsFile:
    """Read a targets file: `path`, else `./targets.yaml` if there is one, else the shipped one.

    Raises:
        UsageError: It cannot be read or does not fit the schema.
    """
    if path is None and Path(CATALOGUE).is_file():
        path = Path(CATALOGUE)
    if path is not None:
        return parse_targets(read_yaml(path))
    return parse_targets(read_yaml(shipped(CATALOGUE)), is_shipped=True)
