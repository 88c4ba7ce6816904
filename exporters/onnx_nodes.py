"""Small changes to a graph of onnx_ir that several rewritings share."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def replace_node(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put `new` where `old` is; the last of them gives the output, under the old output's name."""
    graph.insert_before(old, new)
    (result,) = new[-1].outputs
    (replaced,) = old.outputs
    result.name, result.type, result.shape = replaced.name, replaced.type, replaced.shape
    replaced.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
