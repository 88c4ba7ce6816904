"""The hyper-parameters that an ONNX decoder computes with, read from its graph, whoever made it.

genai_config.json says how the cache is laid out; what the model is, its nodes say: the heads of the attention
operators, the epsilon of every normalization, the angles in the rotary tables. What a graph has in another form than
these (an attention made of single products, a cosine computed at run time) is None here, and judged by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.validators.onnx_files import read_rows

#: Which attributes count the heads of queries and of keys and values.
_ATTENTION: Final[Mapping[tuple[str, str], tuple[str, str | None]]] = MappingProxyType(
    {
        ("com.microsoft", "GroupQueryAttention"): ("num_heads", "kv_num_heads"),
        ("com.microsoft", "PagedAttention"): ("num_heads", "kv_num_heads"),
        ("com.microsoft", "SparseAttention"): ("num_heads", "kv_num_heads"),
        ("com.microsoft", "MultiHeadAttention"): ("num_heads", None),  # keys are repeated for it
        ("com.microsoft", "DecoderMaskedMultiHeadAttention"): ("num_heads", None),
        ("com.microsoft", "Attention"): ("num_heads", None),
        ("", "Attention"): ("q_num_heads", "kv_num_heads"),
    }
)
#: Positions of the inputs with the cosines; the sines follow.
_TABLES: Final[Mapping[tuple[str, str], int]] = MappingProxyType(
    {
        ("com.microsoft", "GroupQueryAttention"): 7,
        ("com.microsoft", "PagedAttention"): 8,
        ("com.microsoft", "SparseAttention"): 9,
        ("com.microsoft", "RotaryEmbedding"): 2,
        ("", "RotaryEmbedding"): 1,
    }
)
#: The epsilon of a normalization that does not name one, from the operators' documentation.
_EPSILONS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "SimplifiedLayerNormalization": 1e-5,
        "RMSNormalization": 1e-5,
        "SkipSimplifiedLayerNormalization": 1e-12,
    }
)
#: The attribute that lets positions see what follows them; other operators leave that to a mask.
_CAUSAL: Final[Mapping[str, str]] = MappingProxyType({"GroupQueryAttention": "causal", "PagedAttention": "is_causal"})
#: Where attention that normalizes queries and keys itself has their weights.
_NORM_INPUTS: Final[Mapping[str, int]] = MappingProxyType({"GroupQueryAttention": 14, "PagedAttention": 11})
_QK_EPSILON: Final = 1e-6
_MIXTURES: Final = frozenset({"MoE", "QMoE"})
#: Inputs of these: the first matrix of all experts, and weights of experts where they are not the router's.
_FIRST_MATRIX: Final = 2
_ROUTER_WEIGHTS: Final = 14
#: Operators that hand on rows of a table.
_TRANSPARENT: Final = frozenset({"Gather", "Cast", "Identity", "Unsqueeze", "Squeeze", "Slice"})
_MOST_STEPS: Final = 8
#: A rotary table has no more columns; a graph has a table, or two, for all layers.
_MOST_COLUMNS: Final = 4096
_MOST_TABLES: Final = 16


@dataclass(frozen=True)
class Attention:
    """One attention node; None where it leaves something to its operator.

    Attributes:
        node: Its name.
        heads: Of queries.
        kv_heads: Of keys and values.
        scale: Factor of the scores; None for 1 / sqrt(head size).
        window: Positions that a query sees; None for all.
        softcap: Bound of the scores; None for none.
        interleaved: Whether it rotates interleaved pairs.
        causal: False where it says that positions see what follows them.
    """

    node: str
    heads: int | None
    kv_heads: int | None
    scale: float | None
    window: int | None
    softcap: float | None
    interleaved: bool
    causal: bool


@dataclass(frozen=True)
class MixtureNode:
    """One mixture of experts.

    Attributes:
        node: Its name.
        count: Experts, by the first matrix of all of them; None where that is no constant.
        per_token: To how many of them a token goes.
        normalized: The weights of those are made to add up to 1.
        is_silu_gated: Gate and up projection are combined as Qwen does it.
    """

    node: str
    count: int | None
    per_token: int
    normalized: bool
    is_silu_gated: bool


@dataclass(frozen=True)
class RotaryTable:
    """Some rows of a pair of tables of cosines and sines.

    Attributes:
        name: Of the table of cosines.
        positions: How many rows it has.
        rotary_dim: Numbers of a head that are rotated: two for each column.
        rows: Positions of what was read.
        cos: float64 [rows, columns].
        sin: The same.
        resolution: Distance of two numbers near 1 in the type that the tables are stored in.
    """

    name: str
    positions: int
    rotary_dim: int
    rows: tuple[int, ...]
    cos: NDArray[np.float64]
    sin: NDArray[np.float64]
    resolution: float


@dataclass(frozen=True)
class GraphParameters:
    """What a graph says of its model.

    Attributes:
        attention: Every attention node; empty where the graph has none, or has them in functions.
        mixtures: Every mixture of experts that is one node.
        epsilons: The nodes that normalize, by their epsilon.
        interleaved: Nodes that rotate interleaved pairs.
        rotary_dims: Nodes that say how much of a head they rotate.
        tables: The rotary tables.
        caches: (name, heads, head size) of each cache of keys or values; None for a size that is left open.
        vocabulary: Width of the logits; None where it is left open.
    """

    attention: tuple[Attention, ...]
    mixtures: tuple[MixtureNode, ...]
    epsilons: Mapping[float, tuple[str, ...]]
    interleaved: tuple[str, ...]
    rotary_dims: Mapping[str, int]
    tables: tuple[RotaryTable, ...]
    caches: tuple[tuple[str, int | None, int | None], ...]
    vocabulary: int | None


def _domain(node: Any) -> str:
    return "" if node.domain == "ai.onnx" else str(node.domain)


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the graphs in their attributes."""
    pending = [graph]
    while pending:
        current = pending.pop()
        for node in current.node:
            yield node
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += list(attribute.graphs)


