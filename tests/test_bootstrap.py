"""Bootstrap intervals: they cover what they should, and depend on nothing but their input."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.validators.bootstrap import BLOCK, LEAST_BLOCKS, block_sums, mean_intervals


def correlated(seed: int, size: int, memory: float) -> NDArray[np.float64]:
    """An autoregressive series of mean 0."""
    noise = np.random.default_rng(seed).normal(size=size)
    for index in range(1, size):
        noise[index] += memory * noise[index - 1]
    return noise[:, None]


def test_blocks_stay_within_windows_and_lose_nothing() -> None:
    values = np.arange(100, dtype=np.float64)[:, None]
    sums, counts = block_sums(values, [40, 3, 57])
    assert counts.tolist() == [BLOCK, 8, 3, BLOCK, 25]
    assert sums[:, 0].tolist() == [values[a:b].sum() for a, b in ((0, 32), (32, 40), (40, 43), (43, 75), (75, 100))]


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_intervals_cover_the_true_mean_as_often_as_they_say(memory: float) -> None:
    trials = 100
    covered = 0
    for seed in range(trials):
        found = mean_intervals(correlated(seed, 1020, memory), [255] * 4)
        assert found is not None
        covered += found[0][0] <= 0 <= found[0][1]
    assert 0.85 <= covered / trials <= 0.99  # drawing single positions covers 0.5 of correlated ones


def test_input_decides() -> None:
    values = np.abs(correlated(1, 1020, 0.3))
    first = mean_intervals(values, [255] * 4)
    assert first is not None
    assert first == mean_intervals(values.copy(), [255] * 4)
    ((low, high),) = first
    assert low < values.mean() < high
    both = mean_intervals(np.hstack([values, 3 * values]), [255] * 4)
    assert both is not None
    np.testing.assert_allclose(both[1], [3 * low, 3 * high], rtol=1e-12)  # columns are drawn together
    assert mean_intervals(np.full((1020, 1), 0.25), [255] * 4) == [(0.25, 0.25)]


def test_too_few_blocks_have_no_interval() -> None:
    few = BLOCK * (LEAST_BLOCKS - 1)
    assert mean_intervals(np.ones((few, 1)), [few]) is None
    assert mean_intervals(np.ones((few + 1, 1)), [few + 1]) is not None
