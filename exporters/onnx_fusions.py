"""Which tensors of a checkpoint are one initializer of the graph, and in which order its rows have theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.exporters.onnx_providers import OnnxProvider

#: Names of the matrices of all experts of a layer, behind `model.layers.N.mlp`.
GATE_UP_EXPERTS: Final = "experts.gate_up_proj.weight"
DOWN_EXPERTS: Final = "experts.down_proj.weight"
#: How the names end of what is multiplied to decide which experts compute, and how much the shared one counts.
ROUTERS: Final = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")
_EXPERT: Final = re.compile(r"(.+\.mlp\.)experts\.(\d+\.(?:gate|up|down)_proj\.weight)")


@dataclass(frozen=True)
class Fusion:
    """One initializer.

    Attributes:
        name: Its name in the graph.
        sources: The checkpoint's tensors whose rows it has, in order.
        in_turn: So many sources after another give a row each in turn.
        experts: How many experts it has, along its first axis; None for a matrix or vector.
    """

    name: str
    sources: tuple[str, ...]
    in_turn: int = 1
    experts: int | None = None


def fusions(checkpoint: Checkpoint, provider: OnnxProvider) -> Iterator[Fusion]:
    """Yield every initializer that is made of the checkpoint's tensors, in the order of computation.

    Query, key and value are one where the graph packs them. The experts of a layer are two: gates with up projections,
    row by row, and down projections.
    """
    packed = provider.rotates_in_attention and not checkpoint.family.qk_norm
    for source in checkpoint.tensors:
        if expert := _EXPERT.fullmatch(source):
            if expert[2] == "0.gate_proj.weight":  # the first of the layer stands for all
                yield from _of_experts(checkpoint, expert[1])
        elif packed and ".self_attn.q_proj." in source:
            parts = tuple(source.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
            yield Fusion(source.replace("q_proj", "qkv_proj"), parts)
        elif not (packed and (".self_attn.k_proj." in source or ".self_attn.v_proj." in source)):
            yield Fusion(source, (source,))


def _of_experts(checkpoint: Checkpoint, prefix: str) -> Iterator[Fusion]:
    count = checkpoint.config.experts.count if checkpoint.config.experts else 0
    names = [f"{prefix}experts.{number}" for number in range(count)]
    gate_up = tuple(f"{name}.{part}_proj.weight" for name in names for part in ("gate", "up"))
    yield Fusion(prefix + GATE_UP_EXPERTS, gate_up, in_turn=2, experts=count)
    yield Fusion(prefix + DOWN_EXPERTS, tuple(f"{name}.down_proj.weight" for name in names), experts=count)
