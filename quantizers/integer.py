"""Integers with a scale per group: the grids of MatMulNBits, rounded to nearest.

The numbers are, bit for bit, those of ONNX Runtime's `quantize_matmul_4bits` and `quantize_matmul_8bits`
(`BlockwiseQuantizer` in MLAS), which define these grids; the tests compare the two. The kernels are not called because
each call starts a pool of threads and wants the matrix transposed: side by side, they need four to six times as long.

Symmetric: the scale maps the weight of largest magnitude to the lowest code, -2^(bits-1), and the zero point is
2^(bits-1). Asymmetric: scale and zero point map the group's range, widened to hold 0, onto all codes. On a grid of
float16 scales the scale is rounded first, and the codes are the nearest ones for the rounded scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.grids import Grid, IntegerGrid, IntegerRows, QuantizedRows
from edgekiln.installed import package_version
from edgekiln.quantizers.base import group_batches, reciprocal, round_to_float16

#: The largest number below a half. Added to any x >= 0 that a code can be, it makes truncation round half up, as C's
#: `roundf` does: with 0.5 itself, the number just below 0.5 would become 1.
_HALF: Final = np.nextafter(np.float32(0.5), np.float32(0))


class IntegerQuantizer:
    """Round-to-nearest onto the `IntegerGrid`s of one bit width.

    Args:
        bits: 4 or 8.
    """

    def __init__(self, bits: Literal[4, 8]) -> None:
        self.bits = bits

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> IntegerRows:
        """Return `rows`, float32 [rows, columns], on `grid`.

        Raises:
            UsageError: The group size does not divide the columns.
            StepError: A scale is too large for the grid's float16.
            TypeError: The grid is none of this quantizer's.
        """
        grid = self._own(grid)
        count, columns = rows.shape
        groups = rows.size // grid.group_size
        codes = np.empty((groups, grid.group_size * self.bits // 8), np.uint8)
        scales = np.empty(groups, np.float32)
        zero_points = None if grid.symmetric else np.empty(groups, np.uint8)
        for part, weights in group_batches(rows, grid.group_size):
            scale, offset = self._parameters(weights, symmetric=grid.symmetric)
            scales[part] = scale if grid.scale_dtype == "float32" else round_to_float16(scale)
            if zero_points is not None:
                zero_points[part] = offset
            codes[part] = self._codes(weights, scales[part], offset).T
        shape = (count, columns // grid.group_size)
        offsets = None if zero_points is None else zero_points.reshape(shape)
        return IntegerRows(grid, columns, codes.reshape(*shape, -1), scales.reshape(shape), offsets)

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return (code - zero point) · scale, float32 [rows, columns]."""
        if not isinstance(quantized, IntegerRows):
            raise TypeError(f"an integer quantizer does not dequantize {type(quantized).__name__}")
        grid = self._own(quantized.grid)
        count, groups, _ = quantized.codes.shape
        codes = self._unpack(quantized.codes.reshape(count * groups, -1)).reshape(count, groups, grid.group_size)
        offset: NDArray[np.float32] | np.float32 = np.float32(1 << (self.bits - 1))
        if quantized.zero_points is not None:
            offset = quantized.zero_points.astype(np.float32)[:, :, None]
        values = (codes.astype(np.float32) - offset) * quantized.scales[:, :, None]
        return values.reshape(count, quantized.columns)

    def library_versions(self) -> Mapping[str, str]:
        """Return the version of NumPy, which does the arithmetic."""
        return {"numpy": package_version("numpy")}

    def _own(self, grid: Grid) -> IntegerGrid:
        if not isinstance(grid, IntegerGrid) or grid.bits != self.bits:
            raise TypeError(f"this quantizer is for int{self.bits} grids, not {grid.name}")
        return grid

    def _parameters(
        self, weights: NDArray[np.float32], *, symmetric: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | np.float32]:
        """Return scale and zero point of each group of `weights`, [group size, groups]."""
        smallest, largest = weights.min(0), weights.max(0)
        if symmetric:
            middle = np.float32(1 << (self.bits - 1))
            return np.where(np.abs(largest) > np.abs(smallest), largest, smallest) / -middle, middle
        top = np.float32((1 << self.bits) - 1)
        smallest = np.minimum(smallest, np.float32(0))
        with np.errstate(over="ignore"):
            scale = (np.maximum(largest, np.float32(0)) - smallest) / top
            zero = np.divide(-smallest, scale, out=np.zeros_like(scale), where=scale != 0)
        return scale, np.trunc(np.clip(zero + _HALF, np.float32(0), top))

    def _codes(
        self,
        weights: NDArray[np.float32],
        scales: NDArray[np.float32],
        offset: NDArray[np.float32] | np.float32,
    ) -> NDArray[np.uint8]:
        """Return the packed codes nearest to `weights`, [group size, groups], which are overwritten."""
        with np.errstate(over="ignore", invalid="ignore"):  # where the reciprocal of a scale is infinite
            weights *= reciprocal(scales)
            weights += offset
            weights += _HALF
            np.clip(weights, 0, np.float32((1 << self.bits) - 1), out=weights)
            codes = weights.astype(np.uint8)
        if self.bits == 8:
            return codes
        packed: NDArray[np.uint8] = codes[0::2] | np.left_shift(codes[1::2], np.uint8(4))
        return packed

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return one code per byte along the last axis; of two 4-bit codes the first is in the low nibble."""
        if self.bits == 8:
            return packed
        pairs = np.stack((packed & 0x0F, packed >> 4), axis=-1)
        return pairs.reshape(*packed.shape[:-1], packed.shape[-1] * 2)
