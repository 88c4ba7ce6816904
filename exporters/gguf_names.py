"""llama.cpp's names of the tensors of a checkpoint.

Those of a layer are declared by its family (`edgekiln.families`). They are the ones of `gguf.get_tensor_name_map` (a
test compares the two), which planning has no use for: importing gguf takes a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.families import Family
from edgekiln.families.base import EXPERT

_GLOBAL: Final[Mapping[str, str]] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
_LAYER: Final = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_EXPERT: Final = re.compile(r"(?<=mlp\.experts\.)[0-9]+(?=\.)")


def gguf_name(family: Family, source: str) -> str | None:
    """Return llama.cpp's name of a checkpoint's tensor; None if it has none. All experts of a layer have one name."""
    stem, _, suffix = source.rpartition(".")
    if suffix not in {"weight", "bias"}:
        return None
    if stem in _GLOBAL:
        return f"{_GLOBAL[stem]}.{suffix}"
    match = _LAYER.fullmatch(stem)
    role = match and family.gguf_layer.get(_EXPERT.sub(EXPERT, match[2]))
    return f"blk.{match[1]}.{role}.{suffix}" if match and role else None
