"""What every quantizer promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError
from edgekiln.grids import Grid, QuantizedRows


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
