"""Checks and conversions of float rows that every exporter needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError


def require_finite(name: str, rows: NDArray[np.float32]) -> None:
    """Refuse rows with NaN or infinity.

    Raises:
        StepError: Names the tensor and how many weights of these rows are not finite.
    """
    if np.isfinite(rows.min()) and np.isfinite(rows.max()):  # two passes without a temporary; NaN propagates
        return
    count = int(np.count_nonzero(~np.isfinite(rows)))
    raise StepError(f"{name} holds {count} NaN or infinite weights; the checkpoint is damaged or its training diverged")


def to_float16(name: str, rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return finite rows as float16, rounded to nearest even; an underflow becomes a subnormal or zero.

    Raises:
        StepError: Weights that are too large for float16.
    """
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if overflown := int(np.count_nonzero(np.isinf(half))):
        raise StepError(
            f"{name} holds {overflown} weights beyond ±65504, which fp16 cannot hold; export another precision"
        )
    return half
