"""The Qwen families that Edgekiln knows; each module beside this one declares one.

A checkpoint of a family must hold exactly the tensors that `expected_tensors` lists, so that nothing of it is dropped
unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.families.base import EMBEDDING, FINAL_NORM, HEAD, Family
from edgekiln.families.qwen2 import QWEN2
from edgekiln.families.qwen2_moe import QWEN2_MOE
from edgekiln.families.qwen3 import QWEN3
from edgekiln.families.qwen3_moe import QWEN3_MOE
from edgekiln.model_config import ModelConfig, Reading

__all__ = ["EMBEDDING", "FAMILIES", "FINAL_NORM", "HEAD", "READINGS", "Family", "expected_tensors"]

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {family.model_type: family for family in (QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE)}
)
#: How the config.json of each family is read.
READINGS: Final[Mapping[str, Reading]] = MappingProxyType({name: family.reading for name, family in FAMILIES.items()})


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a checkpoint with this config has, in the order of computation."""
    family = FAMILIES[config.model_type]
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        tensors |= family.layer_tensors(config, layer)
    tensors[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        tensors[HEAD] = (config.vocab_size, config.hidden_size)
    return tensors
