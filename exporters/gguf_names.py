"""llama.cpp's names of the tensors of a dense Qwen decoder.

The table is that of `gguf.get_tensor_name_map` for the architectures qwen2 and qwen3 (a test compares the two). It
stands here because importing gguf takes a tenth of a second, which planning has no use for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_GLOBAL: Final[Mapping[str, str]] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
_IN_LAYER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_LAYER: Final = re.compile(r"model\.layers\.([0-9]+)\.(.+)")


def gguf_name(source: str) -> str | None:
    """Return llama.cpp's name of a checkpoint's tensor; None if it has none."""
    stem, _, suffix = source.rpartition(".")
    if suffix not in {"weight", "bias"}:
        return None
    if stem in _GLOBAL:
        return f"{_GLOBAL[stem]}.{suffix}"
    match = _LAYER.fullmatch(stem)
    if match is None or match[2] not in _IN_LAYER:
        return None
    return f"blk.{match[1]}.{_IN_LAYER[match[2]]}.{suffix}"
