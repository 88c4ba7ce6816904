"""What every quantizer promises, and what several of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError, UsageError
from edgekiln.grids import Grid, QuantizedRows

#: Weights that are worked on at once: half a megabyte of float32 and its codes stay in the cache of a core.
_BATCH: Final = 1 << 17


class Quantizer(Protocol):
    """Maps float rows onto a grid. It knows no tensor name and no file format.

    The result for a row depends on that row alone, so rows may come in chunks of any size and from any thread.
    """

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> QuantizedRows:
        """Return `rows`, float32 [rows, columns], on `grid`; the input is not changed."""
        ...

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return the values that `quantized` stands for, float32 [rows, columns]."""
        ...

    def library_versions(self) -> Mapping[str, str]:
        """Return what did the arithmetic, for manifests: packages with their version, libraries with their sha256."""
        ...


def group_batches(rows: NDArray[np.float32], group_size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield (groups, their weights as float32 [group size, groups]) of all rows, a few thousand groups at a time.

    The groups lie side by side, so that what is done to each of them is done to all by one vector instruction. The
    weights are a copy, and the caller's to overwrite.

    Raises:
        UsageError: The group size does not divide the rows.
    """
    columns = rows.shape[1]
    if columns % group_size:
        raise UsageError(f"group size {group_size} does not divide rows of {columns} weights")
    groups = np.ascontiguousarray(rows, np.float32).reshape(-1, group_size)
    step = max(1, _BATCH // group_size)
    for start in range(0, len(groups), step):
        part = slice(start, min(start + step, len(groups)))
        yield part, groups[part].T.copy()


def reciprocal(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / scale, and 0 for a scale of 0."""
    with np.errstate(over="ignore"):  # of a subnormal number it is infinite, as it is in the kernels
        return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


def round_to_float16(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `scales` rounded to the nearest float16 number, as float32.

    Raises:
        StepError: One of them is beyond ±65504.
    """
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if overflown := int(np.count_nonzero(np.isinf(rounded))):
        raise StepError(
            f"{overflown} groups have weights so large that they overflow float16 scales; "
            "export for the cpu, whose scales are float32"
        )
    return rounded.astype(np.float32)
