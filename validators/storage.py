"""What an artifact's weights are stored as, read from the artifact itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.validators.gguf_header import read_header
from edgekiln.validators.kinds import ArtifactKind


def weights_by_type(kind: ArtifactKind) -> dict[str, int]:
    """Return how many weights of matrices lie in each type, e.g. `{"int4": 357_826_560, "fp32": 136_134_656}`.

    GGUF types are named in lower case (`q4_0`, `f16`); in ONNX the operator that reads a weight says its type
    (`int4`, `int8`, `nf4`), and matrices of plain numbers are `fp16` or `fp32`. A weight that two operators read
    counts once.

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


def _quantized_node(node: Any) -> tuple[str, int] | None:
    """Return type and weights of a quantized matrix product, or None for another operator."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    match node.op_type:
        case "MatMulNBits":
            return f"int{attributes.get('bits', 4)}", attributes.get("K", 0) * attributes.get("N", 0)
        case "MatMulBnb4":
            name = "nf4" if attributes.get("quant_type") == 1 else "fp4"
            return name, attributes.get("K", 0) * attributes.get("N", 0)
        case _:
            return None


def _of_onnx(directory: Path) -> dict[str, int]:
    import onnx

    from edgekiln.model_config import read_json
    from edgekiln.validators.structure import decoder_path

    model = onnx.load(decoder_path(directory, read_json(directory / "genai_config.json")), load_external_data=False)
    floats = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    scales = {name for node in model.graph.node if _quantized_node(node) for name in node.input[2:]}
    scales |= {name for node in model.graph.node if node.op_type == "GatherBlockQuantized" for name in node.input[2:]}
    # cos and sin tables are no weights: only GroupQueryAttention and RotaryEmbedding read them.
    tables = {
        name
        for node in model.graph.node
        if node.op_type in {"GroupQueryAttention", "RotaryEmbedding"}
        for name in node.input
    }
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in floats and tensor.name not in scales | tables:
            counts[floats[tensor.data_type]] += math.prod(tensor.dims)
    for node in model.graph.node:
        if found := _quantized_node(node):
            counts[found[0]] += found[1]
    return dict(counts)
