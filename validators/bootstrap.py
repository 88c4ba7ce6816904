"""Confidence intervals by the bootstrap, from blocks of neighbouring positions.

Neighbouring tokens share their context, so that their errors correlate; drawing single positions would make intervals
too narrow. Drawn, with replacement, are blocks of `BLOCK` consecutive positions that never cross a window (Künsch,
The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17, 1989; here blocks do not
overlap). Blocks of all windows are drawn together: the spread between parts of the corpus widens the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Positions per block: long against the few tokens over which errors correlate, short enough that a quick run of four
#: windows still has 32 blocks.
BLOCK: Final = 32
#: Resamples; the 2.5 % quantile of 2,000 has 50 draws beyond it.
RESAMPLES: Final = 2000
#: Fewer blocks say nothing of how they scatter.
LEAST_BLOCKS: Final = 4
_SEED: Final = 20
_LEVEL: Final = 0.95


def block_sums(values: NDArray[np.float64], lengths: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (sums, counts) of all blocks.

    Args:
        values: float64 [positions, columns], window after window.
        lengths: Positions of each window.
    """
    starts = [
        start + offset
        for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)
        for offset in range(0, length, BLOCK)
    ]
    counts = np.diff([*starts, len(values)]).astype(np.float64)
    return np.add.reduceat(values, starts, axis=0), counts


def mean_intervals(values: NDArray[np.float64], lengths: Sequence[int]) -> list[tuple[float, float]] | None:
    """Return the 95 % percentile interval of each column's mean; equal input gives an equal answer.

    The mean of a draw is the sum of its blocks over the number of their positions.

    Args:
        values: float64 [positions, columns], finite, window after window; columns are drawn together.
        lengths: Positions of each window.

    Returns:
        (low, high) per column, or None where there are fewer than `LEAST_BLOCKS` blocks.
    """
    sums, counts = block_sums(values, lengths)
    blocks = len(counts)
    if blocks < LEAST_BLOCKS:
        return None
    drawn = np.random.default_rng(_SEED).multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES).astype(np.float64)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
