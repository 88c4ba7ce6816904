"""The weights of an ONNX decoder as its operators read them, whoever made the graph.

How a matrix is stored is told by the operator that reads it, never by a name: MatMulNBits, MatMulBnb4 and
GatherBlockQuantized of ONNX Runtime, DequantizeLinear, or plain numbers behind Cast, Transpose, Reshape and Concat.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.validators.onnx_grids import CodebookTable, IntegerTable, LinearTable
from edgekiln.validators.onnx_parts import CODES, FLOATS, Part, read_parts
from edgekiln.validators.onnx_read import MAX_GRAPH_BYTES, QMOE_INPUTS, expert_bits
from edgekiln.validators.weights import Place, Rounding, Rows, Use, Weight, unchanged

#: Operators that hand a weight on; a Concat joins several along their rows.
_PASSING: Final = frozenset({"Identity", "Cast", "Reshape", "Transpose", "Concat", "Squeeze", "Unsqueeze"})
_PRODUCTS: Final = frozenset({"MatMul", "FusedMatMul", "Gemm"})
#: Inputs of GroupQueryAttention that are weights: the norms of queries and keys.
_ATTENTION_NORMS: Final = frozenset({14, 15})
#: The first matrix of MoE.
_MOE_FIRST: Final = 2
#: What its `swiglu_fusion` is where rows of gate and up projection alternate.
_ALTERNATING: Final = 1
#: Operators whose floating-point inputs are tables of cosines and sines, caches or scales, never weights.
_NO_WEIGHTS: Final = frozenset({"GroupQueryAttention", "RotaryEmbedding", "If", "Where", "Pow", "Div"})
#: How many operators may lie between a weight and the one that uses it.
_MAX_CHAIN: Final = 8


@dataclass(frozen=True)
class _Reading:
    """One way in which a tensor is used: by which node, as which input, after how many transpositions."""

    node: Any
    index: int
    turned: bool


def onnx_weights(root: Path, path: Path) -> tuple[Weight, ...]:
    """Return the weights of a graph in the order of its nodes, without reading one.

    A matrix that is looked up and multiplied with is given twice, at one place.

    Args:
        root: The artifact's directory, which data files must not leave.
        path: The ONNX file inside it.

    Raises:
        ArtifactError: It is no sound ONNX file, its data lie elsewhere or are too short, or a tensor is impossible.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if (size := path.stat().st_size) > MAX_GRAPH_BYTES:
        raise ArtifactError(
            f"{path} has {size} bytes, where {MAX_GRAPH_BYTES} are allowed; store its weights beside it"
        )
    try:
        model = onnx.load(path, load_external_data=False)
        return tuple(_Collector(root, path.parent, model).collect())
    except DecodeError:
        raise ArtifactError(f"{path} is no ONNX model") from None
    except (ValueError, TypeError, IndexError) as error:  # text that is not UTF-8, missing inputs
        raise ArtifactError(f"{path} is no sound ONNX model: {error}") from None


def _attributes(node: Any) -> dict[str, int]:
    return {attribute.name: int(attribute.i) for attribute in node.attribute}


