"""Structural checks: is the artifact complete, well-formed, and of the reference's shape?

Everything is read from the artifact itself; a check that finds something wrong reports it and the others go on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.model_config import ModelConfig, read_json
from edgekiln.validators.base import CheckResult
from edgekiln.validators.gguf_read import GgufHeader, read_header
from edgekiln.validators.kinds import ArtifactKind

#: Float32 metadata cannot hold 1e-06 exactly.
_FLOAT_TOLERANCE: Final = 1e-5
#: llama.cpp's default where a file has no `rope.freq_base`.
_DEFAULT_ROPE_BASE: Final = 10000.0
_MISSING: Final = object()
#: A part of a data file: its path with links followed, the first byte, the number of bytes.
_Region: TypeAlias = tuple[Path, int, int]
#: No file system of ours takes a longer path; 255 bytes is what most take for a name.
_MAX_PATH: Final = 1024
#: Far more than any operator takes; it bounds the arithmetic on a hostile shape.
_MAX_DIMENSIONS: Final = 64
_MAX_ELEMENTS: Final = 1 << 62
#: An offset or length as ONNX writes it: 19 digits hold any 64-bit number.
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
#: Operators that only ONNX Runtime knows, though it registers them as ONNX's own.
_RUNTIME_OPERATORS: Final = frozenset({"SimplifiedLayerNormalization"})


@dataclass(frozen=True)
class Structure:
    """What the structural checks found.

    Attributes:
        checks: One result per check.
        weights_bytes: Bytes of all tensors, shared ones once; None when not all of the artifact is read.
    """

    checks: tuple[CheckResult, ...]
    weights_bytes: int | None


class _Comparison:
    """Collects what differs between the artifact's metadata and the reference's config."""

    def __init__(self) -> None:
        self.compared = 0
        self.problems: list[str] = []

    def equal(self, key: str, found: object, expected: object, *, required: bool = True) -> None:
        """Compare one value; a missing one is a problem only if it is `required`."""
        if found is None or found is _MISSING:
            if required:
                self.problems.append(f"{key} is missing, but must be {expected!r}")
            return
        self.compared += 1
        if isinstance(expected, float) and isinstance(found, int | float):
            same = math.isclose(found, expected, rel_tol=_FLOAT_TOLERANCE)
        else:
            same = type(found) is type(expected) and found == expected
        if not same:
            self.problems.append(f"{key} is {found!r}, but the reference has {expected!r}")

    def context(self, key: str, found: object, limit: int) -> None:
        """A shorter context is a target's choice; a longer one is not the model's."""
        self.compared += 1
        if type(found) is not int or not 0 < found <= limit:
            self.problems.append(f"{key} is {found!r}, but must be between 1 and the reference's {limit}")

    def result(self, check: str) -> CheckResult:
        if self.problems:
            return CheckResult(check, "fail", "; ".join(self.problems))
        return CheckResult(check, "pass", f"{self.compared} values agree with config.json")


def _guarded(check: str, action: Callable[[], CheckResult]) -> CheckResult:
    """Run one check; a file that cannot be read is a failure of that check, not of the validation.

    ValueError is what a text of a protobuf raises that is not UTF-8, and JSON with an endless number.
    """
    try:
        return action()
    except (ArtifactError, CheckpointError, OSError, ValueError) as error:
        return CheckResult(check, "fail", str(error))


# --- GGUF ---------------------------------------------------------------------------------------------------------


def _gguf_bounds(path: Path, header: GgufHeader) -> CheckResult:
    check = "gguf/bounds"
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    for tensor in ordered:
        if tensor.offset + tensor.nbytes > header.file_size:
            end = tensor.offset + tensor.nbytes
            detail = f"{path.name} has {header.file_size} bytes, but {tensor.name} ends at byte {end}"
            return CheckResult(check, "fail", detail)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            return CheckResult(check, "fail", f"{before.name} and {after.name} overlap in {path.name}")
    if len({tensor.name for tensor in ordered}) != len(ordered):
        return CheckResult(check, "fail", f"{path.name} has two tensors of one name")
    return CheckResult(check, "pass", f"{len(ordered)} tensors within {header.file_size} bytes")


def _gguf_reread(path: Path, header: GgufHeader) -> CheckResult:
    """Read the file with gguf's own reader, which must see the same tensors."""
    from gguf import GGUFReader

    check = "gguf/reader"
    try:
        tensors = {str(t.name): (int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(path).tensors}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        return CheckResult(check, "fail", f"gguf's reader refuses {path.name}: {error}")
    if tensors != {tensor.name: (tensor.offset, tensor.nbytes) for tensor in header.tensors}:
        return CheckResult(check, "fail", f"gguf's reader sees other tensors in {path.name} than its header lists")
    return CheckResult(check, "pass", f"gguf's reader finds the same {len(tensors)} tensors")


def _is_split(header: GgufHeader) -> bool:
    """Tell a file that holds a part of the tensors; what it has says little about the rest."""
    return header.metadata.get("split.count", 1) not in {0, 1}


def _gguf_metadata(header: GgufHeader, config: ModelConfig, architecture: str) -> CheckResult:
    """Compare the hyper-parameters; defaults for missing keys are llama.cpp's own."""
    values, comparison = header.metadata, _Comparison()
    comparison.equal("general.architecture", values.get("general.architecture"), architecture)

    def key(name: str, expected: object, default: object = None) -> None:
        full = f"{architecture}.{name}"
        comparison.equal(full, values.get(full, default), expected)

    key("block_count", config.num_layers)
    key("embedding_length", config.hidden_size)
    key("feed_forward_length", config.intermediate_size)
    key("attention.head_count", config.num_heads)
    key("attention.head_count_kv", config.num_kv_heads, config.num_heads)
    default_head = config.hidden_size // config.num_heads
    key("attention.key_length", config.head_dim, default_head)
    key("attention.value_length", config.head_dim, default_head)
    key("attention.layer_norm_rms_epsilon", float(config.rms_norm_eps))
    key("rope.freq_base", float(config.rope_theta), _DEFAULT_ROPE_BASE)
    comparison.context(
        f"{architecture}.context_length", values.get(f"{architecture}.context_length"), config.max_position_embeddings
    )
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    rows = embedding and embedding.shape[0]
    comparison.equal("rows of token_embd.weight", rows, config.vocab_size, required=not _is_split(header))
    tokens = values.get("tokenizer.ggml.tokens")
    comparison.equal("length of tokenizer.ggml.tokens", getattr(tokens, "length", None), config.vocab_size)
    eos = values.get("tokenizer.ggml.eos_token_id")
    if config.eos_token_ids and eos not in config.eos_token_ids:
        expected = " or ".join(map(str, config.eos_token_ids))
        comparison.problems.append(f"tokenizer.ggml.eos_token_id is {eos!r}, but the reference ends with {expected}")
    return comparison.result("gguf/metadata")


def _split_files(path: Path, header: GgufHeader) -> CheckResult:
    """A split model is loaded by its first file; llama.cpp finds the others by its naming rule."""
    if not _is_split(header):
        return CheckResult("files", "pass", f"{path.name}, {header.file_size} bytes")
    parts = header.metadata["split.count"]
    if type(parts) is not int or parts < 0:
        return CheckResult("files", "fail", f"split.count of {path.name} is {parts!r}, which is no number of files")
    return CheckResult("files", "not_measured", f"{path.name} is the first of {parts} files; the others are not read")


def _check_gguf(kind: ArtifactKind, config: ModelConfig, architecture: str) -> Structure:
    path = kind.path
    try:
        header = read_header(path)
    except ArtifactError as error:
        return Structure((CheckResult("gguf/header", "fail", str(error)),), None)
    checks = (
        _split_files(path, header),
        _gguf_bounds(path, header),
        _gguf_reread(path, header),
        _gguf_metadata(header, config, architecture),
    )
    return Structure(checks, None if _is_split(header) else sum(tensor.nbytes for tensor in header.tensors))


# --- ONNX ---------------------------------------------------------------------------------------------------------


def decoder_path(directory: Path, genai: Mapping[str, Any]) -> Path:
    """Return the decoder's graph, which must lie inside the directory."""
    decoder = genai.get("model", {}).get("decoder", {}) if isinstance(genai.get("model"), dict) else {}
    name = decoder.get("filename", "model.onnx") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or _inside(directory, directory, name) is None:
        raise ArtifactError(f"genai_config.json names the decoder {name!r}, which is no file inside the directory")
    if not (directory / name).is_file():
        raise ArtifactError(f"{name} is missing, though genai_config.json names it as the decoder")
    return directory / name


def _inside(root: Path, folder: Path, name: str) -> Path | None:
    """Return what `name` in `folder` is, links followed, or None where that leaves `root` or is no path at all."""
    if not 0 < len(name) <= _MAX_PATH or Path(name).is_absolute():
        return None
    try:
        resolved = (folder / name).resolve()
        return resolved if resolved.is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        return None


def _initializers(graph: Any) -> Iterator[Any]:
    """Yield the initializers of a graph and of every graph in its nodes' attributes, and their external tensors."""
    from onnx import TensorProto

    pending = [graph]
    while pending:
        current = pending.pop()
        yield from current.initializer
        for node in current.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += list(attribute.graphs)
                constants = (attribute.t, *attribute.tensors)
                yield from (tensor for tensor in constants if tensor.data_location == TensorProto.EXTERNAL)


def tensor_nbytes(tensor: Any) -> int:
    """Return the bytes that a tensor's type and shape need.

    Raises:
        ArtifactError: The type is unknown, or the shape impossible.
    """
    from onnx import TensorProto, helper

    if len(tensor.dims) > _MAX_DIMENSIONS:
        raise ArtifactError(f"{tensor.name} has {len(tensor.dims)} dimensions, where {_MAX_DIMENSIONS} are allowed")
    elements = math.prod(tensor.dims)
    if any(extent < 0 for extent in tensor.dims) or elements > _MAX_ELEMENTS:
        raise ArtifactError(f"{tensor.name} has the impossible shape {list(tensor.dims)}")
    sub_byte = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}
    try:
        bits = sub_byte.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{tensor.name} has the unknown data type {tensor.data_type}") from None
    return int(-(-elements * bits // 8))


def _number(tensor: Any, key: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ArtifactError(f"{tensor.name} has the {key} {text[:40]!r}, which is no number of bytes")
    return int(text)


def _external_region(root: Path, folder: Path, tensor: Any, nbytes: int) -> _Region:
    """Return where a tensor of `nbytes` bytes lies.

    Args:
        root: The artifact, which data files must not leave.
        folder: Of the model file; data files are named relative to it.
        tensor: A TensorProto with external data.
        nbytes: What its type and shape need.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(value, str) for value in fields.values()):  # protobuf gives text that is not UTF-8 as bytes
        raise ArtifactError(f"{tensor.name} lies in a file whose name is not UTF-8")
    location = fields.get("location", "")
    offset = _number(tensor, "offset", fields.get("offset", "0"))
    length = _number(tensor, "length", fields.get("length", str(nbytes)))
    path = _inside(root, folder, location)
    if path is None:
        raise ArtifactError(f"{tensor.name} points to {location[:200]!r}, outside the artifact's directory")
    if not path.is_file():
        raise ArtifactError(f"{location} is missing, though {tensor.name} lies in it")
    size = path.stat().st_size
    if length != nbytes or offset + length > size:
        raise ArtifactError(
            f"{tensor.name} needs {nbytes} bytes at byte {offset} of {location}, "
            f"which has {size} bytes (the graph says {length})"
        )
    return path, offset, length


def external_regions(root: Path, folder: Path, model: Any) -> tuple[dict[_Region, str], int]:
    """Return the regions of data files that tensors lie in, and the bytes of the tensors inside the graph.

    Raises:
        ArtifactError: A region is outside the artifact, its file, or of another length than its tensor.
    """
    from onnx import TensorProto

    regions: dict[_Region, str] = {}
    inline = 0
    for tensor in _initializers(model.graph):
        nbytes = tensor_nbytes(tensor)
        if tensor.data_location != TensorProto.EXTERNAL:
            inline += nbytes
        else:
            regions[_external_region(root, folder, tensor, nbytes)] = tensor.name
    return regions, inline


def _overlap(regions: Mapping[_Region, str]) -> str | None:
    """Return a sentence on two tensors that share a part, but not all, of their bytes."""
    ordered = sorted(regions)
    for (file, start, length), after in itertools.pairwise(ordered):
        if file == after[0] and start + length > after[1]:
            return f"{regions[file, start, length]} and {regions[after]} overlap in {file.name}"
    return None


def _onnx_checker(directory: Path, model: Any) -> CheckResult:
    """Run ONNX's checker on the graph; it looks for data files relative to the working directory.

    ONNX Runtime registers `_RUNTIME_OPERATORS` in ONNX's own domain, where the checker refuses them; in any other
    domain it leaves operators to the runtime.
    """
    import onnx

    judged = onnx.ModelProto()
    judged.CopyFrom(model)
    moved = [node for node in judged.graph.node if not node.domain and node.op_type in _RUNTIME_OPERATORS]
    for node in moved:
        node.domain = "com.microsoft"
    if moved and all(entry.domain != "com.microsoft" for entry in judged.opset_import):
        judged.opset_import.add(domain="com.microsoft", version=1)
    try:
        with contextlib.chdir(directory):
            onnx.checker.check_model(judged)
    except (onnx.checker.ValidationError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return CheckResult("onnx/checker", "fail", f"the ONNX checker refuses the graph: {reason}")
    return CheckResult("onnx/checker", "pass", f"the ONNX checker accepts the graph of {len(judged.graph.node)} nodes")


def _onnx_outputs(model: Any, config: ModelConfig) -> CheckResult:
    """The logits' last dimension is the vocabulary, the caches are those of the layers."""
    comparison = _Comparison()
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.output}
    logits = shapes.get("logits")
    if logits and logits[-1] != 0:  # 0: a symbolic dimension
        comparison.equal("vocabulary of the logits", logits[-1], config.vocab_size)
    caches = sum(len(shape) == 4 for shape in shapes.values())
    comparison.equal("number of key and value caches", caches or None, 2 * config.num_layers, required=False)
    return comparison.result("onnx/outputs")


def _genai_config(genai: Mapping[str, Any], config: ModelConfig, genai_type: str) -> CheckResult:
    comparison = _Comparison()
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        return CheckResult("onnx/genai_config", "fail", "genai_config.json has no 'model' with a 'decoder'")
    comparison.equal("model.type", model.get("type"), genai_type)
    comparison.equal("model.vocab_size", model.get("vocab_size"), config.vocab_size)
    comparison.equal("decoder.num_hidden_layers", decoder.get("num_hidden_layers"), config.num_layers)
    comparison.equal("decoder.num_key_value_heads", decoder.get("num_key_value_heads"), config.num_kv_heads)
    comparison.equal("decoder.head_size", decoder.get("head_size"), config.head_dim)
    comparison.equal("decoder.hidden_size", decoder.get("hidden_size"), config.hidden_size, required=False)
    comparison.equal(
        "decoder.num_attention_heads", decoder.get("num_attention_heads"), config.num_heads, required=False
    )
    comparison.context("model.context_length", model.get("context_length"), config.max_position_embeddings)
    eos = model.get("eos_token_id")
    listed = eos if isinstance(eos, list) else [eos]
    if missing := [token for token in config.eos_token_ids if token not in listed]:
        comparison.problems.append(
            f"model.eos_token_id is {eos!r}, but lacks {missing}, which end a turn in the reference"
        )
    return comparison.result("onnx/genai_config")


def _inference_model(directory: Path) -> CheckResult:
    """Foundry Local's cache contract: a string `Name`, and no download under way."""
    check = "foundry/inference_model"
    name = read_json(directory / "inference_model.json").get("Name")
    if not isinstance(name, str) or not name:
        return CheckResult(check, "fail", f"inference_model.json has the Name {name!r}; it must be a text")
    if (directory / "download.tmp").exists():
        return CheckResult(check, "fail", "download.tmp lies beside it: Foundry Local takes the model for unfinished")
    return CheckResult(check, "pass", f"inference_model.json names {name!r}")


def _onnx_files(directory: Path, model_path: Path, model: Any) -> tuple[CheckResult, int]:
    regions, inline = external_regions(directory, model_path.parent, model)
    if (sentence := _overlap(regions)) is not None:
        return CheckResult("files", "fail", sentence), 0
    if not (directory / "tokenizer.json").is_file():
        return CheckResult("files", "fail", "tokenizer.json is missing: ORT GenAI cannot read text without it"), 0
    stored = inline + sum(length for _, _, length in regions)
    return CheckResult("files", "pass", f"{model_path.name} and {len(regions)} tensors in its data files"), stored


def _check_onnx(kind: ArtifactKind, config: ModelConfig, genai_type: str) -> Structure:
    import onnx
    from google.protobuf.message import DecodeError

    directory = kind.path
    try:
        genai = read_json(directory / "genai_config.json")
        model_path = decoder_path(directory, genai)
        model = onnx.load(model_path, load_external_data=False)
        files, weights_bytes = _onnx_files(directory, model_path, model)
    except DecodeError:
        return Structure((CheckResult("files", "fail", "the decoder is no ONNX model"),), None)
    except (ArtifactError, CheckpointError, OSError, ValueError) as error:  # as `_guarded` has it
        return Structure((CheckResult("files", "fail", str(error)),), None)
    checks = [
        files,
        _guarded("onnx/checker", lambda: _onnx_checker(model_path.parent, model)),
        _guarded("onnx/outputs", lambda: _onnx_outputs(model, config)),
        _genai_config(genai, config, genai_type),
    ]
    if kind.format == "foundry-local":
        checks.append(_guarded("foundry/inference_model", lambda: _inference_model(directory)))
    return Structure(tuple(checks), weights_bytes or None)


def check_structure(kind: ArtifactKind, config: ModelConfig, *, architecture: str, genai_type: str) -> Structure:
    """Return every structural check of an artifact against the reference's configuration.

    Args:
        kind: What `identify` said.
        config: The reference's.
        architecture: `general.architecture` that GGUF has for this family.
        genai_type: `model.type` that ORT GenAI has for this family.
    """
    if kind.format == "gguf":
        return _check_gguf(kind, config, architecture)
    return _check_onnx(kind, config, genai_type)
