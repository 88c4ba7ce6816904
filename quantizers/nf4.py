"""NF4: sixteen fixed values, quantiles of a normal distribution, scaled by the block's largest magnitude.

Source: Dettmers et al., QLoRA (arXiv:2305.14314), appendix E. The numbers are, bit for bit, those of ONNX Runtime's
`quantize_matmul_bnb4` and of bitsandbytes, whose tree of comparisons counts what this counts; the tests compare. Blocks
without a normal float32 are the exception: bitsandbytes (0.50, on a CPU) divides them by the least of those, and loses
their weights. On a grid of float16 scales the largest magnitude is rounded first, and the codes are the nearest ones
for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.grids import NF4_VALUES, CodebookGrid, CodebookRows, Grid, QuantizedRows
from edgekiln.installed import package_version
from edgekiln.quantizers.base import group_batches, reciprocal, round_to_float16

#: Halfway between neighbours: a code is the number of these that a weight lies above.
_MIDDLES: Final = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / np.float32(2)


class Nf4:
    """Nearest NF4 value."""

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> CodebookRows:
        """Return `rows`, float32 [rows, columns], on `grid`.

        Raises:
            UsageError: The block size does not divide the columns.
            StepError: A magnitude is too large for the grid's float16.
            TypeError: The grid is not NF4.
        """
        if not isinstance(grid, CodebookGrid):
            raise TypeError(f"Nf4 quantizes onto nf4 grids, not {grid.name}")
        codes = np.empty((rows.size // grid.group_size, grid.group_size // 2), np.uint8)
        absmax = np.empty(len(codes), np.float32)
        for part, weights in group_batches(rows, grid.group_size):
            largest = np.maximum(np.abs(weights.max(0)), np.abs(weights.min(0)))
            absmax[part] = largest if grid.scale_dtype == "float32" else round_to_float16(largest)
            codes[part] = _codes(weights, absmax[part]).T
        return CodebookRows(grid, rows.shape[1], codes.reshape(-1), absmax)

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return value · absmax, float32 [rows, columns]."""
        if not isinstance(quantized, CodebookRows):
            raise TypeError(f"Nf4 does not dequantize {type(quantized).__name__}")
        codes = np.stack((quantized.codes >> 4, quantized.codes & 0x0F), axis=-1).reshape(-1)
        blocks = NF4_VALUES[codes].reshape(-1, quantized.grid.group_size) * quantized.absmax[:, None]
        return blocks.reshape(-1, quantized.columns)

    def library_versions(self) -> Mapping[str, str]:
        """Return the version of NumPy, which does the arithmetic."""
        return {"numpy": package_version("numpy")}


def _codes(blocks: NDArray[np.float32], absmax: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the packed codes nearest to `blocks`, [block size, blocks], which are overwritten."""
    with np.errstate(over="ignore", invalid="ignore"):  # where the reciprocal of absmax is infinite
        blocks *= reciprocal(absmax)
        codes = np.zeros(blocks.shape, np.uint8)
        for middle in _MIDDLES:
            codes += blocks > middle
    packed: NDArray[np.uint8] = np.left_shift(codes[0::2], np.uint8(4)) | codes[1::2]
    return packed
