"""Four-bit integers with a float32 scale per group: the grid of MatMulNBits with 4 bits.

Symmetric: the scale maps the weight of largest magnitude to -8, the zero point is 8. Asymmetric: scale and zero point
map the group's range, widened to hold 0, onto 0 … 15.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgekiln.grids import IntegerGrid
from edgekiln.quantizers.integer import IntegerQuantizer


class Int4(IntegerQuantizer):
    """Round-to-nearest by `quantize_matmul_4bits` of ONNX Runtime."""

    bits: ClassVar[Literal[4, 8]] = 4

    def _kernel(
        self,
        weight: NDArray[np.float32],
        codes: NDArray[np.uint8],
        scales: NDArray[np.float32],
        zero_points: NDArray[np.uint8],
        grid: IntegerGrid,
    ) -> None:
        from onnxruntime.capi._pybind_state import quantize_matmul_4bits

        columns, rows = weight.shape
        quantize_matmul_4bits(codes, weight, scales, zero_points, grid.group_size, rows, columns, grid.symmetric)

    def _unpack(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        low_first = np.stack((packed & 0x0F, packed >> 4), axis=-1)
        return low_first.reshape(*packed.shape[:-1], packed.shape[-1] * 2)
