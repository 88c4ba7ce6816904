"""Weights of a checkpoint rounded to fp16 and widened to float32, read piece by piece by our own reader.

A bfloat16 number has eight significant bits and fp16 eleven, so rounding changes only what lies near the ends of
fp16's range: magnitudes from 65520 on become infinite, and below 2^-17 the fixed step of fp16's subnormal numbers,
2^-24, is coarser than that of bfloat16. The rest is widened by a shift of bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.safetensors import TensorInfo, TensorReader
from edgekiln.tensors import count_defects, to_float16

#: Weights converted at once: small enough for the cache of a core, large enough for the interpreter not to count.
PIECE_WEIGHTS: Final = 1 << 18
#: Pieces that one thread takes at once.
_PIECES_PER_JOB: Final = 8
#: All bits of a bfloat16 but the sign.
_MAGNITUDE: Final = np.uint16(0x7FFF)
#: The bits of 2^-17, from which on a bfloat16 is an fp16 number as well.
_BF16_EXACT: Final = 0x3700
#: The bits of 65536, the smallest bfloat16 that fp16 cannot hold.
_BF16_TOO_LARGE: Final = 0x4780


@dataclass(frozen=True)
class Part:
    """Rows of a tensor and where they go.

    Attributes:
        tensor: The tensor.
        start: First row; a multiple of `piece_rows(tensor)`, so that every weight is counted in one piece only.
        out: float32 [rows, columns], contiguous.
    """

    tensor: TensorInfo
    start: int
    out: NDArray[np.float32]


@dataclass(frozen=True)
class Rounding:
    """What rounding the weights to fp16 lost.

    Attributes:
        overflowed: Finite weights beyond fp16's range, which became infinite.
        underflowed: Weights other than zero that became zero.
    """

    overflowed: int
    underflowed: int


def piece_rows(tensor: TensorInfo) -> int:
    """Return how many rows of a tensor are read and converted at once."""
    return max(1, PIECE_WEIGHTS // tensor.columns)


def round_raw(raw: NDArray[np.generic], tensor: TensorInfo, out: NDArray[np.float32]) -> Rounding:
    """Write stored weights to `out`, rounded to fp16, and count what was lost.

    Args:
        raw: Weights as `TensorReader.raw_rows` gives them.
        tensor: What they are part of.
        out: float32 of the same shape, contiguous.

    Raises:
        StepError: A weight is NaN or infinite.
    """
    if tensor.dtype == "BF16":
        words = out.view(np.uint32)
        words[...] = raw
        words <<= np.uint32(16)
        magnitude = raw.view(np.uint16) & _MAGNITUDE
        if magnitude.max() < _BF16_TOO_LARGE:
            magnitude -= np.uint16(1)  # a zero wraps around, and is not among the small ones
            small, flat = np.flatnonzero(magnitude < _BF16_EXACT - 1), out.reshape(-1)
            rounded = to_float16(flat[small])
            flat[small] = rounded
            return Rounding(overflowed=0, underflowed=small.size - int(np.count_nonzero(rounded)))
    else:
        out[...] = raw
    count_defects(raw, tensor.dtype).require_none(tensor.name, "float16")
    halves = to_float16(out)
    underflowed = int(np.count_nonzero(out)) - int(np.count_nonzero(halves))
    out[...] = halves
    return Rounding(overflowed=int(np.count_nonzero(np.isinf(halves))), underflowed=underflowed)


class RoundedWeights:
    """Reads and rounds weights in threads of its own, and counts the loss of every weight exactly once; `close` it."""

    def __init__(self, tensors: Mapping[str, TensorInfo], *, threads: int) -> None:
        self._tensors = tensors
        self._reader = TensorReader()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="weights")
        self._lost: dict[tuple[str, int], Rounding] = {}

    def close(self) -> None:
        """End the threads and close the files."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def read(self, parts: Sequence[Part]) -> None:
        """Fill the `out` of all parts.

        Raises:
            StepError: A weight is NaN or infinite.
            CheckpointError: A file became shorter.
        """
        for _ in self._pool.map(self._convert, _jobs(parts)):
            pass

    def rows(self, tensor: TensorInfo, rows: Iterable[int]) -> dict[int, NDArray[np.float32]]:
        """Return single rows of a matrix, each float32 [columns]; they are not counted.

        Raises:
            StepError: A weight is NaN or infinite.
        """
        found = {row: np.empty((1, tensor.columns), np.float32) for row in sorted(set(rows))}
        for row, out in found.items():
            round_raw(self._reader.raw_rows(tensor, row, row + 1), tensor, out)
        return {row: out[0] for row, out in found.items()}

    def rounding(self) -> Rounding:
        """Return what rounding lost over all tensors; what was not read so far is read now and not kept.

        Raises:
            StepError: A weight is NaN or infinite.
        """
        for _ in self._pool.map(self._count, self._tensors.values()):
            pass
        lost = self._lost.values()
        return Rounding(sum(r.overflowed for r in lost), sum(r.underflowed for r in lost))

    def _convert(self, part: Part) -> None:
        step = piece_rows(part.tensor)
        for first in range(0, len(part.out), step):
            out, start = part.out[first : first + step], part.start + first
            raw = self._reader.raw_rows(part.tensor, start, start + len(out))
            self._lost[part.tensor.name, start] = round_raw(raw, part.tensor, out)

    def _count(self, tensor: TensorInfo) -> None:
        step = piece_rows(tensor)
        for start in range(0, tensor.rows, step):
            if (tensor.name, start) not in self._lost:
                rows = min(step, tensor.rows - start)
                self._convert(Part(tensor, start, np.empty((rows, tensor.columns), np.float32)))


def _jobs(parts: Iterable[Part]) -> Iterator[Part]:
    """Split parts so that several threads have something to do."""
    for part in parts:
        step = _PIECES_PER_JOB * piece_rows(part.tensor)
        for first in range(0, len(part.out), step):
            yield Part(part.tensor, part.start + first, part.out[first : first + step])
