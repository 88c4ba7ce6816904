"""What an artifact's weights are stored as, read from the artifact itself."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from edgekiln.model_config import read_json
from edgekiln.validators.gguf_read import read_header
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.structure import decoder_path

#: A data file and an offset in it, or the name of an initializer inside the graph.
_Place: TypeAlias = tuple[str, ...]


def weights_by_type(kind: ArtifactKind) -> dict[str, int]:
    """Return how many weights of matrices lie in each type, e.g. `{"int4": 357_826_560, "fp32": 136_134_656}`.

    GGUF types are named in lower case (`q4_0`, `f16`), and of a split model the first file counts. In ONNX the
    operator that reads a weight says its type (`int4`, `int8`, `nf4`), and matrices of plain numbers are `fp16` or
    `fp32`. A weight that two operators read counts once.

    Raises:
        ArtifactError: The artifact cannot be read.
    """
    return _of_gguf(kind.path) if kind.format == "gguf" else _of_onnx(kind.path)


def main_type(counts: Mapping[str, int]) -> str | None:
    """Return the type that most weights have, or None where there are none."""
    return max(counts, key=lambda name: (counts[name], name), default=None)


def _of_gguf(path: Path) -> dict[str, int]:
    from gguf import GGMLQuantizationType

    counts: Counter[str] = Counter()
    for tensor in read_header(path).tensors:
        if len(tensor.shape) > 1:
            counts[GGMLQuantizationType(tensor.type_id).name.lower()] += math.prod(tensor.shape)
    return dict(counts)


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _quantized_product(node: Any) -> tuple[str, int]:
    """Return type and weights of MatMulNBits or MatMulBnb4."""
    attributes = _attributes(node)
    weights = attributes.get("K", 0) * attributes.get("N", 0)
    if node.op_type == "MatMulNBits":
        return f"int{attributes.get('bits', 4)}", weights
    return "nf4" if attributes.get("quant_type") == 1 else "fp4", weights


def _quantized_table(node: Any, codes: Any) -> tuple[str, int]:
    """Return type and weights of what GatherBlockQuantized looks up; bytes hold 8 / bits codes each."""
    from onnx import TensorProto

    bits = _attributes(node).get("bits", 4)
    packed = 8 // bits if codes.data_type == TensorProto.UINT8 and 0 < bits <= 8 else 1
    return f"int{bits}", math.prod(codes.dims) * packed


def _place(tensor: Any) -> _Place:
    """Return what tells the bytes of an initializer from those of others: tied weights share them under two names."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in fields:
        return (str(tensor.name),)
    return posixpath.normpath(fields["location"]), fields.get("offset", "0")


def _of_onnx(directory: Path) -> dict[str, int]:
    import onnx

    model = onnx.load(decoder_path(directory, read_json(directory / "genai_config.json")), load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in {"MatMulNBits", "MatMulBnb4"}]
    tables = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    counted: dict[_Place, tuple[str, int]] = {}
    for node in products:
        for codes in (stored[name] for name in node.input[1:2] if name in stored):
            counted[_place(codes)] = _quantized_product(node)
    for node in tables:
        for codes in (stored[name] for name in node.input[:1] if name in stored):
            counted.setdefault(_place(codes), _quantized_table(node, codes))
    no_weights = {name for node in (*products, *tables) for name in node.input[2:]} | _rotary(model.graph)
    for tensor in model.graph.initializer:
        if tensor.name not in no_weights and (name := _float_name(tensor)):
            counted.setdefault(_place(tensor), (name, math.prod(tensor.dims)))
    counts: Counter[str] = Counter()
    for name, weights in counted.values():
        counts[name] += weights
    return dict(counts)


def _float_name(tensor: Any) -> str | None:
    """Return the type of a matrix of plain numbers, or None for a vector or anything else."""
    from onnx import TensorProto

    floats = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    return floats.get(tensor.data_type) if len(tensor.dims) > 1 else None


def _rotary(graph: Any) -> set[str]:
    """Return the inputs of attention and rotary embedding: their tables of cosines and sines are no weights."""
    return {
        name for node in graph.node if node.op_type in {"GroupQueryAttention", "RotaryEmbedding"} for name in node.input
    }