def _numbers(node: Any) -> dict[str, float]:
    """Return the attributes of a node that are single numbers."""
    from onnx import AttributeProto

    values: dict[str, float] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.INT:
            values[attribute.name] = int(attribute.i)
        elif attribute.type == AttributeProto.FLOAT:
            values[attribute.name] = float(attribute.f)
    return values


def _label(node: Any) -> str:
    return str(node.name or node.op_type)


def _count(values: Mapping[str, float], key: str | None) -> int | None:
    value = values.get(key) if key is not None else None
    return value if isinstance(value, int) else None


def _attention(node: Any, names: tuple[str, str | None]) -> Attention:
    values = _numbers(node)
    window, scale = _count(values, "local_window_size") or -1, values.get("scale", 0.0)
    return Attention(
        _label(node),
        _count(values, names[0]),
        _count(values, names[1]),
        scale or None,
        window if window > 0 else None,
        values.get("softcap") or None,
        bool(values.get("rotary_interleaved")),
        bool(values.get(_CAUSAL.get(node.op_type, ""), 1)),
    )


class _Graph:
    """Finds the constant that an input of a node comes from."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers: dict[str, Any] = {}
        #: What a value is multiplied with, by its name.
        self.factors: dict[str, list[str]] = {}
        for node in _nodes(model.graph):
            self.makers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Mul" and len(node.input) == 2:
                for one, other in (node.input, reversed(node.input)):
                    self.factors.setdefault(one, []).append(other)

    def constant(self, name: str) -> Any | None:
        """Return the tensor behind a value that is a constant, or None."""
        if name in self.stored:
            return self.stored[name]
        node = self.makers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)

    def table(self, name: str) -> Any | None:
        """Return the constant whose rows a value holds, or None."""
        for _ in range(_MOST_STEPS):
            if (tensor := self.constant(name)) is not None:
                return tensor
            node = self.makers.get(name)
            if node is None or node.op_type not in _TRANSPARENT or not node.input:
                return None
            name = node.input[0]
        return None


def _mixture(graph: _Graph, node: Any) -> MixtureNode:
    values, texts = _numbers(node), {a.name: bytes(a.s) for a in node.attribute}
    matrix = graph.table(node.input[_FIRST_MATRIX]) if len(node.input) > _FIRST_MATRIX else None
    plain = values.get("activation_alpha", 1.0) == 1.0 and values.get("activation_beta", 0.0) == 0.0
    return MixtureNode(
        _label(node),
        int(matrix.dims[0]) if matrix is not None and len(matrix.dims) else None,
        _count(values, "k") or 1,
        _is_normalized(graph, node, bool(values.get("normalize_routing_weights"))),
        texts.get("activation_type") == b"swiglu" and plain and math.isinf(values.get("swiglu_limit", math.inf)),
    )


def _is_normalized(graph: _Graph, node: Any, asked: bool) -> bool:
    """Tell whether the weights of a node's experts add up to 1.

    QMoE makes them so unless it is given weights of its own; what multiplies the output with the sum of the largest
    probabilities undoes it.
    """
    weighted = len(node.input) > _ROUTER_WEIGHTS and bool(node.input[_ROUTER_WEIGHTS])
    if not asked and (node.op_type == "MoE" or weighted):
        return False
    for factor in graph.factors.get(node.output[0], ()) if node.output else ():
        maker = graph.makers.get(factor)
        if maker is not None and maker.op_type == "ReduceSum" and maker.input:
            summed = graph.makers.get(maker.input[0])
            if summed is not None and summed.op_type == "TopK":
                return False
    return True


def _composed_epsilon(graph: _Graph, node: Any) -> float | None:
    """Return what is added to a mean of squares: the epsilon of a normalization made of single operators."""
    from onnx import numpy_helper

    if node.op_type != "Add" or len(node.input) != 2:
        return None
    for mean, other in (node.input, reversed(node.input)):
        maker, tensor = graph.makers.get(mean), graph.constant(other)
        if maker is None or maker.op_type != "ReduceMean" or tensor is None or sum(tensor.dims) > 1:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size == 1 and values.dtype.kind == "f":
            return float(values.reshape(()))
    return None


def _epsilons(graph: _Graph) -> dict[float, tuple[str, ...]]:
    found: dict[float, list[str]] = {}
    for node in _nodes(graph.model.graph):
        epsilon: float | None = None
        if node.op_type in _EPSILONS:
            epsilon = _numbers(node).get("epsilon", _EPSILONS[node.op_type])
        elif (at := _NORM_INPUTS.get(node.op_type)) is not None:
            epsilon = _numbers(node).get("qk_norm_epsilon", _QK_EPSILON) if any(node.input[at : at + 2]) else None
        else:
            epsilon = _composed_epsilon(graph, node)
        if epsilon is not None:
            found.setdefault(epsilon, []).append(_label(node))
    return {value: tuple(nodes) for value, nodes in found.items()}


def _rows(positions: int) -> tuple[int, ...]:
    """Return the positions to look at: the first, then farther and farther apart, and the last."""
    return tuple(
        sorted({0, 1, *(1 << k for k in range(1, positions.bit_length())), positions - 1} & set(range(positions)))
    )


def _resolution(tensor: Any) -> float:
    from onnx import TensorProto

    return {TensorProto.FLOAT16: 2.0**-10, TensorProto.BFLOAT16: 2.0**-7}.get(tensor.data_type, 2.0**-23)


def _tables(root: Path, folder: Path, graph: _Graph) -> Iterator[RotaryTable]:
    pairs: dict[tuple[str, str], tuple[Any, Any]] = {}
    for node in _nodes(graph.model.graph):
        at = _TABLES.get((_domain(node), node.op_type))
        names = tuple(node.input[at : at + 2]) if at is not None else ()
        if len(names) != 2 or not all(names) or len(pairs) >= _MOST_TABLES:
            continue
        cos, sin = graph.table(names[0]), graph.table(names[1])
        if cos is not None and sin is not None:
            pairs.setdefault((cos.name, sin.name), (cos, sin))
    for cos, sin in pairs.values():
        if len(cos.dims) != 2 or list(cos.dims) != list(sin.dims):
            continue
        positions, columns = (int(extent) for extent in cos.dims)
        if positions < 1 or not 0 < columns <= _MOST_COLUMNS:
            continue
        rows = _rows(positions)
        values = [read_rows(root, folder, tensor, rows) for tensor in (cos, sin)]
        if values[0] is not None and values[1] is not None:
            yield RotaryTable(cos.name, positions, 2 * columns, rows, values[0], values[1], _resolution(cos))


def _caches(graph: Any) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield the inputs of four dimensions, [batch, heads, positions, head size]; a decoder has no others."""
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            yield value.name, dims[1].dim_value or None, dims[3].dim_value or None


