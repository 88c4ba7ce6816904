"""Why a weight is not what its source is: hypotheses, tried on a few rows, the first that explains them counts.

An explanation is a change that, undone, leaves no more than the error that the type's own rounding makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.safetensors import TensorInfo, TensorReader
from edgekiln.validators.weight_values import CHUNK_WEIGHTS, Piece, gather, relative

_Rows = NDArray[np.float32]
#: Largest finite float16.
_LARGEST_HALF: Final = 65504.0
#: Below it, a row of any length can be squared in float32.
_SQUARABLE: Final = 1e15
#: An error that going through float16 on the way explains.
_PLAIN_SLACK: Final = 3e-4
#: The same for bfloat16.
_COARSE_SLACK: Final = 2.5e-3
#: Rows that are compared with each other source of the same shape.
_FEW_ROWS: Final = 16
#: Rows that are looked for in the transposed source, all of which is read for it.
_TURNED_ROWS: Final = 8
#: What every finding advises.
FIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "conservation/missing": "export the artifact again with this tensor; a decoder without it is another model",
        "conservation/unknown": "leave the tensor out, or compare with the checkpoint that it comes from",
        "conservation/shape": "export the tensor with the checkpoint's shape; do not pad or cut the vocabulary",
        "conservation/swapped": "write each tensor under its own name; check offsets and the order of fused parts",
        "conservation/transposed": "transpose the matrix, or tell the operator that it is stored transposed",
        "conservation/row_order": "keep the checkpoint's order of rows; this family rotates halves, not pairs",
        "conservation/zeroed": "export the artifact again; this part was never written or was lost in copying",
        "conservation/nibble_order": "pack two codes of a byte in the order that the operator or block type reads them",
        "conservation/offset": "store the zero points (or minima) that the codes were made with",
        "conservation/scale": "store the scales that the codes were made with, of each group in its own place",
        "conservation/overflow": "store the tensor in a type that holds its range, bf16 or f32, or clip it knowingly",
        "conservation/altered": "export the artifact again from the checkpoint that it is judged by, all shards of "
        "one revision",
        "conservation/tied": "write the embedding's values as the head's, or refer to one tensor twice",
        "conservation/unread": "use a type that Edgekiln reads, or a newer Edgekiln",
        "conservation/unreadable": "fetch or export the artifact again",
    }
)


@dataclass(frozen=True)
class Cause:
    """Why a weight differs.

    Attributes:
        id: Of the finding.
        detail: What was found, without its subject.
    """

    id: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """Relative errors that a type explains.

    Attributes:
        expected: What its own rounding makes of the same rows.
        warning: Beyond it, another method than plain rounding must have been used.
        error: Beyond it, no method explains it.
    """

    expected: float
    warning: float
    error: float


def limits(expected: float, *, is_float: bool) -> Limits:
    """Return the limits for a weight whose type's own rounding errs by `expected`.

    GPTQ and the like trade an error of the weights, up to half as much again, for one of the activations.
    """
    if is_float:
        return Limits(expected, 1.5 * expected + _PLAIN_SLACK, 1.5 * expected + _COARSE_SLACK)
    return Limits(expected, 1.2 * expected + _PLAIN_SLACK, 1.5 * expected + _PLAIN_SLACK)


def _finite(rows: _Rows) -> _Rows:
    """Return rows with 0 for what is NaN, infinite, or too large to be squared in float32."""
    if np.isfinite(np.vecdot(rows, rows)).all():
        return rows
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(rows) < _SQUARABLE, rows, np.float32(0))


def error_of(artifact: _Rows, source: _Rows) -> float:
    """Return the relative error of rows; what is not finite counts as 0."""
    clean = _finite(artifact)
    difference = clean - source
    sums = (float(np.vecdot(rows, rows).sum(dtype=np.float64)) for rows in (difference, source, clean))
    return relative(*sums)


def scale_of(artifact: _Rows, source: _Rows) -> float:
    """Return the factor c that makes c · source nearest to the artifact; 1 where the source is 0."""
    norm = float(np.vecdot(source, source).sum(dtype=np.float64))
    return float(np.vecdot(_finite(artifact), source).sum(dtype=np.float64)) / norm if norm else 1.0


@dataclass(frozen=True)
class Suspect:
    """Rows of a weight that differ from their source.

    Attributes:
        piece: What they are part of.
        ranges: Which rows.
        artifact: Their values, float32 [rows, columns].
        source: What they should be.
        limits: What the type explains.
        scale: The best factor between what the type's own rounding makes of them and the source.
    """

    piece: Piece
    ranges: Sequence[tuple[int, int]]
    artifact: _Rows
    source: _Rows
    limits: Limits
    scale: float

    @cached_property
    def error(self) -> float:
        """Relative error as it is."""
        return error_of(self.artifact, self.source)

    def explained(self, artifact: _Rows, source: _Rows) -> bool:
        """Tell whether the artifact, changed, or another source leaves no more than the type's own error."""
        left = error_of(artifact, source)
        return left <= self.limits.error and left < 0.8 * self.error


