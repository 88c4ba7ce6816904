"""Qwen2 and Qwen2.5: biases of queries, keys and values, and no norms of heads."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgekiln.families.base import GGUF_ATTENTION, GGUF_NETWORK, Family
from edgekiln.model_config import Reading

QWEN2: Final = Family(
    model_type="qwen2",
    reading=Reading(),
    qkv_bias=True,
    qk_norm=False,
    dense_type="qwen2",
    gguf_architecture="qwen2",
    genai_type="qwen2",
    gguf_layer=MappingProxyType({**GGUF_ATTENTION, **GGUF_NETWORK}),
)
