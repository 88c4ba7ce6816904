"""A reference for tests: Transformers' whole model behind the interface that references are made by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.validators.reference import ReferenceRuntime


class WholeModel:
    """Runs a checkpoint with all its weights in memory."""

    def __init__(self, checkpoint: Checkpoint, context: int = 512) -> None:
        self._runtime = ReferenceRuntime()
        self._runtime.load(checkpoint.directory, 1, context)
        self._runtime.round_weights()

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        for number, ids in enumerate(sequences):
            first = 0
            for chunk in self._runtime.logits(ids):
                yield number, first, chunk
                first += len(chunk)

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        return [self._runtime.greedy(prompt, count, stop) for prompt in prompts]
