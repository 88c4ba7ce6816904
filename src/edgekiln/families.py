"""The Qwen families that Edgekiln knows: which tensors each has, and what each container calls it.

A family is data. A checkpoint of a family must hold exactly the tensors that `expected_tensors` lists, so that
nothing of it is dropped unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgekiln.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class Family:
    """What sets one family apart.

    Attributes:
        model_type: `model_type` of config.json.
        qkv_bias: Query, key and value projections have a bias.
        qk_norm: Queries and keys are normalized per head.
        gguf_architecture: `general.architecture` in GGUF.
        genai_type: `model.type` in genai_config.json.
    """

    model_type: str
    qkv_bias: bool
    qk_norm: bool
    gguf_architecture: str
    genai_type: str


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen2": Family("qwen2", True, False, "qwen2", "qwen2"),
        "qwen3": Family("qwen3", False, True, "qwen3", "qwen3"),
    }
)


def _layer_tensors(family: Family, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{layer}."
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {f"{prefix}input_layernorm.weight": (hidden,)}
    for name, rows in (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)):
        tensors[f"{prefix}self_attn.{name}.weight"] = (rows, hidden)
        if family.qkv_bias:
            tensors[f"{prefix}self_attn.{name}.bias"] = (rows,)
    tensors[f"{prefix}self_attn.o_proj.weight"] = (hidden, query)
    if family.qk_norm:
        tensors[f"{prefix}self_attn.q_norm.weight"] = (config.head_dim,)
        tensors[f"{prefix}self_attn.k_norm.weight"] = (config.head_dim,)
    tensors[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    tensors[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
    tensors[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
    tensors[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    return tensors


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a checkpoint with this config has, in the order of computation."""
    family = FAMILIES[config.model_type]
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        tensors |= _layer_tensors(family, config, layer)
    tensors[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        tensors[HEAD] = (config.vocab_size, config.hidden_size)
    return tensors