def find_cause(
    suspect: Suspect,
    reader: TensorReader,
    others: Sequence[TensorInfo],
    head_dim: int,
) -> Cause | None:
    """Return why rows differ, or None where no hypothesis explains it.

    Args:
        suspect: The rows.
        reader: Of the checkpoint.
        others: Every other tensor of the checkpoint of the same shape.
        head_dim: Numbers of an attention head, for rows in another order.
    """
    hypotheses: tuple[Callable[[], Cause | None], ...] = (
        lambda: _overflow(suspect),
        lambda: _zeroed(suspect),
        lambda: _swapped(suspect, reader, others),
        lambda: _transposed(suspect, reader),
        lambda: _row_order(suspect, reader, head_dim),
        lambda: _nibble_order(suspect),
        lambda: _scaled(suspect),
        lambda: _offset(suspect),
        lambda: _group_scales(suspect),
    )
    return next((cause for hypothesis in hypotheses if (cause := hypothesis()) is not None), None)


def _overflow(suspect: Suspect) -> Cause | None:
    broken = int(suspect.artifact.size - np.count_nonzero(np.isfinite(suspect.artifact)))
    if broken:
        return Cause("conservation/overflow", f"has {broken} values that are NaN or infinite in the rows looked at")
    clipped = (np.abs(suspect.artifact) == _LARGEST_HALF) & (np.abs(suspect.source) > _LARGEST_HALF)
    if count := int(np.count_nonzero(clipped)):
        largest = float(np.abs(suspect.source).max())
        return Cause(
            "conservation/overflow", f"has {count} values cut off at 65504, where the source goes to {largest:g}"
        )
    return None


def _zeroed(suspect: Suspect) -> Cause | None:
    norms = np.vecdot(suspect.artifact, suspect.artifact)
    if float(norms.sum()) <= 1e-8 * float(np.vecdot(suspect.source, suspect.source).sum()):
        return Cause("conservation/zeroed", "is zero")
    return None


def _few(suspect: Suspect) -> list[tuple[int, int]]:
    """Return the first rows looked at, few enough to be compared with many sources."""
    found, left = [], _FEW_ROWS
    for first, last in suspect.ranges:
        if left > 0:
            found.append((first, min(last, first + left)))
            left -= last - first
    return found


def _swapped(suspect: Suspect, reader: TensorReader, others: Sequence[TensorInfo]) -> Cause | None:
    ranges = _few(suspect)
    artifact = suspect.artifact[: sum(last - first for first, last in ranges)]
    own = error_of(artifact, suspect.source[: len(artifact)])
    best, nearest = own, None
    for other in others:
        rows = np.concatenate([reader.rows(other, first, last) for first, last in ranges])
        if (error := error_of(artifact, rows)) < best:
            best, nearest = error, other
    if nearest is None or best > suspect.limits.error or best >= 0.8 * own:
        return None
    return Cause("conservation/swapped", f"holds what {nearest.name} is in the checkpoint")


