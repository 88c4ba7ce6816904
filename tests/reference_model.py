"""A reference for tests: Transformers' whole model behind the interface that references are made by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.validators.layer_weights import Rounding
from edgekiln.validators.reference import ReferenceRuntime


def round_to_fp16(weights: torch.Tensor) -> Rounding:
    """Round a float32 torch tensor to fp16 in place by PyTorch's own rounding, and count what was lost."""
    finite, nonzero = weights.isfinite().sum(), weights.count_nonzero()
    weights.copy_(weights.half())
    return Rounding(int(finite - weights.isfinite().sum()), int(nonzero - weights.count_nonzero()))


def round_parameters(model: torch.nn.Module) -> None:
    """Round all weights of a model to fp16, as the reference of parity has them."""
    with torch.no_grad():
        for parameter in model.parameters():
            round_to_fp16(parameter)


class WholeModel:
    """Runs a checkpoint with all its weights in memory."""

    def __init__(self, checkpoint: Checkpoint, context: int = 512) -> None:
        self._runtime = ReferenceRuntime()
        self._runtime.load(checkpoint.directory, 1, context)
        round_parameters(self._runtime._model)

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        for number, ids in enumerate(sequences):
            first = 0
            for chunk in self._runtime.logits(ids):
                yield number, first, chunk
                first += len(chunk)

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        return [self._runtime.greedy(prompt, count, stop) for prompt in prompts]