class _Collector:
    """Goes through the nodes of a graph, those of quantized operators first."""

    def __init__(self, root: Path, folder: Path, model: Any) -> None:
        self._graph = model.graph
        self._parts = read_parts(root, folder, model)
        self._readers: dict[str, list[tuple[Any, int]]] = {}
        self._makers: dict[str, Any] = {}
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, index))
            self._makers |= dict.fromkeys(node.output, node)
        self._heads = set(self._final_products())
        self._used: set[str] = set()

    def collect(self) -> Iterator[Weight]:
        found: dict[tuple[Place, Use], Weight] = {}
        for node in self._graph.node:
            for weight in self._quantized(node):
                found.setdefault((weight.place, weight.use), weight)
        yield from found.values()
        for name, part in self._parts.items():
            if part.is_float and part.elements > 1 and name not in self._used:
                yield from self._plain(part)

    def _final_products(self) -> Iterator[str]:
        """Yield the outputs of the products that give the graph's outputs."""
        for output in self._graph.output:
            name = output.name
            for _ in range(_MAX_CHAIN):
                node = self._makers.get(name)
                if node is None:
                    break
                if node.op_type in _PRODUCTS | {"MatMulNBits", "MatMulBnb4"}:
                    yield name
                if node.op_type not in _PASSING or not node.input:
                    break
                name = node.input[0]

    def _origin(self, name: str) -> Part | None:
        """Return the initializer that a name is, or is made of by Reshape and the like."""
        for _ in range(_MAX_CHAIN):
            if name in self._parts:
                return self._parts[name]
            node = self._makers.get(name)
            if node is None or node.op_type not in {"Identity", "Reshape", "Cast"} or not node.input:
                return None
            name = node.input[0]
        return None

    def _inputs(self, node: Any, indices: Mapping[int, str]) -> dict[str, Part]:
        """Return the initializers among a node's inputs by what they are, and count them as used."""
        found = {}
        for index, what in indices.items():
            if index < len(node.input) and node.input[index] and (part := self._origin(node.input[index])) is not None:
                found[what] = part
                self._used.add(part.name)
        return found

    def _quantized(self, node: Any) -> Iterator[Weight]:
        match node.op_type:
            case "MatMulNBits":
                parts = self._inputs(node, {1: "codes", 2: "scales", 3: "zero_points", 4: "group_index"})
                if {"codes", "scales"} <= parts.keys():
                    table = IntegerTable.of_product(_attributes(node), parts)
                    yield self._matrix(node, parts, table)
            case "MatMulBnb4":
                parts = self._inputs(node, {1: "codes", 2: "scales"})
                if {"codes", "scales"} <= parts.keys():
                    yield self._matrix(node, parts, CodebookTable.of_product(_attributes(node), parts))
            case "GatherBlockQuantized":
                parts = self._inputs(node, {0: "codes", 2: "scales", 3: "zero_points"})
                if {"codes", "scales"} <= parts.keys():
                    yield self._weight(parts, IntegerTable.of_lookup(_attributes(node), parts), "embedding")
            case "QMoE":
                yield from self._quantized_experts(node)
            case "DequantizeLinear":
                parts = self._inputs(node, {0: "codes", 1: "scales", 2: "zero_points"})
                if {"codes", "scales"} <= parts.keys() and parts["codes"].type in CODES:
                    yield from self._linear(node, parts)

    def _quantized_experts(self, node: Any) -> Iterator[Weight]:
        attributes = _attributes(node)
        if any(attribute.name == "quant_type" and attribute.s != b"int" for attribute in node.attribute):
            return  # small floats: their codes are no integers, and what is multiplied with them is not said here
        for number, (index, zeros) in enumerate(QMOE_INPUTS, 1):
            parts = self._inputs(node, {index: "codes", index + 1: "scales", zeros: "zero_points"})
            if {"codes", "scales"} <= parts.keys():
                table = IntegerTable.of_experts(attributes, expert_bits(attributes, number), parts)
                weight = self._weight(parts, table, "matrix")
                yield _in_order(weight, node, parts["codes"].shape[1]) if number == 1 else weight

    def _matrix(self, node: Any, parts: Mapping[str, Part], table: IntegerTable | CodebookTable) -> Weight:
        return self._weight(parts, table, "head" if node.output[0] in self._heads else "matrix")

    def _weight(self, parts: Mapping[str, Part], table: IntegerTable | CodebookTable | LinearTable, use: Use) -> Weight:
        return Weight(
            parts["codes"].name,
            (table.rows, table.columns),
            table.type,
            use,
            tuple((part.place, part.nbytes) for part in parts.values()),
            table.read,
            table.round,
            table.group,
            table.unreadable,
        )

    def _linear(self, node: Any, parts: Mapping[str, Part]) -> Iterator[Weight]:
        """Yield what a DequantizeLinear of initializers gives, as it is used."""
        for use, turned in sorted(self._uses(node.output[0])):
            yield self._weight(parts, LinearTable.of_node(_attributes(node), parts, turned=turned), use)

    def _plain(self, part: Part) -> Iterator[Weight]:
        name, _, rounding = FLOATS[part.type]
        unused: set[tuple[Use, bool]] = {("matrix", False)}
        uses = sorted(self._uses(part.name) if self._readers.get(part.name) else unused)
        place = ((part.place, part.nbytes),)
        if (experts := self._experts(part, name, rounding)) is not None:
            yield experts
            return
        shape = tuple(extent for extent in part.shape if extent != 1) or (1,)
        if len(shape) == 1:
            if uses:
                rows = functools.partial(_vector, part)
                yield Weight(part.name, shape, name, "vector", place, rows, rounding)
            return
        if len(shape) > 2:
            yield Weight(part.name, shape, name, "matrix", place, _nothing, unchanged, 1, "it has three dimensions")
            return
        for use, turned in uses:
            rows = functools.partial(_turned if turned else _straight, part, *shape)
            yield Weight(part.name, shape[::-1] if turned else shape, name, use, place, rows, rounding)

    def _experts(self, part: Part, name: str, rounding: Rounding) -> Weight | None:
        """Return plain numbers that are the matrices of experts, one below the other; None for others."""
        if len(part.shape) != 3:
            return None
        nodes = [reading for reading in self._readings(part.name) if reading.node.op_type == "MoE"]
        if not nodes or nodes[0].turned:
            return None
        place, flat = ((part.place, part.nbytes),), (part.shape[0] * part.shape[1], part.shape[2])
        weight = Weight(part.name, flat, name, "matrix", place, functools.partial(_straight, part, *flat), rounding)
        return _in_order(weight, nodes[0].node, part.shape[1]) if nodes[0].index == _MOE_FIRST else weight

    def _uses(self, name: str) -> set[tuple[Use, bool]]:
        """Return what a tensor is used as, and whether its rows are the columns of the weight."""
        found: set[tuple[Use, bool]] = set()
        for reading in self._readings(name):
            op, attributes = reading.node.op_type, _attributes(reading.node)
            if op in _NO_WEIGHTS and not (op == "GroupQueryAttention" and reading.index in _ATTENTION_NORMS):
                continue
            if op in _PRODUCTS:
                use: Use = "head" if reading.node.output[0] in self._heads else "matrix"
                transposed = reading.turned != bool(attributes.get("transB", 0))
                found.add((use, not transposed if reading.index == 1 else transposed))
            elif op == "Gather" and reading.index == 0:
                found.add(("embedding", reading.turned))
            else:
                found.add(("matrix", reading.turned))
        return found

    def _readings(self, name: str) -> list[_Reading]:
        """Return the nodes that use a tensor, through those that hand it on."""
        found, pending, seen = [], [(name, False, 0)], {name}
        while pending:
            current, turned, depth = pending.pop()
            for node, index in self._readers.get(current, []):
                if node.op_type not in _PASSING or depth == _MAX_CHAIN or not node.output:
                    found.append(_Reading(node, index, turned))
                elif node.output[0] not in seen:
                    seen.add(node.output[0])
                    pending.append((node.output[0], turned != (node.op_type == "Transpose"), depth + 1))
        return found


