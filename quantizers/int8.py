"""Eight-bit integers with a float32 scale per group: the grid of MatMulNBits with 8 bits.

Symmetric: the scale maps the weight of largest magnitude to -128, the zero point is 128. Asymmetric: scale and zero
point map the group's range, widened to hold 0, onto 0 … 255.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.grids import IntegerGrid
from edgekiln.quantizers.integer import IntegerQuantizer


class Int8(IntegerQuantizer):
    """Round-to-nearest by `quantize_matmul_8bits` of ONNX Runtime."""

    bits: ClassVar[Literal[4, 8]] = 8

    def _kernel(
        self,
        weight: NDArray[np.float32],
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        zero_points: NDArray[np.uint8],
        grid: IntegerGrid,
    ) -> None:
        from onnxruntime.capi._pybind_state import quantize_matmul_8bits

        columns, rows = weight.shape
        quantize_matmul_8bits(codes, weight, scales, zero_points, grid.group_size, rows, columns, grid.symmetric)

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return packed
