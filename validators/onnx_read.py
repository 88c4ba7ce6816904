"""Bounded reading of an ONNX graph without its data: operators, and what each weight is stored as.

A weight is what one operator reads as one matrix: the codes of MatMulNBits with their scales and zero points count
together, under the name of the codes. The type is told by the operator, not by a name.
"""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from edgekiln.errors import ArtifactError
from edgekiln.validators.onnx_files import external_regions, tensor_nbytes

#: A graph with its data beside it has a few megabytes; one with the data inside is no artifact for a device.
MAX_GRAPH_BYTES: Final = 256 << 20
Role: TypeAlias = Literal["embedding", "matrix", "vector", "constant"]
#: Inputs of a quantized operator that belong to its codes.
_PRODUCTS: Final = frozenset({"MatMulNBits", "MatMulBnb4"})
#: Inputs of QMoE: the codes of each matrix, behind which its scales are, and its zero points.
QMOE_INPUTS: Final = ((2, 11), (5, 12), (8, 13))
_LOOKUPS: Final = frozenset({"GatherBlockQuantized", "Gather"})
_FLOATS: Final = frozenset({"float32", "float16", "bfloat16", "float64"})


@dataclass(frozen=True)
class OnnxTensor:
    """A weight, or a constant of the graph.

    Attributes:
        name: Of the initializer; of the codes, where it has several.
        shape: [rows, columns] of a quantized matrix, else as stored.
        type: `int4 g32 sym`, `nf4 g64`, `float16`, `int64` …
        role: `embedding` is looked up, `constant` is no weight (shapes, masks, rotary tables).
        nbytes: With scales and zero points; 0 where the bytes are those of another tensor.
        shared: Whether they are.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    role: Role
    nbytes: int
    shared: bool = False

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX file without its data.

    Attributes:
        ir_version: Of the file.
        opsets: Version by domain; ONNX's own is `ai.onnx`.
        producer: Name and version, as the file says.
        operators: How many nodes there are of each, those of other domains with their domain.
        tensors: Weights and constants.
        problem: What is wrong with its data files; None when nothing is.
    """

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    operators: Mapping[str, int]
    tensors: tuple[OnnxTensor, ...]
    problem: str | None


def read_graph(root: Path, path: Path) -> OnnxGraph:
    """Return what an ONNX file holds.

    Args:
        root: The artifact's directory, which data files must not leave.
        path: The ONNX file inside it.

    Raises:
        ArtifactError: It is too large, no ONNX file, or has an impossible tensor.
    """
    import onnx
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if size > MAX_GRAPH_BYTES:
        raise ArtifactError(
            f"{path} has {size} bytes, where {MAX_GRAPH_BYTES} are allowed; store its weights in a data file beside it"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{path} is no ONNX model") from None
    if not model.HasField("graph"):
        raise ArtifactError(f"{path} is no ONNX model: it has no graph")
    try:
        return _graph(root, path, model)
    except (ValueError, TypeError) as error:  # a text that is not UTF-8, an attribute of another type
        raise ArtifactError(f"{path} is no sound ONNX model: {error}") from None


def _graph(root: Path, path: Path, model: Any) -> OnnxGraph:
    opsets = {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import}
    operators = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in {"", "ai.onnx"} else str(node.op_type)
        for node in model.graph.node
    )
    try:
        external_regions(root, path.parent, model)
        problem = None
    except ArtifactError as error:
        problem = str(error)
    return OnnxGraph(
        int(model.ir_version),
        MappingProxyType(opsets),
        f"{model.producer_name} {model.producer_version}".strip(),
        MappingProxyType(dict(operators.most_common())),
        tuple(_Weights(model.graph).collect()),
        problem,
    )


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: int(attribute.i) for attribute in node.attribute}


def expert_bits(attributes: Mapping[str, int], number: int) -> int:
    """Return the bits of the codes of a QMoE's matrix, which are counted from 1."""
    return attributes.get(f"fc{number}_expert_weight_bits", 0) or attributes.get("expert_weight_bits", 4)


