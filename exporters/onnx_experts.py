"""Mixtures of experts in the float graph: `com.microsoft.MoE` in place of a feed-forward network.

The graph is made for the family without experts that has the same attention, and each layer with experts gets what
Transformers computes there: a router, the operator that sends each token to the best experts, and for Qwen2-MoE the
expert that every token goes to. ONNX Runtime's operator takes the router's logits and computes their softmax itself.
Its CPU kernel wants the rows of an expert's gate and up projection to alternate.

The operator always makes the weights of the chosen experts add up to 1. Where the model does not, its output is
multiplied with what they add up to: the attribute for it gives wrong results in ONNX Runtime 1.31, whose CPU kernel
then writes over its own input wherever that is an intermediate value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgekiln.errors import StepError
from edgekiln.exporters.onnx_fusions import DOWN_EXPERTS, GATE_UP_EXPERTS
from edgekiln.exporters.onnx_nodes import drop_unused, replace_node
from edgekiln.model_config import Experts, ModelConfig

_MS = "com.microsoft"


def put_experts(graph: ir.Graph, config: ModelConfig) -> None:
    """Replace the feed-forward network of every layer that has experts.

    Raises:
        StepError: The graph has no such network where it was expected.
    """
    if config.experts is None:
        return
    for layer in config.experts.layers:
        prefix = f"model.layers.{layer}.mlp"
        first, last = _product(graph, f"{prefix}.gate_proj.weight"), _product(graph, f"{prefix}.down_proj.weight")
        operand = first.inputs[0]
        if operand is None:
            raise StepError(f"the graph has no input of {prefix}")
        replace_node(graph, last, _Block(graph, prefix, config.hidden_size, operand).nodes(config.experts))
    drop_unused(graph)


def _product(graph: ir.Graph, weight: str) -> ir.Node:
    """Return the node that multiplies with a transposed weight."""
    value = graph.initializers.get(weight)
    uses = [use.node for use in value.uses()] if value is not None else []
    products = [use.node for node in uses for use in node.outputs[0].uses()]
    if len(products) != 1 or products[0].op_type != "MatMul":
        raise StepError(f"mobius made another network than one with a product with {weight}")
    return products[0]


@dataclass(frozen=True)
class _Block:
    """The nodes of one layer's experts.

    Attributes:
        graph: Gets their initializers, without values.
        prefix: Of their names.
        hidden_size: Columns of `operand`.
        operand: What the network is applied to.
    """

    graph: ir.Graph
    prefix: str
    hidden_size: int
    operand: ir.Value

    def nodes(self, experts: Experts) -> list[ir.Node]:
        """Return them in their order; the last one gives the output."""
        logits = self._linear("gate", self.operand, experts.count, self.hidden_size)
        rows = self._node(
            "Reshape", [logits[-1].outputs[0], self._integers("logits_shape", [-1, experts.count])], "Rows"
        )
        nodes = [*logits, rows, self._mixture(rows.outputs[0], experts)]
        if not experts.normalized:
            nodes += self._unnormalized(logits[-1].outputs[0], nodes[-1].outputs[0], experts.per_token)
        if experts.shared_intermediate_size is not None:
            mixture = nodes[-1].outputs[0]
            nodes += self._shared(experts.shared_intermediate_size)
            nodes.append(self._node("Add", [mixture, nodes[-1].outputs[0]], "Add"))
        return nodes

    def _mixture(self, logits: ir.Value, experts: Experts) -> ir.Node:
        inner, hidden = experts.intermediate_size, self.hidden_size
        gate_up = self._weight(f"{self.prefix}.{GATE_UP_EXPERTS}", (experts.count, 2 * inner, hidden))
        down = self._weight(f"{self.prefix}.{DOWN_EXPERTS}", (experts.count, hidden, inner))
        attributes: dict[str, str | float] = {
            "activation_alpha": 1.0,  # SiLU
            "activation_beta": 0.0,
            "activation_type": "swiglu",
            "k": experts.per_token,
            "normalize_routing_weights": 1,
            "swiglu_fusion": 1,  # gate and up alternate
        }
        inputs = [self.operand, logits, gate_up, None, down, None]
        return ir.node("MoE", inputs, attributes, domain=_MS, name=f"{self.prefix}.experts.MoE")

    def _unnormalized(self, logits: ir.Value, mixture: ir.Value, per_token: int) -> list[ir.Node]:
        """Return the nodes that multiply with the sum of the probabilities of the chosen experts."""
        probabilities = self._node("Softmax", [logits], "experts.Softmax", axis=-1)
        count = self._integers("per_token", [per_token])
        best = ir.node("TopK", [probabilities.outputs[0], count], num_outputs=2, name=f"{self.prefix}.experts.TopK")
        axes = self._integers("last_axis", [-1])
        total = self._node("ReduceSum", [best.outputs[0], axes], "experts.ReduceSum")
        return [probabilities, best, total, self._node("Mul", [mixture, total.outputs[0]], "experts.Mul")]

    def _shared(self, inner: int) -> list[ir.Node]:
        gate = self._linear("shared_expert.gate_proj", self.operand, inner, self.hidden_size)
        up = self._linear("shared_expert.up_proj", self.operand, inner, self.hidden_size)
        sigmoid = self._node("Sigmoid", gate[-1].outputs, "shared_expert.Sigmoid")
        silu = self._node("Mul", [gate[-1].outputs[0], sigmoid.outputs[0]], "shared_expert.SiLU")
        product = self._node("Mul", [silu.outputs[0], up[-1].outputs[0]], "shared_expert.Mul")
        down = self._linear("shared_expert.down_proj", product.outputs[0], self.hidden_size, inner)
        share = self._linear("shared_expert_gate", self.operand, 1, self.hidden_size)
        portion = self._node("Sigmoid", share[-1].outputs, "shared_expert_gate.Sigmoid")
        result = self._node("Mul", [portion.outputs[0], down[-1].outputs[0]], "shared_expert_gate.Mul")
        return [*gate, *up, sigmoid, silu, product, *down, *share, portion, result]

    def _linear(self, name: str, operand: ir.Value, rows: int, columns: int) -> list[ir.Node]:
        """Return the nodes of a product with a transposed weight, as mobius makes them."""
        weight = self._weight(f"{self.prefix}.{name}.weight", (rows, columns))
        transpose = self._node("Transpose", [weight], f"{name}.Transpose", perm=[1, 0])
        return [transpose, self._node("MatMul", [operand, transpose.outputs[0]], f"{name}.MatMul")]

    def _node(self, operator: str, inputs: Sequence[ir.Value], name: str, **attributes: int | list[int]) -> ir.Node:
        return ir.node(operator, list(inputs), attributes, name=f"{self.prefix}.{name}")

    def _weight(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, type=self.operand.type, shape=ir.Shape(shape))
        self.graph.initializers[name] = value
        return value

    def _integers(self, what: str, values: list[int]) -> ir.Value:
        """Return a constant that all layers share."""
        name = f"experts.{what}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
            self.graph.initializers[name] = ir.Value(
                name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape((len(values),)), const_value=tensor
            )
        return self.graph.initializers[name]
