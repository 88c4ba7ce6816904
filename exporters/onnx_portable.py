"""The operators that graphics-card providers have kernels for.

mobius writes opset 24. ONNX Runtime's CPU provider computes all of it; others register kernels of a new opset late or,
like DirectML, never, and each node without one is computed on the CPU with a copy there and back (282 copies per token
were reported for CUDA). onnxruntime-genai's own builder therefore writes an older opset with ONNX Runtime's own
normalization and rotary operators, for which every provider of language models has kernels. This module brings a graph
into that form; nothing changes in what it computes.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from edgekiln.errors import StepError
from edgekiln.exporters.onnx_nodes import replace_node

#: An opset that DirectML and older releases of ONNX Runtime know.
OPSET: Final = 21
#: The version of the file format that came with it.
IR_VERSION: Final = 10
#: Operators that mean the same in opset 21 and 24 (later versions only admit further types).
_SAME: Final = frozenset(
    {"Add", "Cast", "Concat", "Constant", "Gather", "MatMul", "Mul"}
    | {"ReduceSum", "Reshape", "Shape", "Sigmoid", "Sub", "Transpose", "Unsqueeze"}
)


def make_portable(model: ir.Model) -> None:
    """Rewrite a float graph in place.

    Raises:
        StepError: It has an operator that is not known to mean the same in the older opset.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "RMSNormalization":
            replace_node(graph, node, [_simplified_layer_normalization(node)])
        elif node.op_type == "RotaryEmbedding" and not node.domain:
            replace_node(graph, node, [_rotary_embedding(node)])
        elif not node.domain and node.op_type not in _SAME:
            raise StepError(f"{node.op_type} is not known to be the same in opset {OPSET} ({node.name})")
    graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _simplified_layer_normalization(node: ir.Node) -> ir.Node:
    """Return ONNX Runtime's operator of the same arithmetic; it lies in the standard domain for historical reasons."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return ir.node(
        "SimplifiedLayerNormalization", node.inputs, {"stash_type": 1, **attributes}, name=node.name, num_outputs=1
    )


def _rotary_embedding(node: ir.Node) -> ir.Node:
    """Return ONNX Runtime's operator, which looks the tables up by position itself."""
    operand, *tables = node.inputs
    lookups = [table.producer() if table is not None else None for table in tables]
    if len(lookups) != 2 or any(lookup is None or lookup.op_type != "Gather" for lookup in lookups):
        raise StepError(f"{node.name} takes its tables in a way that is not known")
    (cosine, positions), (sine, other) = (lookup.inputs for lookup in lookups if lookup is not None)
    if positions is not other:
        raise StepError(f"{node.name} looks its two tables up at different positions")
    # The number of heads follows from the width of the tables; giving it would mean a partial rotation.
    attributes = {name: value.value for name, value in node.attributes.items() if name == "interleaved"}
    return ir.node(
        "RotaryEmbedding", [operand, positions, cosine, sine], attributes, domain="com.microsoft", name=node.name
    )
