"""NF4: sixteen fixed values, quantiles of a normal distribution, scaled by the block's largest magnitude.

Source: Dettmers et al., QLoRA (arXiv:2305.14314), appendix E. The kernel is that of ONNX Runtime's MatMulBnb4. On a
grid of float16 scales the largest magnitude is rounded first, and the codes are the nearest ones for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import UsageError
from edgekiln.grids import BNB4_NF4, NF4_VALUES, CodebookGrid, CodebookRows, Grid, QuantizedRows
from edgekiln.installed import package_version
from edgekiln.quantizers.base import round_to_float16


class Nf4:
    """Nearest NF4 value by `quantize_matmul_bnb4` of ONNX Runtime."""

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> CodebookRows:
        """Return `rows`, float32 [rows, columns], on `grid`.

        Raises:
            UsageError: The block size does not divide the columns.
            StepError: A magnitude is too large for the grid's float16.
            TypeError: The grid is not NF4.
        """
        from onnxruntime.capi._pybind_state import quantize_matmul_bnb4

        if not isinstance(grid, CodebookGrid):
            raise TypeError(f"Nf4 quantizes onto nf4 grids, not {grid.name}")
        count, columns = rows.shape
        if columns % grid.group_size:
            raise UsageError(f"group size {grid.group_size} does not divide rows of {columns} weights")
        codes = np.zeros(rows.size // 2, np.uint8)
        absmax = np.empty(rows.size // grid.group_size, np.float32)
        quantize_matmul_bnb4(codes, np.ascontiguousarray(rows), absmax, grid.group_size, BNB4_NF4, count, columns)
        if grid.scale_dtype == "float16":
            absmax = round_to_float16(absmax)
            codes = _nearest(rows.reshape(-1, grid.group_size), absmax)
        return CodebookRows(grid, columns, codes, absmax)

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return value · absmax, float32 [rows, columns]."""
        if not isinstance(quantized, CodebookRows):
            raise TypeError(f"Nf4 does not dequantize {type(quantized).__name__}")
        codes = np.stack((quantized.codes >> 4, quantized.codes & 0x0F), axis=-1).reshape(-1)
        blocks = NF4_VALUES[codes].reshape(-1, quantized.grid.group_size) * quantized.absmax[:, None]
        return blocks.reshape(-1, quantized.columns)

    def library_versions(self) -> Mapping[str, str]:
        """Return the version of ONNX Runtime, whose kernel rounds."""
        return {"onnxruntime": package_version("onnxruntime")}


def _nearest(blocks: NDArray[np.float32], absmax: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the packed codes nearest to `blocks`, [blocks, group size], for given absmax."""
    inverse = np.divide(np.float32(1), absmax, out=np.zeros_like(absmax), where=absmax != 0)
    middles = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
    codes = np.searchsorted(middles, blocks * inverse[:, None]).astype(np.uint8).reshape(-1)
    packed: NDArray[np.uint8] = np.left_shift(codes[0::2], np.uint8(4)) | codes[1::2]
    return packed
