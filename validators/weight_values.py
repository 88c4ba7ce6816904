"""Comparing rows of an artifact with rows of the checkpoint, in pieces, with a result that does not depend on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekiln.safetensors import TensorInfo, TensorReader
from edgekiln.validators.weights import Weight

#: Weights that are dequantized at once: four arrays of it fit into a core's cache and the interpreter does not count.
CHUNK_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class Piece:
    """The part of an artifact's weight that one tensor of the checkpoint should be.

    Attributes:
        weight: Of the artifact.
        start: Its first row of the part; of a vector its first element.
        source: The tensor.
    """

    weight: Weight
    start: int
    source: TensorInfo

    @property
    def rows(self) -> int:
        """Rows that are compared; a vector is one row."""
        return self.source.rows

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.source.columns

    def artifact_rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Return rows [first, last) of the part, as the artifact has them."""
        if len(self.weight.shape) == 1:
            return self.weight.rows(0, 1)[:, self.start : self.start + self.columns]
        return self.weight.rows(self.start + first, self.start + last)


@dataclass(frozen=True)
class TensorError:
    """One tensor of the artifact against its sources; fields as in `edgekiln.validators.report.TensorReport`."""

    name: str
    sources: tuple[str, ...]
    type: str
    weights: int
    bits_per_weight: float
    relative_error: float
    cosine: float
    snr_db: float | None


@dataclass(frozen=True)
class RowSums:
    """Sums of products over rows; each is the same in whatever pieces the rows were read.

    Attributes:
        error: Of (artifact - source)², float64 [rows].
        source: Of source².
        artifact: Of artifact².
        product: Of artifact · source.
        rows: Position of each row.
        broken: Values of the artifact that are NaN or infinite; they count as 0 in the sums.
    """

    error: NDArray[np.float64]
    source: NDArray[np.float64]
    artifact: NDArray[np.float64]
    product: NDArray[np.float64]
    rows: NDArray[np.int64]
    broken: int

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of the source; over the artifact's where the source is 0."""
        return relative(float(self.error.sum()), float(self.source.sum()), float(self.artifact.sum()))

    @property
    def cosine(self) -> float:
        """Cosine of artifact and source; 1 where both are 0."""
        return cosine(float(self.product.sum()), float(self.source.sum()), float(self.artifact.sum()))

    def row_errors(self) -> NDArray[np.float64]:
        """Relative error of each row, measured by the typical row where it has less than a hundredth of its norm."""
        floor = float(np.median(self.source)) * 1e-4
        norm = np.maximum(self.source, floor)
        return np.sqrt(np.divide(self.error, norm, out=np.zeros_like(norm), where=norm > 0))


def relative(error: float, source: float, artifact: float) -> float:
    """Return sqrt(error / source), and 1 where the source is 0 and the artifact is not."""
    if source > 0:
        return math.sqrt(error / source)
    return 1.0 if artifact > 0 else 0.0


def cosine(product: float, source: float, artifact: float) -> float:
    """Return product / sqrt(source · artifact) of sums of squares."""
    if source > 0 and artifact > 0:
        return max(-1.0, min(1.0, product / math.sqrt(source) / math.sqrt(artifact)))
    return 1.0 if source == artifact else 0.0


def even_blocks(rows: int, wanted: int, block: int = 8) -> tuple[tuple[int, int], ...]:
    """Return ranges of at most `block` rows, evenly placed, that hold `wanted` rows or all."""
    if wanted >= rows:
        return ((0, rows),)
    count = max(1, -(-wanted // block))
    size = min(block, rows)
    starts = np.linspace(0, rows - size, count).astype(np.int64)
    merged: list[tuple[int, int]] = []
    for start in starts.tolist():
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], start + size)
        else:
            merged.append((start, start + size))
    return tuple(merged)


def _chunks(ranges: Sequence[tuple[int, int]], columns: int, chunk_weights: int) -> list[tuple[int, int]]:
    step = max(1, chunk_weights // columns)
    return [(at, min(last, at + step)) for first, last in ranges for at in range(first, last, step)]


def _sums(
    artifact: NDArray[np.float32], source: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    squares = np.vecdot(artifact, artifact)
    broken = 0
    if not np.isfinite(squares).all():  # NaN, infinite, or too large to be squared in float32
        finite = np.isfinite(artifact)
        broken = int(artifact.size - np.count_nonzero(finite))
        wide = np.where(finite, artifact, np.float32(0)).astype(np.float64)
        exact = source.astype(np.float64)
        difference = wide - exact
        return (
            np.vecdot(difference, difference),
            np.vecdot(exact, exact),
            np.vecdot(wide, wide),
            np.vecdot(wide, exact),
            broken,
        )
    product, norm = np.vecdot(artifact, source), np.vecdot(source, source)
    error = np.subtract(artifact, source)
    return (
        np.vecdot(error, error).astype(np.float64),
        norm.astype(np.float64),
        squares.astype(np.float64),
        product.astype(np.float64),
        broken,
    )


def compare_rows(
    piece: Piece,
    reader: TensorReader,
    ranges: Sequence[tuple[int, int]] | None = None,
    chunk_weights: int = CHUNK_WEIGHTS,
) -> RowSums:
    """Compare rows of an artifact with their source, a few at a time.

    Args:
        piece: What is compared.
        reader: Of the checkpoint, whose weights are taken as they are stored, unrounded.
        ranges: Ranges of rows; all when None.
        chunk_weights: Weights that are held in float32 at once, at least a row.
    """
    parts, positions, broken = [], [], 0
    for first, last in _chunks(ranges or ((0, piece.rows),), piece.columns, chunk_weights):
        *sums, bad = _sums(piece.artifact_rows(first, last), reader.rows(piece.source, first, last))
        parts.append(sums)
        positions.append(np.arange(first, last))
        broken += bad
    error, source, artifact, product = (np.concatenate([part[index] for part in parts]) for index in range(4))
    return RowSums(error, source, artifact, product, np.concatenate(positions), broken)


def gather(piece: Piece, reader: TensorReader, ranges: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float32], ...]:
    """Return (artifact, source) rows of some ranges, float32 [rows, columns] each."""
    artifact = np.concatenate([piece.artifact_rows(first, last) for first, last in ranges])
    source = np.concatenate([reader.rows(piece.source, first, last) for first, last in ranges])
    return artifact, source
