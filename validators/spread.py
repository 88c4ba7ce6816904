"""How much repeated measurements scatter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile, interpolated between the values; (0, 0) where there are none."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def relative_spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median, a share that single outliers of many samples do not move.

    0 for a single value, and where the median is 0.
    """
    lower, upper = middle_half(values)
    middle = statistics.median(values) if values else 0.0
    return (upper - lower) / middle if middle else 0.0
