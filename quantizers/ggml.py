"""ggml's block types, quantized by ggml itself.

llama.cpp's `libggml-base` defines these formats: its `ggml_quantize_chunk` is what `llama_model_quantize` calls, so
the bytes are those of llama.cpp by construction. The library lies in the installed `llama_cpp` package and is loaded
by `edgekiln.ggml_library`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError, UnsupportedError, UsageError, nearest
from edgekiln.ggml_library import DISTRIBUTION, find_library, load_library
from edgekiln.grids import BlockGrid, BlockRows, Grid, QuantizedRows

#: Sums of squares with a larger importance overflow in ggml.
_MOST_IMPORTANT: Final = 1e30
#: All block types have a multiple of so many weights.
_LEAST_BLOCK: Final = 32


@functools.cache
def library_version() -> Mapping[str, str]:
    """Return the version of llama-cpp-python and the sha256 of the library that quantizes, for manifests.

    The package is usually compiled on the machine that runs it, so its version alone does not name the code.
    """
    with find_library().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {DISTRIBUTION: importlib.metadata.version(DISTRIBUTION), "libggml-base": f"sha256:{digest}"}


@dataclass(frozen=True)
class _BlockType:
    """One block type, as the loaded library knows it."""

    name: str
    number: int
    block: int
    to_float: Callable[[int, int, int], None]

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights."""
        return int(load_library().ggml_row_size(self.number, columns))


@functools.cache
def _block_type(name: str) -> _BlockType:
    """Look a type up, with the tables that its quantizer needs set up.

    Raises:
        UsageError: ggml has no such block type.
        UnsupportedError: It needs an importance matrix.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    blocks = [kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1]
    if name not in blocks:
        raise UsageError(f"ggml has no block type {name!r}; {nearest(name, blocks)}")
    library, number = load_library(), int(GGMLQuantizationType[name])
    if library.ggml_quantize_requires_imatrix(number):
        raise UnsupportedError(
            f"{name} needs an importance matrix, which Edgekiln does not make; choose IQ4_XS or Q3_K"
        )
    symbol = f"dequantize_row_{library.ggml_type_name(number).decode()}"  # the type's own `to_float`
    if not hasattr(library, symbol):
        raise UnsupportedError(f"the installed ggml cannot quantize to {name}; choose Q4_0, Q8_0 or a K-quant")
    to_float = getattr(library, symbol)
    to_float.restype, to_float.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.ggml_quantize_init(number)
    return _BlockType(name, number, int(library.ggml_blck_size(number)), to_float)


def _checked_importance(importance: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    """Return the importance of each column, contiguous."""
    if importance.shape != (columns,):
        raise UsageError(
            f"an importance matrix of shape {list(importance.shape)} is not one number for {columns} columns"
        )
    if not ((importance >= 0) & (importance <= _MOST_IMPORTANT)).all():  # NaN is neither
        raise UsageError("an importance matrix holds numbers that are negative, NaN or infinite; collect it again")
    if not importance.reshape(-1, _LEAST_BLOCK).any(axis=1).all():
        raise UsageError(
            f"an importance matrix has {_LEAST_BLOCK} columns in a row that do not count at all, whose weights ggml "
            "would make zero; give columns that nothing was multiplied with the importance of the others"
        )
    return np.ascontiguousarray(importance, dtype=np.float32)


@dataclass(frozen=True)
class Ggml:
    """Quantizes to a `BlockGrid`: Q4_0, Q8_0, the K-quants, IQ4_NL and the rest.

    Attributes:
        threads: Threads that share one call, by ranges of rows; the bytes are the same whatever the number. One is
            right for an exporter that already calls from several threads.
    """

    threads: int = 1

    def quantize(
        self, rows: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None = None
    ) -> BlockRows:
        """Return `rows` on `grid`; the input is not changed.

        Args:
            rows: float32 [rows, columns].
            grid: A block type.
            importance: float32 [columns], how much the squared error of each column counts: llama.cpp's importance
                matrix, the mean square of what the column is multiplied with. None lets each type weigh errors in its
                own way. Q8_0 weighs none.

        Raises:
            UsageError: The grid is no `BlockGrid`, a row does not divide into its blocks, or the importance is not one
                finite number that is not negative for each column, or leaves out 32 columns in a row.
            StepError: A weight is NaN or infinite, or too large for the grid's float16 scales.
        """
        if not isinstance(grid, BlockGrid):
            raise UsageError(f"the ggml quantizer serves ggml's block types, not {grid.name}; use its own quantizer")
        kind, (count, columns) = _block_type(grid.ggml_type), rows.shape
        if columns % kind.block:
            raise UsageError(f"rows of {columns} weights do not divide into {kind.name} blocks of {kind.block}")
        if bad := rows.size - int(np.count_nonzero(np.isfinite(rows))):
            raise StepError(f"{bad} weights are NaN or infinite, which {kind.name} cannot hold")
        source = np.ascontiguousarray(rows, dtype=np.float32)
        counts = None if importance is None else _checked_importance(importance, columns)
        blocks = np.empty((count, kind.row_bytes(columns)), dtype=np.uint8)

        def run(start: int, stop: int) -> None:
            load_library().ggml_quantize_chunk(
                kind.number,
                source.ctypes.data,
                blocks.ctypes.data,
                start * columns,
                stop - start,
                columns,
                None if counts is None else counts.ctypes.data,
            )

        self._share(count, run)
        if not load_library().ggml_validate_row_data(kind.number, blocks.ctypes.data, blocks.nbytes):
            raise StepError(f"weights up to {np.abs(rows).max():.3g} overflow the float16 scales of {kind.name}")
        return BlockRows(grid, columns, blocks)

    def library_versions(self) -> Mapping[str, str]:
        """Return what names ggml's library; see `library_version`."""
        return library_version()

    def dequantize(self, quantized: QuantizedRows) -> NDArray[np.float32]:
        """Return the values that `quantized` stands for, float32 [rows, columns], as ggml itself reads them.

        Raises:
            UsageError: These are not rows of ggml blocks, or their bytes do not make `columns` weights.
        """
        if not isinstance(quantized, BlockRows):
            raise UsageError(f"the ggml quantizer reads ggml's block types, not {quantized.grid.name}")
        kind, columns = _block_type(quantized.grid.ggml_type), quantized.columns
        blocks = np.ascontiguousarray(quantized.blocks)
        if columns % kind.block or blocks.shape[1] != kind.row_bytes(columns):
            raise UsageError(f"rows of {blocks.shape[1]} bytes are not {columns} weights in {kind.name}")
        values = np.empty((blocks.shape[0], columns), dtype=np.float32)

        def run(start: int, stop: int) -> None:
            kind.to_float(blocks[start:].ctypes.data, values[start:].ctypes.data, (stop - start) * columns)

        self._share(blocks.shape[0], run)
        return values

    def _share(self, count: int, run: Callable[[int, int], None]) -> None:
        """Run `run(start, stop)` over all rows, in `threads` ranges."""
        shares = min(self.threads, count)
        if shares <= 1:
            run(0, count)
            return
        bounds = [count * share // shares for share in range(shares + 1)]
        with ThreadPoolExecutor(shares) as pool:
            for _ in pool.map(run, bounds[:-1], bounds[1:]):
                pass
