"""What a family of models declares about itself, and the parts that several families have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from edgekiln.model_config import ModelConfig, Reading

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
FINAL_NORM: Final = "model.norm.weight"
#: Where an expert's number stands in names that mean all experts of a layer.
EXPERT: Final = "{expert}"

#: llama.cpp's names of what layers have, by the checkpoint's; the attention of every family, then what only some have.
GGUF_ATTENTION: Final[Mapping[str, str]] = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
    }
)
GGUF_HEAD_NORMS: Final[Mapping[str, str]] = MappingProxyType(
    {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
)
GGUF_NETWORK: Final[Mapping[str, str]] = MappingProxyType(
    {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
)
GGUF_EXPERTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mlp.gate": "ffn_gate_inp",
        f"mlp.experts.{EXPERT}.gate_proj": "ffn_gate_exps",
        f"mlp.experts.{EXPERT}.up_proj": "ffn_up_exps",
        f"mlp.experts.{EXPERT}.down_proj": "ffn_down_exps",
    }
)
GGUF_SHARED_EXPERT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    }
)


@dataclass(frozen=True)
class GgufExperts:
    """What llama.cpp assumes of an architecture with experts, since GGUF has no keys for it.

    Attributes:
        normalized: Whether the weights of the experts that a token goes to are made to add up to 1.
        needs_head: Whether a tied head has to lie in the file a second time.
    """

    normalized: bool
    needs_head: bool


@dataclass(frozen=True)
class Family:
    """What sets one family apart.

    Attributes:
        model_type: `model_type` of config.json.
        reading: How its config.json is read.
        qkv_bias: Query, key and value projections have a bias.
        qk_norm: Queries and keys are normalized per head.
        dense_type: The family without experts whose attention it has; its own model type if it has none.
        gguf_architecture: `general.architecture` in GGUF.
        genai_type: `model.type` in genai_config.json.
        gguf_layer: llama.cpp's names of what a layer has, by the checkpoint's, both without ending and prefix.
        gguf_experts: What llama.cpp assumes of its experts; None if it has none.
    """

    model_type: str
    reading: Reading
    qkv_bias: bool
    qk_norm: bool
    dense_type: str
    gguf_architecture: str
    genai_type: str
    gguf_layer: Mapping[str, str] = field(repr=False)
    gguf_experts: GgufExperts | None = None

    def layer_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor of a layer, in the order of computation."""
        prefix = f"model.layers.{layer}."
        parts = (*self._attention(config), *_feed_forward(config, layer))
        return {f"{prefix}{name}": shape for name, shape in parts}

    def _attention(self, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden = config.hidden_size
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        yield "input_layernorm.weight", (hidden,)
        for name, rows in (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)):
            yield f"self_attn.{name}.weight", (rows, hidden)
            if self.qkv_bias:
                yield f"self_attn.{name}.bias", (rows,)
        yield "self_attn.o_proj.weight", (hidden, query)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (config.head_dim,)
            yield "self_attn.k_norm.weight", (config.head_dim,)
        yield "post_attention_layernorm.weight", (hidden,)


def _feed_forward(config: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    experts, hidden = config.experts_of(layer), config.hidden_size
    if experts is None:
        yield from _network("mlp", hidden, config.intermediate_size)
        return
    yield "mlp.gate.weight", (experts.count, hidden)
    for number in range(experts.count):
        yield from _network(f"mlp.experts.{number}", hidden, experts.intermediate_size)
    if experts.shared_intermediate_size is not None:
        yield from _network("mlp.shared_expert", hidden, experts.shared_intermediate_size)
        yield "mlp.shared_expert_gate.weight", (1, hidden)


def _network(name: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.gate_proj.weight", (inner, hidden)
    yield f"{name}.up_proj.weight", (inner, hidden)
    yield f"{name}.down_proj.weight", (hidden, inner)
