"""Hyper-parameters read from graphs of ours, and from small ones in the forms that other tools write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifacts import artifact
from edgekiln.checkpoint import open_checkpoint
from edgekiln.validators.onnx_hyperparameters import GraphParameters, read_parameters

CONFIG = open_checkpoint("tiny-qwen3").config


def parameters(directory: Path) -> GraphParameters:
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    return read_parameters(directory, directory, model)


def graph(*nodes, initializers=(), inputs=(), functions=()) -> GraphParameters:
    """Return what a graph of some nodes says, without a file."""
    stored = [numpy_helper.from_array(np.asarray(values), name) for name, values in initializers]
    made = helper.make_model(helper.make_graph(list(nodes), "g", list(inputs), [], stored), functions=list(functions))
    return read_parameters(Path(), Path(), made)


def node(operator, inputs, domain="com.microsoft", **attributes):
    return helper.make_node(operator, inputs, [f"{operator}_out"], operator, domain=domain, **attributes)


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_graph_of_ours_says_all_of_it(tmp_path, precision):
    found = parameters(artifact("onnx", precision, tmp_path))
    assert {(entry.heads, entry.kv_heads) for entry in found.attention} == {(CONFIG.num_heads, CONFIG.num_kv_heads)}
    assert len(found.attention) == CONFIG.num_layers
    assert [round(epsilon, 9) for epsilon in found.epsilons] == [CONFIG.rms_norm_eps]
    assert sum(map(len, found.epsilons.values())) == 4 * CONFIG.num_layers + 1
    assert {(heads, size) for _, heads, size in found.caches} == {(CONFIG.num_kv_heads, CONFIG.head_dim)}
    assert len(found.caches) == 2 * CONFIG.num_layers
    assert found.vocabulary == CONFIG.vocab_size
    (table,) = found.tables
    assert (table.positions, table.rotary_dim) == (CONFIG.max_position_embeddings, CONFIG.head_dim)
    assert table.rows[:4] == (0, 1, 2, 4)
    assert table.rows[-1] == CONFIG.max_position_embeddings - 1
    np.testing.assert_allclose(table.cos**2 + table.sin**2, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "domain", "attributes", "heads"),
    [
        ("GroupQueryAttention", "com.microsoft", {"num_heads": 8, "kv_num_heads": 2}, (8, 2)),
        ("MultiHeadAttention", "com.microsoft", {"num_heads": 8}, (8, None)),
        ("Attention", "com.microsoft", {"num_heads": 8}, (8, None)),
        ("Attention", "", {"q_num_heads": 8, "kv_num_heads": 2}, (8, 2)),
        ("Attention", "ai.onnx", {"q_num_heads": 8, "kv_num_heads": 2}, (8, 2)),
        ("Attention", "", {}, (None, None)),  # queries of four dimensions have their heads in the shape
    ],
)
def test_every_attention_operator_counts_its_heads(operator, domain, attributes, heads):
    (found,) = graph(node(operator, ["q", "k", "v"], domain, **attributes)).attention
    assert (found.heads, found.kv_heads) == heads
    assert (found.scale, found.window, found.softcap, found.interleaved, found.causal) == (
        None,
        None,
        None,
        False,
        True,
    )


def test_what_an_attention_node_says_of_its_scores():
    attributes = {"scale": 0.25, "local_window_size": 64, "softcap": 50.0, "rotary_interleaved": 1, "causal": 0}
    found = graph(node("GroupQueryAttention", ["q"], num_heads=8, kv_num_heads=2, **attributes))
    (entry,) = found.attention
    assert (entry.scale, entry.window, entry.softcap, entry.interleaved, entry.causal) == (0.25, 64, 50.0, True, False)
    assert found.interleaved == ("GroupQueryAttention",)


@pytest.mark.parametrize(
    ("made", "epsilon"),
    [
        (node("SimplifiedLayerNormalization", ["x", "w"], "", epsilon=3e-6), 3e-6),
        (node("SkipSimplifiedLayerNormalization", ["x", "s", "w"], epsilon=3e-6), 3e-6),
        (node("RMSNormalization", ["x", "w"], ""), 1e-5),
        (node("SimplifiedLayerNormalization", ["x", "w"], ""), 1e-5),
        (node("GroupQueryAttention", ["q", *[""] * 13, "w", "w"], num_heads=1, kv_num_heads=1), 1e-6),
        (node("GroupQueryAttention", ["q", *[""] * 13, "w", "w"], num_heads=1, qk_norm_epsilon=3e-6), 3e-6),
    ],
)
def test_the_epsilon_of_every_normalization(made, epsilon):
    (found,) = graph(made).epsilons
    assert found == pytest.approx(epsilon, rel=1e-6)


def test_attention_that_normalizes_nothing_has_no_epsilon():
    assert graph(node("GroupQueryAttention", ["q"], num_heads=1, kv_num_heads=1, qk_norm_epsilon=3e-6)).epsilons == {}


@pytest.mark.parametrize("turned", [False, True])
def test_a_normalization_made_of_single_operators(turned):
    addends = ["ReduceMean_out", "eps"]
    mean = node("ReduceMean", ["squares"], "")
    add = node("Add", addends[::-1] if turned else addends, "")
    other = helper.make_node("Add", ["x", "eps"], ["y"])
    found = graph(mean, add, other, initializers=[("eps", np.float32(3e-6))]).epsilons
    assert {round(epsilon, 9): nodes for epsilon, nodes in found.items()} == {3e-6: ("Add",)}


def tables(positions=16, columns=4, dtype=np.float32):
    angles = np.arange(positions)[:, None] * 100.0 ** (-np.arange(columns) / columns)
    return [("cos", np.cos(angles).astype(dtype)), ("sin", np.sin(angles).astype(dtype))]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(
    ("operator", "domain", "inputs"),
    [
        ("RotaryEmbedding", "com.microsoft", ["x", "positions", "cos", "sin"]),
        ("RotaryEmbedding", "", ["x", "cos", "sin"]),
        ("GroupQueryAttention", "com.microsoft", ["q", "k", "v", "pk", "pv", "len", "total", "cos", "sin"]),
    ],
)
def test_tables_are_found_whichever_operator_reads_them(operator, domain, inputs, dtype):
    (found,) = graph(node(operator, inputs, domain), initializers=tables(dtype=dtype)).tables
    assert (found.name, found.positions, found.rotary_dim) == ("cos", 16, 8)
    np.testing.assert_allclose(found.cos, tables()[0][1][list(found.rows)], atol=1e-3)
    np.testing.assert_allclose(found.sin, tables()[1][1][list(found.rows)], atol=1e-3)


def test_tables_are_found_behind_a_lookup():
    lookups = [helper.make_node("Gather", [name, "positions"], [f"rows_{name}"]) for name in ("cos", "sin")]
    rotation = node("RotaryEmbedding", ["x", "rows_cos", "rows_sin"], "")
    (found,) = graph(*lookups, rotation, initializers=tables()).tables
    assert found.positions == 16


def test_what_a_rotation_says_of_itself():
    rotation = node("RotaryEmbedding", ["x", "p", "c", "s"], rotary_embedding_dim=16, interleaved=1)
    found = graph(rotation)
    assert (found.rotary_dims, found.interleaved) == ({"RotaryEmbedding": 16}, ("RotaryEmbedding",))
    found = graph(node("RotaryEmbedding", ["x", "p", "c", "s"], rotary_embedding_dim=0, interleaved=0))
    assert (found.rotary_dims, found.interleaved) == ({}, ())


def test_tables_that_are_computed_at_run_time_are_not_judged():
    computed = [helper.make_node(name.title(), ["angles"], [name]) for name in ("cos", "sin")]
    assert graph(*computed, node("RotaryEmbedding", ["x", "cos", "sin"], "")).tables == ()


@pytest.mark.parametrize(
    "stored",
    [
        [("cos", np.ones((4, 2, 2), np.float32)), ("sin", np.ones((4, 2, 2), np.float32))],
        [("cos", np.ones((4, 2), np.float32)), ("sin", np.ones((5, 2), np.float32))],
        [("cos", np.ones((4, 0), np.float32)), ("sin", np.ones((4, 0), np.float32))],
        [("cos", np.ones((0, 4), np.float32)), ("sin", np.ones((0, 4), np.float32))],
        [("cos", np.ones((4, 2), np.int64)), ("sin", np.ones((4, 2), np.int64))],
    ],
)
def test_what_is_no_pair_of_tables_is_not_judged(stored):
    assert graph(node("RotaryEmbedding", ["x", "cos", "sin"], ""), initializers=stored).tables == ()


def test_a_circle_of_nodes_ends():
    one, other = (helper.make_node("Identity", [a], [b]) for a, b in (("a", "b"), ("b", "a")))
    assert graph(one, other, node("RotaryEmbedding", ["x", "a", "b"], "")).tables == ()


def test_sizes_left_open_are_none():
    shapes = [("key", ["b", 2, "past", "size"]), ("value", ["b", "heads", "past", 64]), ("ids", ["b", "n"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    assert graph(inputs=inputs).caches == (("key", 2, None), ("value", None, 64))
    assert graph().vocabulary is None


def test_layers_inside_functions_are_not_counted():
    layer = helper.make_function("m", "Layer", [], [], [], [helper.make_opsetid("", 21)])
    assert graph(node("GroupQueryAttention", ["q"], num_heads=1, kv_num_heads=1), functions=[layer]).attention == ()
