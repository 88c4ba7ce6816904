"""Names of every maker lead to the checkpoint's tensors, and what is left out by design has a reason."""

from __future__ import annotations

import numpy as np
import pytest

from edgekiln.checkpoint import open_checkpoint
from edgekiln.validators.weight_names import claims, dropped_reason, split_layer
from edgekiln.validators.weights import Weight, unchanged

QKV = tuple(f"model.layers.3.self_attn.{part}_proj" for part in "qkv")


def weight(name: str, use: str = "matrix") -> Weight:
    shape = (4,) if use == "vector" else (4, 4)
    return Weight(name, shape, "f32", use, (((name, 0), 64),), lambda a, b: np.zeros((b - a, 4)), unchanged)


@pytest.mark.parametrize(
    ("name", "use", "gguf", "sources"),
    [
        ("blk.3.ffn_down.weight", "matrix", True, ("model.layers.3.mlp.down_proj.weight",)),
        ("blk.3.attn_qkv.weight", "matrix", True, tuple(f"{name}.weight" for name in QKV)),
        ("output_norm.weight", "vector", True, ("model.norm.weight",)),
        ("blk.99.ffn_down.weight", "matrix", True, ()),
        ("model.layers.3.attn.qkv_proj.MatMul.weight_Q4", "matrix", False, tuple(f"{name}.weight" for name in QKV)),
        ("model.layers.3.attn.q_proj.MatMul.weight_Q8G32", "matrix", False, (f"{QKV[0]}.weight",)),
        ("model.layers.3.attn.q_norm.layernorm.weight", "vector", False, ("model.layers.3.self_attn.q_norm.weight",)),
        ("model.layers.3.mlp.gate_proj.MatMulNBits.qweight", "matrix", False, ("model.layers.3.mlp.gate_proj.weight",)),
        ("model.layers.4.final_norm_layernorm.weight", "vector", False, ("model.norm.weight",)),
        ("model.layers.3.self_attn.o_proj.weight.codes", "matrix", False, ("model.layers.3.self_attn.o_proj.weight",)),
        ("lm_head.MatMul.weight_Q4", "head", False, ("model.embed_tokens.weight",)),
        ("lm_head.MatMul.weight_Q4", "embedding", False, ("model.embed_tokens.weight",)),
        ("onnx::MatMul_231", "matrix", False, ()),
        ("onnx::MatMul_231", "head", False, ("model.embed_tokens.weight",)),
    ],
)
def test_a_name_says_what_it_is(name, use, gguf, sources):
    checkpoint = open_checkpoint("tiny-qwen3")
    (claim,) = claims([weight(name, use)], checkpoint, gguf=gguf)
    assert (claim.sources, claim.computed) == (sources, False)


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "rope_factors_long.weight", "cos_cache", "model.rotary_emb.inv_freq"]
)
def test_what_is_computed_is_no_weight(name):
    (claim,) = claims([weight(name)], open_checkpoint("tiny-qwen3"), gguf=name.startswith("rope"))
    assert claim.computed


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("mtp.layers.0.mlp.up_proj.weight", True),
        ("model.visual.patch_embed.proj.weight", True),
        ("model.layers.4.eh_proj.weight", True),
        ("model.layers.3.mlp.up_proj.weight", False),
        ("lm_head.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_what_may_be_left_out_has_a_reason(name, dropped):
    assert bool(dropped_reason(name, 4)) is dropped


def test_layers_and_parts():
    assert split_layer("model.layers.12.self_attn.q_proj.bias") == (12, "self_attn.q_proj.bias")
    assert split_layer("model.embed_tokens.weight") == (None, "embed_tokens")
