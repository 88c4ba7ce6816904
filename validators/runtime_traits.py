"""What an artifact asks of its runtime: the names in it that some release may not know.

Read from the artifact alone, without a byte of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgekiln.errors import ArtifactError
from edgekiln.model_config import read_json
from edgekiln.validators.gguf_read import GgufHeader, read_header
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.onnx_files import decoder_path
from edgekiln.validators.onnx_read import MAX_GRAPH_BYTES
from edgekiln.validators.runtime_support import What

#: Objects of genai_config.json whose keys the runtime checks; the options of sessions and providers go elsewhere.
_CONFIG_OBJECTS: Final = (
    "",
    "model",
    "model.decoder",
    "model.decoder.inputs",
    "model.decoder.outputs",
    "model.decoder.sliding_window",
    "search",
    "engine",
)
#: Domains whose operators the table does not list: ONNX's own go by the opset, the others are ONNX Runtime's inner ones
#: or those of its extensions.
_UNLISTED: Final = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.contrib", "ai.onnx.training", "ai.onnx.preview.training"}
    | {"com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc", "org.pytorch.aten"}
)
_MICROSOFT: Final = "com.microsoft"
#: What ONNX Runtime registers in ONNX's own domain, though ONNX does not have it.
_ADOPTED: Final = frozenset({"SimplifiedLayerNormalization"})
#: Bit widths are told by an attribute, with the default that its schema gives it.
_DEFAULT_BITS: Final = {"MatMulNBits": 4, "GatherBlockQuantized": 4}
#: `accuracy_level` that lets MatMulNBits quantize the activations to int8, a kernel of its own.
_INT8_ACTIVATIONS: Final = 4
_MAGIC_BYTES: Final = 4
#: Vocabularies whose pre-tokenizer llama.cpp looks up by name: `tokenizer.ggml.model` of byte-level BPE.
_BPE: Final = "gpt2"


@dataclass(frozen=True)
class Trait:
    """One name that an artifact uses.

    Attributes:
        what: The list that it belongs to.
        name: As that list has it.
        text: For people: `the architecture qwen3`.
        subject: The first tensor, node or key that uses it.
        count: How many use it.
    """

    what: What
    name: str
    text: str
    subject: str
    count: int = 1


def read_traits(kind: ArtifactKind) -> tuple[Trait, ...]:
    """Return what an artifact asks of its runtime, each name once.

    Raises:
        ArtifactError: It cannot be read.
        CheckpointError: genai_config.json is no JSON object.
    """
    found: dict[tuple[What, str], Trait] = {}
    for trait in _gguf(kind.path) if kind.format == "gguf" else _onnx(kind.path):
        key = (trait.what, trait.name)
        found[key] = replace(found[key], count=found[key].count + 1) if key in found else trait
    return tuple(found.values())


# --- GGUF ---------------------------------------------------------------------------------------------------------


def _gguf(path: Path) -> Iterator[Trait]:
    with path.open("rb") as file:
        version = int.from_bytes(file.read(_MAGIC_BYTES + 4)[_MAGIC_BYTES:], "little")
    yield Trait("gguf_version", str(version), f"version {version} of GGUF", path.name)
    if version in {2, 3}:  # what no release reads, we do not read either
        yield from _header(read_header(path))


def _header(header: GgufHeader) -> Iterator[Trait]:
    from gguf import GGMLQuantizationType

    architecture = header.metadata.get("general.architecture")
    if isinstance(architecture, str):
        yield Trait("architecture", architecture, f"the architecture {_short(architecture)}", "general.architecture")
    pre = header.metadata.get("tokenizer.ggml.pre")
    if header.metadata.get("tokenizer.ggml.model") == _BPE and isinstance(pre, str):
        yield Trait("tokenizer", pre, f"the pre-tokenizer {_short(pre)}", "tokenizer.ggml.pre")
    for tensor in header.tensors:
        name = GGMLQuantizationType(tensor.type_id).name
        yield Trait("tensor_type", name, f"tensors of type {name}", tensor.name)


def _short(text: str) -> str:
    """Return a text of a hostile file at a length that a report can show."""
    return text if len(text) <= 60 else f"{text[:60]}…"


# --- ONNX ---------------------------------------------------------------------------------------------------------


def _onnx(directory: Path) -> Iterator[Trait]:
    genai = read_json(directory / "genai_config.json")
    yield from _config(genai)
    path = decoder_path(directory, genai)
    yield from _graph(_load(path), path, custom=_has_custom_operators(genai))


def _object(genai: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """Return the object at a dotted place of genai_config.json, or None where there is none."""
    value: Any = genai
    for key in place.split(".") if place else ():
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _config(genai: Mapping[str, Any]) -> Iterator[Trait]:
    model_type = (_object(genai, "model") or {}).get("type")
    if isinstance(model_type, str):
        yield Trait("model_type", model_type, f"the model type {_short(model_type)}", "model.type")
    for place in _CONFIG_OBJECTS:
        for key in _object(genai, place) or {}:
            name = f"{place}.{key}" if place else key
            yield Trait("config_key", name, f"the key {_short(name)} of genai_config.json", _short(name))


def _has_custom_operators(genai: Mapping[str, Any]) -> bool:
    options = _object(genai, "model.decoder.session_options") or {}
    return "custom_ops_library" in options


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if (size := path.stat().st_size) > MAX_GRAPH_BYTES:
        raise ArtifactError(f"{path} has {size} bytes, where {MAX_GRAPH_BYTES} are allowed")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{path} is no ONNX model") from None


def _graph(model: Any, path: Path, *, custom: bool) -> Iterator[Trait]:
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            yield Trait("opset", str(entry.version), f"opset {entry.version}", path.name)
    yield Trait("ir_version", str(model.ir_version), f"IR version {model.ir_version}", path.name)
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain == _MICROSOFT or (node.op_type in _ADOPTED and node.domain in {"", "ai.onnx"}):
            yield from _operator(node)
        elif node.domain not in _UNLISTED and not custom:
            name = f"{node.domain}.{node.op_type}"
            yield Trait("operator", name, f"the operator {_short(name)}", _short(node.name))


def _nodes(model: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, of its functions, and of every graph in their attributes."""
    pending = [list(model.graph.node), *(list(function.node) for function in model.functions)]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                pending += [list(attribute.g.node)] if attribute.HasField("g") else []
                pending += [list(graph.node) for graph in attribute.graphs]


