"""Integers with a float32 scale per group: the grids of MatMulNBits, rounded to nearest.

The kernels are ONNX Runtime's `quantize_matmul_4bits` and `quantize_matmul_8bits`, which define these grids.
Symmetric: the scale maps the weight of largest magnitude to the lowest code, -2^(bits-1), and the zero point is
2^(bits-1). Asymmetric: scale and zero point map the group's range, widened to hold 0, onto all codes.

On a grid of float16 scales the kernels would choose the codes for the scale before rounding, and a scale below 2^-14
loses most of its digits then; here the scale is rounded first and the codes are the nearest ones for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import UsageError
from edgekiln.grids import Grid, IntegerGrid, IntegerRows, QuantizedRows
from edgekiln.installed import package_version
from edgekiln.quantizers.base import round_to_float16


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
        from onnxruntime.capi import _pybind_state as kernels

        grid = self._own(grid)
        count, columns = rows.shape
        if columns % grid.group_size:
            raise UsageError(f"group size {grid.group_size} does not divide rows of {columns} weights")
        groups = columns // grid.group_size
        codes = np.empty((count, groups, grid.group_size * self.bits // 8), np.uint8)
        scales = np.empty(count * groups, np.float32)
        # The kernels take the weight as [K, N] and leave the bits that no zero point uses as they find them.
        zero_points = np.zeros((count, -(-groups * self.bits // 8)), np.uint8)
        kernel = kernels.quantize_matmul_4bits if self.bits == 4 else kernels.quantize_matmul_8bits
        weight = np.ascontiguousarray(rows.T)
        kernel(codes, weight, scales, zero_points.reshape(-1), grid.group_size, count, columns, grid.symmetric)
        scales = scales.reshape(count, groups)
        offsets = None if grid.symmetric else self._unpack(zero_points)[:, :groups]
        if grid.scale_dtype == "float16":
            scales = round_to_float16(scales)
            codes = self._nearest(rows.reshape(count, groups, grid.group_size), scales, offsets)
        return IntegerRows(grid, columns, codes, scales, offsets)

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
        """Return the version of ONNX Runtime, whose kernel rounds."""
        return {"onnxruntime": package_version("onnxruntime")}

    def _own(self, grid: Grid) -> IntegerGrid:
        if not isinstance(grid, IntegerGrid) or grid.bits != self.bits:
            raise TypeError(f"this quantizer is for int{self.bits} grids, not {grid.name}")
        return grid

    def _nearest(
        self, weights: NDArray[np.float32], scales: NDArray[np.float32], zero_points: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """Return the packed codes nearest to `weights`, [rows, groups, group size], for given scales."""
        offset: NDArray[np.float32] | np.float32 = np.float32(1 << (self.bits - 1))
        if zero_points is not None:
            offset = zero_points.astype(np.float32)[:, :, None]
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
        places = weights * inverse[:, :, None]
        places += offset
        places += np.float32(0.5)  # ties go up, as in the kernels: weights of bfloat16 have many of them
        codes = np.clip(np.floor(places, out=places), 0, (1 << self.bits) - 1, out=places).astype(np.uint8)
        if self.bits == 8:
            return codes
        packed: NDArray[np.uint8] = codes[:, :, 0::2] | np.left_shift(codes[:, :, 1::2], np.uint8(4))
        return packed

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return one code per byte along the last axis; of two 4-bit codes the first is in the low nibble."""
        if self.bits == 8:
            return packed
        pairs = np.stack((packed & 0x0F, packed >> 4), axis=-1)
        return pairs.reshape(*packed.shape[:-1], packed.shape[-1] * 2)
