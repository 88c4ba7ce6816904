"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, experts, and one shared expert behind a gate of its own.

llama.cpp does not normalize the weights of the chosen experts, and wants a head in the file even if it is tied.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgekiln.families.base import (
    GGUF_ATTENTION,
    GGUF_EXPERTS,
    GGUF_SHARED_EXPERT,
    Family,
    GgufExperts,
)
from edgekiln.model_config import ExpertDefaults, Reading

QWEN2_MOE: Final = Family(
    model_type="qwen2_moe",
    reading=Reading(
        windowed=lambda layer, before: layer % 2 == 0 and layer < before,
        experts=ExpertDefaults(count=60, per_token=4, intermediate_size=1408, shared_intermediate_size=5632),
        refused=MappingProxyType({"qkv_bias": (True, "no published Qwen2-MoE lacks and no runtime maps")}),
    ),
    qkv_bias=True,
    qk_norm=False,
    dense_type="qwen2",
    gguf_architecture="qwen2moe",
    genai_type="qwen2",
    gguf_layer=MappingProxyType({**GGUF_ATTENTION, **GGUF_EXPERTS, **GGUF_SHARED_EXPERT}),
    gguf_experts=GgufExperts(normalized=False, needs_head=True),
)