def _operator(node: Any) -> Iterator[Trait]:
    operator, subject = str(node.op_type), _short(str(node.name))
    yield Trait("operator", operator, f"the operator {operator}", subject)
    yield Trait("operator_on_cpu", operator, f"a CPU kernel for {operator}", subject)
    if node.domain != _MICROSOFT:
        return
    for attribute in node.attribute:
        name = f"{operator}.{attribute.name}"
        yield Trait("operator_attribute", name, f"the attribute {_short(attribute.name)} of {operator}", subject)
    given = [position for position, value in enumerate(node.input, 1) if value]
    if given:
        yield Trait("operator_inputs", f"{operator}.{given[-1]}", f"{given[-1]} inputs of {operator}", subject)
    if operator in _DEFAULT_BITS:
        yield _form(node, operator, subject)


def _form(node: Any, operator: str, subject: str) -> Trait:
    """Return the bit width of a quantized operator; with int8 activations it is a kernel of its own."""
    values = {attribute.name: int(attribute.i) for attribute in node.attribute}
    bits = values.get("bits", _DEFAULT_BITS[operator])
    name, text = f"{operator}.bits={bits}", f"{operator} with {bits} bits"
    if operator == "MatMulNBits" and bits == 8 and values.get("accuracy_level") == _INT8_ACTIVATIONS:
        name, text = f"{name}.accuracy_level={_INT8_ACTIVATIONS}", f"{text} and int8 activations"
    return Trait("operator_form", name, text, subject)