def turned_rows(source: TensorInfo, reader: TensorReader, ranges: Sequence[tuple[int, int]], columns: int) -> _Rows:
    """Return rows of the source transposed and read as rows of `columns`, float32 [rows, columns].

    All of the source is read, in pieces.
    """
    positions = np.concatenate([np.arange(first * columns, last * columns) for first, last in ranges])
    rows, places = positions % source.rows, positions // source.rows
    values = np.empty(positions.size, np.float32)
    step = max(1, CHUNK_WEIGHTS // source.columns)
    for first in range(0, source.rows, step):
        last = min(source.rows, first + step)
        chosen = (rows >= first) & (rows < last)
        if chosen.any():
            values[chosen] = reader.rows(source, first, last)[rows[chosen] - first, places[chosen]]
    return values.reshape(-1, columns)


def _transposed(suspect: Suspect, reader: TensorReader) -> Cause | None:
    source = suspect.piece.source
    if len(source.shape) != 2 or 1 in source.shape:
        return None
    first, last = suspect.ranges[0]
    last = min(last, first + _TURNED_ROWS)
    turned = turned_rows(source, reader, [(first, last)], source.columns)
    if suspect.explained(suspect.artifact[: last - first], turned):
        return Cause("conservation/transposed", f"holds {source.name} transposed")
    return None


def _row_order(suspect: Suspect, reader: TensorReader, head_dim: int) -> Cause | None:
    """Try the order that LLaMA's converters give queries and keys: pairs of a head instead of its halves."""
    source, half = suspect.piece.source, head_dim // 2
    if len(source.shape) != 2 or source.rows % head_dim or not source.name.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    ranges = _few(suspect)
    rows = np.concatenate([np.arange(first, last) for first, last in ranges])
    head, place = rows - rows % head_dim, rows % head_dim
    for order in (head + place // 2 + (place % 2) * half, head + (place % half) * 2 + place // half):
        moved = np.concatenate([reader.rows(source, row, row + 1) for row in order.tolist()])
        if suspect.explained(suspect.artifact[: rows.size], moved):
            return Cause("conservation/row_order", "has its rows in the order of interleaved rotary pairs")
    return None


def _orders(columns: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield orders of columns that come from unpacking codes in another order than they were packed."""
    index = np.arange(columns)
    if columns % 4 == 0:
        yield "the two codes of each byte are exchanged", index ^ 1
        yield "the four codes of each byte are reversed", index ^ 3
    if columns % 32 == 0:
        inside, block = index % 32, index - index % 32
        yield "low and high nibbles of each block are exchanged", index ^ 16
        yield "codes lie in neighbouring pairs instead of halves of a block", block + inside // 2 + (inside % 2) * 16
        yield "codes lie in halves of a block instead of neighbouring pairs", block + (inside % 16) * 2 + inside // 16
    if columns % 64 == 0:
        yield "low and high nibbles of each 64 weights are exchanged", index ^ 32


def _nibble_order(suspect: Suspect) -> Cause | None:
    if suspect.piece.weight.is_float:
        return None
    for what, order in _orders(suspect.piece.columns):
        if suspect.explained(suspect.artifact[:, order], suspect.source):
            return Cause("conservation/nibble_order", f"has its codes in another order: {what}")
    return None


def _scaled(suspect: Suspect) -> Cause | None:
    factor = scale_of(suspect.artifact, suspect.source) / suspect.scale
    if abs(factor) > 1e-6 and suspect.explained(suspect.artifact / np.float32(factor), suspect.source):
        return Cause("conservation/scale", f"is {factor:.4g} times the checkpoint's")
    return None


def _grouped(suspect: Suspect) -> tuple[_Rows, _Rows] | None:
    group = suspect.piece.weight.group
    if group < 8 or suspect.piece.columns % group:
        return None
    shape = (len(suspect.artifact), -1, group)
    return suspect.artifact.reshape(shape), suspect.source.reshape(shape)


def _offset(suspect: Suspect) -> Cause | None:
    if (groups := _grouped(suspect)) is None:
        return None
    artifact, source = groups
    shift = (artifact - source).mean(axis=-1, keepdims=True)
    if suspect.explained(artifact - shift, source):
        typical = float(np.median(np.abs(shift)) / max(float(np.abs(source).mean()), 1e-30))
        detail = f"is shifted by a constant in each group of {artifact.shape[-1]}, typically {typical:.2g} of a weight"
        return Cause("conservation/offset", detail)
    return None


def _group_scales(suspect: Suspect) -> Cause | None:
    if (groups := _grouped(suspect)) is None:
        return None
    artifact, source = groups
    norm = np.vecdot(artifact, artifact)
    factor = np.divide(np.vecdot(artifact, source), norm, out=np.ones_like(norm), where=norm > 0)
    if not suspect.explained(artifact * factor[..., None], source):
        return None
    low, high = (float(value) for value in np.quantile(factor, (0.05, 0.95)))
    return Cause(
        "conservation/scale", f"has scales off by another factor in each group, mostly {low:.3g} to {high:.3g}"
    )


def suspect_of(piece: Piece, reader: TensorReader, ranges: Sequence[tuple[int, int]]) -> Suspect:
    """Return some rows of a piece with what its type explains of them."""
    artifact, source = gather(piece, reader, ranges)
    rounded = piece.weight.rounding(source)
    found = limits(error_of(rounded, source), is_float=piece.weight.is_float)
    return Suspect(piece, ranges, artifact, source, found, scale_of(rounded, source) or 1.0)
