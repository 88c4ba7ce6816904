"""What every quantizer promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
