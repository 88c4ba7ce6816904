"""What int4 and int8 share: shapes, padding-free groups, and the packing of codes that ONNX Runtime's kernels use.

A subclass owns the arithmetic of one bit width: which kernel defines it, and how its codes unpack.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import UsageError
from edgekiln.grids import Grid, IntegerGrid, IntegerRows, QuantizedRows


class IntegerQuantizer:
    """Round-to-nearest onto an `IntegerGrid`, by the kernel of ONNX Runtime that defines it."""

    bits: ClassVar[Literal[4, 8]]

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> IntegerRows:
        """Return `rows`, float32 [rows, columns], on `grid`.

        Raises:
            UsageError: The group size does not divide the columns.
            TypeError: The grid is none of this quantizer's.
        """
        grid = self._own(grid)
        count, columns = rows.shape
        if columns % grid.group_size:
            raise UsageError(f"group size {grid.group_size} does not divide rows of {columns} weights")
        groups = columns // grid.group_size
        codes = np.empty((count, groups, grid.group_size * self.bits // 8), np.uint8)
        scales = np.empty(count * groups, np.float32)
        packed_groups = -(-groups * self.bits // 8)
        # The kernels take the weight as [K, N] and leave the bits that no zero point uses as they find them.
        zero_points = np.zeros((count, packed_groups), np.uint8)
        self._kernel(np.ascontiguousarray(rows.T), codes, scales, zero_points.reshape(-1), grid)
        return IntegerRows(
            grid,
            columns,
            codes,
            scales.reshape(count, groups),
            None if grid.symmetric else self._unpack(zero_points)[:, :groups],
        )

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return (code - zero point) · scale, float32 [rows, columns]."""
        if not isinstance(quantized, IntegerRows):
            raise TypeError(f"{type(self).__name__} does not dequantize {type(quantized).__name__}")
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
        return {"onnxruntime": version("onnxruntime")}

    def _own(self, grid: Grid) -> IntegerGrid:
        if not isinstance(grid, IntegerGrid) or grid.bits != self.bits:
            raise TypeError(f"{type(self).__name__} quantizes onto int{self.bits} grids, not {grid.name}")
        return grid

    def _kernel(
        self,
        weight: NDArray[np.float32],
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        zero_points: NDArray[np.uint8],
        grid: IntegerGrid,
    ) -> None:
        """Fill `codes`, `scales` and packed `zero_points` from `weight`, float32 [columns, rows]."""
        raise NotImplementedError

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return one code per byte along the last axis."""
        raise NotImplementedError