def _place(tensor: Any) -> tuple[str, ...]:
    """Return what tells the bytes of an initializer from those of others."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location")
    return (posixpath.normpath(location), fields.get("offset", "0")) if isinstance(location, str) else (tensor.name,)


class _Weights:
    """Goes through a graph's initializers once, those of quantized operators first."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._seen: set[tuple[str, ...]] = set()
        self._done: set[str] = set()

    def collect(self) -> Iterable[OnnxTensor]:
        heads: dict[str, OnnxTensor] = {}
        for node in self._graph.node:
            if node.op_type in _PRODUCTS and len(node.input) > 1 and node.input[1] in self._stored:
                heads[node.input[1]] = self._together(node.input[1], node.input[2:], *_product(node), "matrix")
            elif node.op_type == "QMoE":
                yield from self._experts(node)
        yield from heads.values()
        # onnxruntime-genai's builder looks tied embeddings up in the head's codes, reshaped.
        reshaped = {
            node.output[0]: node.input[0]
            for node in self._graph.node
            if node.op_type == "Reshape" and node.input and node.output
        }
        for node in self._graph.node:
            if not node.input:
                continue
            if node.op_type == "GatherBlockQuantized" and node.input[0] in self._stored:
                codes = self._stored[node.input[0]]
                yield self._together(codes.name, node.input[2:], *_table(node, codes), "embedding")
            elif node.op_type == "GatherBlockQuantized" and (head := heads.get(reshaped.get(node.input[0], ""))):
                yield replace(head, role="embedding", nbytes=0, shared=True)
        looked_up = {node.input[0] for node in self._graph.node if node.op_type in _LOOKUPS and node.input}
        tables = _rotary(self._graph)
        for name, tensor in self._stored.items():
            if name not in self._done:
                yield self._plain(tensor, looked_up=name in looked_up, rotary=name in tables)

    def _experts(self, node: Any) -> Iterable[OnnxTensor]:
        """Yield the matrices of all experts of a QMoE: [experts, rows, columns]."""
        values = _attributes(node)
        for number, (index, zeros) in enumerate(QMOE_INPUTS, 1):
            if index >= len(node.input) or node.input[index] not in self._stored:
                continue
            codes = self._stored[node.input[index]]
            bits = expert_bits(values, number)
            *rows, row_bytes = [int(extent) for extent in codes.dims] or [0]
            shape = _checked(*rows, row_bytes * 8 // bits if bits in {2, 4, 8} else 0)
            others = [node.input[place] for place in (index + 1, zeros) if place < len(node.input)]
            yield self._together(codes.name, others, f"int{bits} g{values.get('block_size', 0)}", shape, "matrix")

    def _bytes(self, tensor: Any) -> tuple[int, bool]:
        """Return the bytes of a tensor that were not counted before, and whether they were."""
        place = _place(tensor)
        if place in self._seen:
            return 0, True
        self._seen.add(place)
        return tensor_nbytes(tensor), False

    def _together(self, codes: str, others: Iterable[str], name: str, shape: tuple[int, ...], role: Role) -> OnnxTensor:
        """Return one weight made of codes, scales and zero points; the inputs of a weight used twice count once."""
        parts = [self._stored[part] for part in (codes, *others) if part in self._stored]
        self._done.update(part.name for part in parts)
        counted = [self._bytes(part) for part in parts]
        shared = counted[0][1]
        symmetric = len(parts) < 3 or name.startswith(("nf4", "fp4"))
        suffix = "" if name.startswith(("nf4", "fp4")) else " sym" if symmetric else " asym"
        return OnnxTensor(codes, shape, name + suffix, role, sum(size for size, _ in counted), shared)

    def _plain(self, tensor: Any, *, looked_up: bool, rotary: bool) -> OnnxTensor:
        name, shape = _type_name(tensor), tuple(int(extent) for extent in tensor.dims)
        role: Role = "constant"
        if name in _FLOATS and shape and not rotary:
            role = "vector" if len(shape) == 1 else "embedding" if looked_up else "matrix"
            if math.prod(shape) <= 1:
                role = "constant"
        nbytes, shared = self._bytes(tensor)
        return OnnxTensor(tensor.name, shape, name, role, nbytes, shared)


def _checked(*extents: int) -> tuple[int, ...]:
    if any(not 0 < extent < 1 << 31 for extent in extents):
        raise ArtifactError(f"a quantized operator has the impossible shape {list(extents)}")
    return extents


def _product(node: Any) -> tuple[str, tuple[int, ...]]:
    """Return type and shape of what MatMulNBits or MatMulBnb4 reads."""
    values = _attributes(node)
    shape = _checked(values.get("N", 0), values.get("K", 0))
    group = values.get("block_size", 0)
    if node.op_type == "MatMulNBits":
        return f"int{values.get('bits', 4)} g{group}", shape
    return f"{'nf4' if values.get('quant_type') == 1 else 'fp4'} g{group}", shape


def _table(node: Any, codes: Any) -> tuple[str, tuple[int, ...]]:
    """Return type and shape of what GatherBlockQuantized looks up; a byte holds 8 / bits codes."""
    from onnx import TensorProto

    values = _attributes(node)
    bits = values.get("bits", 4)
    packed = 8 // bits if codes.data_type == TensorProto.UINT8 and 0 < bits <= 8 else 1
    *rows, columns = [int(extent) for extent in codes.dims] or [0]
    return f"int{bits} g{values.get('block_size', 128)}", _checked(*rows, columns * packed)


def _type_name(tensor: Any) -> str:
    from onnx import TensorProto

    names = {"float": "float32", "double": "float64"}
    name = str(TensorProto.DataType.Name(tensor.data_type)).lower()
    return names.get(name, name)


def _rotary(graph: Any) -> set[str]:
    """Return the inputs of attention and rotary embedding: their tables of cosines and sines are no weights."""
    return {
        name for node in graph.node if node.op_type in {"GroupQueryAttention", "RotaryEmbedding"} for name in node.input
    }