def _in_order(weight: Weight, node: Any, rows: int) -> Weight:
    """Return the first matrix of experts with the rows of each gate above those of its up projection.

    Args:
        weight: As it is stored.
        node: Reads it; its `swiglu_fusion` of 1 says that the two alternate, and 2 that they do not.
        rows: Of one expert, both together.
    """
    if _attributes(node).get("swiglu_fusion", 0) != _ALTERNATING or rows % 2:
        return weight
    return replace(weight, rows=functools.partial(_untangled, weight.rows, rows))


def _untangled(read: Rows, rows: int, start: int, stop: int) -> NDArray[np.float32]:
    expert, place = np.divmod(np.arange(start, stop), rows)
    stored = expert * rows + np.where(place < rows // 2, 2 * place, 2 * place - rows + 1)
    first = int(stored.min())
    found: NDArray[np.float32] = read(first, int(stored.max()) + 1)[stored - first]
    return found


def _vector(part: Part, _start: int, _stop: int) -> NDArray[np.float32]:
    return part.floats(0, part.elements).reshape(1, -1)


def _straight(part: Part, _rows: int, columns: int, start: int, stop: int) -> NDArray[np.float32]:
    return part.float_block(columns, start, stop, 0, columns)


def _turned(part: Part, rows: int, columns: int, start: int, stop: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(part.float_block(columns, 0, rows, start, stop).T)


def _nothing(_start: int, _stop: int) -> NDArray[np.float32]:
    return np.empty((0, 0), np.float32)
