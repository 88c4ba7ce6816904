"""Symmetric int4 in groups of 32 with float16 scales: the one grid that ONNX and GGUF have in common.

ggml calls it Q4_0, and its kernel defines it for both containers, so that an artifact for a GPU in ONNX and one in GGUF
hold the same integers. ONNX Runtime's own kernel differs in which of two equal magnitudes of opposite sign gives the
scale its sign (ggml: the first; ONNX Runtime: the negative one), never in the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.grids import BlockGrid, Grid, IntegerGrid, IntegerRows, QuantizedRows
from edgekiln.quantizers.ggml import Ggml
from edgekiln.quantizers.integer import IntegerQuantizer

SHARED_GRID: Final = IntegerGrid(bits=4, group_size=32, symmetric=True, scale_dtype="float16")
_Q4_0: Final = BlockGrid("Q4_0")


class SharedInt4:
    """Quantizes to `SHARED_GRID` by ggml's Q4_0."""

    def __init__(self) -> None:
        self._ggml = Ggml()
        self._integer = IntegerQuantizer(4)

    def quantize(self, rows: NDArray[np.float32], grid: Grid) -> IntegerRows:
        """Return `rows`, float32 [rows, columns], on `grid`.

        Raises:
            UsageError: A row does not divide into groups of 32.
            StepError: A weight is NaN or infinite, or too large for float16 scales.
            TypeError: The grid is another one.
        """
        if grid != SHARED_GRID:
            raise TypeError(f"this quantizer is for {SHARED_GRID.name}, not {grid.name}")
        # A block is a float16 scale and sixteen bytes; byte i has weight i below and weight i + 16 above.
        blocks = self._ggml.quantize(rows, _Q4_0).blocks.reshape(len(rows), -1, 18)
        scales = blocks[:, :, :2].copy().view("<f2")[:, :, 0].astype(np.float32)
        low, high = blocks[:, :, 2:] & np.uint8(0x0F), blocks[:, :, 2:] >> np.uint8(4)
        codes = np.empty((*scales.shape, 16), np.uint8)
        for half, nibbles in ((codes[:, :, :8], low), (codes[:, :, 8:], high)):
            np.bitwise_or(nibbles[:, :, 0::2], nibbles[:, :, 1::2] << np.uint8(4), out=half)
        return IntegerRows(SHARED_GRID, rows.shape[1], codes, scales, None)

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return (code - 8) · scale, float32 [rows, columns]."""
        return self._integer.dequantize(quantized)

    def library_versions(self) -> Mapping[str, str]:
        """Return what names ggml's library."""
        return self._ggml.library_versions()
