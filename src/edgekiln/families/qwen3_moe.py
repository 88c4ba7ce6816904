"""Qwen3-MoE: Qwen3's attention and experts, none of them shared.

llama.cpp normalizes the weights of the chosen experts, as all published checkpoints do.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgekiln.families.base import GGUF_ATTENTION, GGUF_EXPERTS, GGUF_HEAD_NORMS, Family, GgufExperts
from edgekiln.model_config import ExpertDefaults, Reading

QWEN3_MOE: Final = Family(
    model_type="qwen3_moe",
    reading=Reading(
        reads_layer_types=False,
        windowed=lambda _layer, _before: True,
        experts=ExpertDefaults(count=128, per_token=8, intermediate_size=768),
        refused=MappingProxyType({"attention_bias": (False, "no published Qwen3-MoE uses and no runtime maps")}),
    ),
    qkv_bias=False,
    qk_norm=True,
    dense_type="qwen3",
    gguf_architecture="qwen3moe",
    genai_type="qwen3",
    gguf_layer=MappingProxyType({**GGUF_ATTENTION, **GGUF_HEAD_NORMS, **GGUF_EXPERTS}),
    gguf_experts=GgufExperts(normalized=True, needs_head=False),
)
