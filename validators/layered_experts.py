"""The experts of a layer as Transformers holds them, and what it computes with them.

A checkpoint has three matrices for each expert. Transformers has two parameters for all experts of a layer: gates above
up projections, [experts, 2·inner, hidden], and down projections, [experts, hidden, inner].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

#: Told an expert's number, the name of one of its matrices, and what it is multiplied with, [tokens, columns].
Tell: TypeAlias = Callable[[int, str, Any], None]

_EXPERT: Final = re.compile(r"(.*mlp\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_GATE_UP: Final = "gate_up_proj"


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the checkpoint lies.

    Attributes:
        parameter: Name of the parameter.
        index: Of the tensor in it; empty for the whole.
    """

    parameter: str
    index: tuple[int | slice, ...] = ()


def slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Return where each tensor of the checkpoint lies, by its name; those that are no expert's lie by themselves."""
    return {name: _slot(name, shape) for name, shape in shapes.items()}


def _slot(name: str, shape: tuple[int, ...]) -> Slot:
    match = _EXPERT.fullmatch(name)
    if match is None:
        return Slot(name)
    prefix, expert, part = match[1], int(match[2]), match[3]
    if part == "down_proj":
        return Slot(prefix + part, (expert,))
    first = 0 if part == "gate_proj" else shape[0]
    return Slot(prefix + _GATE_UP, (expert, slice(first, first + shape[0])))


def parameter_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that tensors of these shapes fill."""
    placed = slots(shapes)
    counts = Counter(slot.parameter for slot in placed.values())
    found: dict[str, tuple[int, ...]] = {}
    for name, slot in placed.items():
        if not slot.index:
            found[name] = shapes[name]
        elif slot.parameter.endswith(_GATE_UP):
            rows, columns = shapes[name]
            found[slot.parameter] = (counts[slot.parameter] // 2, 2 * rows, columns)
        else:
            found[slot.parameter] = (counts[slot.parameter], *shapes[name])
    return found


def expert_modules(module: Any) -> Iterable[Any]:
    """Return the modules inside a layer that hold experts."""
    return [part for part in module.modules() if hasattr(part, _GATE_UP)]


def compute(module: Any, product: Callable[[Any, Any], Any], tell: Tell, states: Any, chosen: Any, weights: Any) -> Any:
    """Return what the experts make of states, as Transformers' own loop over experts does.

    Args:
        module: Holds the two parameters.
        product: Of states [rows, columns] and the transpose of weights.
        tell: Is told what each matrix is multiplied with.
        states: float32 [tokens, hidden].
        chosen: int64 [tokens, per token]: which experts.
        weights: float32 of that shape: how much each counts.
    """
    import torch

    result = torch.zeros_like(states)
    for expert in chosen.unique().tolist():
        tokens, places = torch.where(chosen == expert)
        rows = states[tokens]
        tell(expert, "gate_proj", rows)
        tell(expert, "up_proj", rows)
        gate, up = product(rows, module.gate_up_proj[expert]).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        tell(expert, "down_proj", inner)
        outputs = product(inner, module.down_proj[expert]) * weights[tokens, places, None]
        result.index_add_(0, tokens, outputs)
    return result
