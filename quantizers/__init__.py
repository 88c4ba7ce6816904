"""Quantizers: algorithms that map float rows onto grids. They know no tensor name and no file format.

A new quantizer is one module, one test file and one line in `QUANTIZERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekiln.grids import CodebookGrid, Grid, IntegerGrid
from edgekiln.quantizers.ggml import Ggml
from edgekiln.quantizers.integer import IntegerQuantizer
from edgekiln.quantizers.nf4 import Nf4
from edgekiln.quantizers.shared import SHARED_GRID, SharedInt4

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekiln.grids import QuantizedRows
    from edgekiln.quantizers.base import Quantizer

QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {"int8": IntegerQuantizer(8), "int4": IntegerQuantizer(4), "shared": SharedInt4(), "nf4": Nf4(), "ggml": Ggml()}
)


def quantizer_for(grid: Grid) -> Quantizer:
    """Return the round-to-nearest quantizer of a grid."""
    if grid == SHARED_GRID:
        return QUANTIZERS["shared"]
    match grid:
        case IntegerGrid(bits=bits):
            return QUANTIZERS[f"int{bits}"]
        case CodebookGrid(codebook=codebook):
            return QUANTIZERS[codebook]
        case _:
            return QUANTIZERS["ggml"]


def library_versions(grids: Iterable[Grid]) -> dict[str, str]:
    """Return the libraries whose arithmetic the quantizers of these grids use, for manifests."""
    versions: dict[str, str] = {}
    for grid in grids:
        versions |= quantizer_for(grid).library_versions()
    return versions


def quantize(rows: NDArray[np.float32], grid: Grid) -> QuantizedRows:
    """Return `rows`, float32 [rows, columns], on `grid`, rounded to nearest."""
    return quantizer_for(grid).quantize(rows, grid)
