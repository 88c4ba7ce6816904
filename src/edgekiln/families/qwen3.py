"""Qwen3: queries and keys are normalized per head, and no projection has a bias."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgekiln.families.base import GGUF_ATTENTION, GGUF_HEAD_NORMS, GGUF_NETWORK, Family
from edgekiln.model_config import Reading

QWEN3: Final = Family(
    model_type="qwen3",
    reading=Reading(
        head_dim=128,
        refused=MappingProxyType({"attention_bias": (False, "no published Qwen3 uses and no runtime maps")}),
    ),
    qkv_bias=False,
    qk_norm=True,
    dense_type="qwen3",
    gguf_architecture="qwen3",
    genai_type="qwen3",
    gguf_layer=MappingProxyType({**GGUF_ATTENTION, **GGUF_HEAD_NORMS, **GGUF_NETWORK}),
)
