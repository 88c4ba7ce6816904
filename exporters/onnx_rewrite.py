"""Rewriting the float graph so that each weight is read as it is stored.

`MatMul(x, Transpose(W))` becomes MatMulNBits or MatMulBnb4, MoE becomes QMoE, the embedding's Gather becomes
GatherBlockQuantized, and a weight in float16 is cast where it is used (ONNX Runtime folds the cast when it loads the
model). A `Concat` of initializers along their rows is one tensor in the file: quantized rows concatenate exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekiln.errors import StepError
from edgekiln.exporters.onnx_layout import Part, Placed
from edgekiln.exporters.onnx_nodes import drop_unused, replace_node
from edgekiln.exporters.onnx_providers import PROVIDERS, OnnxProvider
from edgekiln.families import EMBEDDING, HEAD
from edgekiln.grids import BNB4_NF4, CodebookGrid, IntegerGrid

_MS: Final = "com.microsoft"
_DTYPES: Final = {"uint8": ir.DataType.UINT8, "float16": ir.DataType.FLOAT16, "float32": ir.DataType.FLOAT}


def _initializer(graph: ir.Graph, name: str, part: Part, shape: Sequence[int] | None = None) -> ir.Value:
    """Return the initializer `name`, adding it on first use; its data is a range of the data file."""
    if name in graph.initializers:
        return graph.initializers[name]
    shape = part.shape if shape is None else shape
    dtype = _DTYPES[part.dtype]
    tensor = ir.ExternalTensor(
        location=part.file,
        offset=part.offset,
        length=part.nbytes,
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=Path(),
    )
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
    graph.initializers[name] = value
    return value


class Rewriter:
    """Rewrites one graph in place, given how every tensor is stored.

    Args:
        graph: The float graph.
        placed: Every planned tensor by name.
        provider: What it is made for.
        accuracy_level: Of MatMulNBits; None for the provider's own.
    """

    def __init__(
        self,
        graph: ir.Graph,
        placed: Mapping[str, Placed],
        provider: OnnxProvider = PROVIDERS["cpu"],
        accuracy_level: int | None = None,
    ) -> None:
        self.graph = graph
        self.accuracy_level = provider.accuracy_level if accuracy_level is None else accuracy_level
        self.activations = _DTYPES[provider.activations]
        self.placed = placed
        self.weights = {name for name, value in graph.initializers.items() if value.const_value is None}
        self.by_sources = {item.plan.sources: item for item in placed.values() if item.plan.name != HEAD}
        #: The head: a tensor of its own, or the embedding when they are tied and stored alike.
        self.head = placed.get(HEAD, placed[EMBEDDING])

    def run(self) -> dict[str, NDArray[np.float32]]:
        """Rewrite everything; return the values of the tensors that are computed, which now lie in the data file.

        Raises:
            StepError: The graph uses a weight in a way that this rewriting does not know, or not at all.
        """
        nodes = list(self.graph)
        for node in nodes:
            if node.op_type == "Concat" and node.inputs and all(self._is_weight(value) for value in node.inputs):
                self._fuse(node)
        for node in list(self.graph):
            if node.op_type == "MatMul":
                self._rewrite_matmul(node)
            elif node.op_type == "MoE":
                self._rewrite_experts(node)
            elif node.op_type == "Gather" and self._is_weight(node.inputs[0]):
                self._rewrite_gather(node)
        drop_unused(self.graph)
        self._place_float_vectors()
        return self._place_computed()

    def _is_weight(self, value: ir.Value | None) -> bool:
        return value is not None and value.name in self.weights

    def _find(self, sources: tuple[str, ...]) -> Placed:
        if sources not in self.by_sources:
            raise StepError(f"the graph reads {' + '.join(sources)} as one tensor, which the plan does not foresee")
        return self.by_sources[sources]

    def _fuse(self, node: ir.Node) -> None:
        """Turn a Concat of initializers into one initializer without a value, named by the plan."""
        item = self._find(tuple(str(value.name) for value in node.inputs if value is not None))
        (output,) = node.outputs
        fused = ir.Value(name=item.plan.name, type=ir.TensorType(self.activations), shape=ir.Shape(item.plan.shape))
        self.graph.initializers[item.plan.name] = fused
        self.by_sources[(item.plan.name,)] = item
        self.weights.add(item.plan.name)
        output.replace_all_uses_with(fused)
        self.graph.remove(node, safe=True)

    def _rewrite_matmul(self, node: ir.Node) -> None:
        operand, transposed = node.inputs
        transpose = transposed.producer() if transposed is not None else None
        if operand is None or transpose is None or transpose.op_type != "Transpose":
            return
        weight = transpose.inputs[0]
        if weight is None or not self._is_weight(weight):
            return
        item = self.head if weight.name in {HEAD, EMBEDDING} else self._find((str(weight.name),))
        storage, (rows, columns) = item.plan.storage, item.plan.shape
        match storage:
            case IntegerGrid():
                replace_node(self.graph, node, [self._matmul_nbits(operand, item, storage, rows, columns)])
            case CodebookGrid():
                replace_node(self.graph, node, [self._matmul_bnb4(operand, item, storage, rows, columns)])
            case _:
                transpose.replace_input_with(0, self._float_weight(item, before=transpose))

    def _matmul_nbits(self, operand: ir.Value, item: Placed, grid: IntegerGrid, rows: int, columns: int) -> ir.Node:
        inputs = [operand, self._part(item, "codes"), self._part(item, "scales")]
        if not grid.symmetric:
            inputs.append(self._part(item, "zero_points"))
        attributes = {
            "K": columns,
            "N": rows,
            "accuracy_level": self.accuracy_level,
            "bits": grid.bits,
            "block_size": grid.group_size,
        }
        return ir.node("MatMulNBits", inputs, attributes, domain=_MS, name=f"{item.plan.name}.MatMulNBits")

    def _matmul_bnb4(self, operand: ir.Value, item: Placed, grid: CodebookGrid, rows: int, columns: int) -> ir.Node:
        attributes = {"K": columns, "N": rows, "block_size": grid.group_size, "quant_type": BNB4_NF4}
        inputs = [operand, self._part(item, "codes"), self._part(item, "absmax")]
        return ir.node("MatMulBnb4", inputs, attributes, domain=_MS, name=f"{item.plan.name}.MatMulBnb4")

    def _rewrite_experts(self, node: ir.Node) -> None:
        """Let the operator read quantized experts, or floats in the type of the activations."""
        operand, logits, gate_up, _, down, _ = node.inputs
        if operand is None or logits is None or gate_up is None or down is None:
            raise StepError(f"{node.name} lacks an input")
        first, second = self.placed[str(gate_up.name)], self.placed[str(down.name)]
        match first.plan.storage, second.plan.storage:
            case IntegerGrid() as one, IntegerGrid() as other:
                replace_node(self.graph, node, [self._qmoe(node, operand, logits, (first, one), (second, other))])
            case _:
                node.replace_input_with(2, self._float_weight(first, before=node))
                node.replace_input_with(4, self._float_weight(second, before=node))

    def _qmoe(
        self,
        node: ir.Node,
        operand: ir.Value,
        logits: ir.Value,
        first: tuple[Placed, IntegerGrid],
        second: tuple[Placed, IntegerGrid],
    ) -> ir.Node:
        inputs: list[ir.Value | None] = [operand, logits]
        for item, _ in (first, second):
            inputs += [self._part(item, "codes"), self._part(item, "scales"), None]
        inputs += [None] * 3  # a third matrix, for activations that are not fused
        inputs += [None if grid.symmetric else self._part(item, "zero_points") for item, grid in (first, second)]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()} | {
            "accuracy_level": self.accuracy_level,
            "block_size": first[1].group_size,
            "expert_weight_bits": first[1].bits,
            "weights_prepacked": 0,  # as `quantize_matmul_4bits` and `_8bits` leave them
        }
        return ir.node("QMoE", inputs, attributes, domain=_MS, name=str(node.name).replace("MoE", "QMoE"))

    def _rewrite_gather(self, node: ir.Node) -> None:
        table, indices = node.inputs
        if table is None or indices is None:
            return
        item = self._find((str(table.name),))
        match item.plan.storage:
            case IntegerGrid(bits, group_size, symmetric):
                rows, columns = item.plan.shape
                codes = _initializer(
                    self.graph, f"{item.plan.name}.table", item.parts["codes"], (rows, columns * bits // 8)
                )
                inputs = [codes, indices, self._part(item, "scales")]
                if not symmetric:
                    inputs.append(self._part(item, "zero_points"))
                attributes = {"bits": bits, "block_size": group_size, "gather_axis": 0, "quantize_axis": 1}
                gather = ir.node(
                    "GatherBlockQuantized",
                    inputs,
                    attributes,
                    domain=_MS,
                    name=f"{item.plan.name}.GatherBlockQuantized",
                )
                replace_node(self.graph, node, [gather])
            case "float16" if self.activations == ir.DataType.FLOAT:
                values = self._part(item, "values")
                gather = ir.node("Gather", [values, indices], name=f"{item.plan.name}.Gather")
                cast = ir.node("Cast", gather.outputs, {"to": int(ir.DataType.FLOAT)}, name=f"{item.plan.name}.Cast")
                replace_node(self.graph, node, [gather, cast])
            case "float16" | "float32":
                node.replace_input_with(0, self._part(item, "values"))
            case other:
                raise StepError(f"{item.plan.name} cannot be looked up as {other}: no operator gathers from it")

    def _float_weight(self, item: Placed, before: ir.Node) -> ir.Value:
        """Return the weight in the type of the activations, cast from float16 where those are float32."""
        values = self._part(item, "values")
        if values.dtype == self.activations:
            return values
        cast = ir.node("Cast", [values], {"to": int(ir.DataType.FLOAT)}, name=f"{item.plan.name}.MatMul.Cast")
        self.graph.insert_before(before, cast)
        (result,) = cast.outputs
        result.name = f"{item.plan.name}.float32"
        return result

    def _part(self, item: Placed, role: str) -> ir.Value:
        part = next(part for part in item.parts.values() if part.role == role)
        name = item.plan.name if role == "values" else f"{item.plan.name}.{role}"
        if role == "values" and name in self.graph.initializers:  # mobius' own value gets its data
            value = self.graph.initializers[name]
            if value.const_value is None:
                self._fill(value, part)
            return value
        return _initializer(self.graph, name, part)

    @staticmethod
    def _fill(value: ir.Value, part: Part) -> None:
        dtype = _DTYPES[part.dtype]
        value.const_value = ir.ExternalTensor(
            location=part.file,
            offset=part.offset,
            length=part.nbytes,
            dtype=dtype,
            shape=ir.Shape(part.shape),
            name=str(value.name),
            base_dir=Path(),
        )
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(part.shape)

    def _place_float_vectors(self) -> None:
        """Give norms and biases their data; what is still used without data is a weight that nothing rewrote."""
        for name, value in list(self.graph.initializers.items()):
            if value.const_value is not None or not value.uses():
                continue
            item = self._find((name,))
            if len(item.plan.shape) != 1 or not isinstance(item.plan.storage, str):
                raise StepError(f"the graph uses {name} in a way that is not known for {item.plan.storage_name}")
            self._fill(value, item.parts["values"])

    def _place_computed(self) -> dict[str, NDArray[np.float32]]:
        computed: dict[str, NDArray[np.float32]] = {}
        for item in self.placed.values():
            if item.plan.sources:
                continue
            value = self.graph.initializers.get(item.plan.name)
            if value is None or value.const_value is None or tuple(value.const_value.shape) != item.plan.shape:
                raise StepError(f"the graph has no {item.plan.name} of shape {item.plan.shape}")
            computed[item.plan.name] = np.asarray(value.const_value.numpy(), np.float32)
            self._fill(value, item.parts["values"])
        return computed