def read_parameters(root: Path, folder: Path, model: Any) -> GraphParameters:
    """Return what the graph of a decoder says of its model.

    Args:
        root: The artifact, which data files must not leave.
        folder: Of the model file.
        model: A ModelProto, whose data are where they must be (`external_regions` checks that).

    Raises:
        ArtifactError: A rotary table has an impossible shape.
        ValueError: A constant does not fit its shape.
    """
    graph = _Graph(model)
    attention: list[Attention] = []
    rotations: list[tuple[str, dict[str, float]]] = []
    for node in model.graph.node:
        if (names := _ATTENTION.get((_domain(node), node.op_type))) is not None:
            attention.append(_attention(node, names))
        elif node.op_type == "RotaryEmbedding":
            rotations.append((_label(node), _numbers(node)))
    logits = next((value for value in model.graph.output if value.name == "logits"), None)
    shape = logits.type.tensor_type.shape.dim if logits is not None else []
    return GraphParameters(
        () if model.functions else tuple(attention),
        tuple(_mixture(graph, node) for node in model.graph.node if node.op_type in _MIXTURES),
        MappingProxyType(_epsilons(graph)),
        (
            *(node.node for node in attention if node.interleaved),
            *(name for name, values in rotations if values.get("interleaved")),
        ),
        MappingProxyType(
            {name: int(v["rotary_embedding_dim"]) for name, v in rotations if v.get("rotary_embedding_dim")}
        ),
        tuple(_tables(root, folder, graph)),
        tuple(_caches(model.graph)),
        (shape[-1].dim_value or None) if shape else None,
    )
