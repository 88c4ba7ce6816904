"""The reference's distributions on disk, truncated: the likely tokens of each position, and what they leave out.

A position keeps its most likely tokens until at most `TAIL_MASS` of the probability is left out, between `LEAST_KEPT`
and `MOST_KEPT` of them; all others become one outcome, the tail. The divergence of two distributions with outcomes
merged is never above that of the full ones (log-sum inequality: Cover and Thomas, Elements of Information Theory,
theorem 2.7.1), and falls short of it by exactly P · KL(tail of p ‖ tail of q), P being the mass of p's tail.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import StepError


@dataclass(frozen=True)
class Truncation:
    """What a position keeps.

    Attributes:
        tail_mass: Probability that may be left out.
        least: Tokens kept in any case.
        most: Tokens kept at most, whatever is left out then; a vocabulary of no more than these is kept whole.
    """

    tail_mass: float
    least: int
    most: int


#: 2^-10 is a thousandth of the probability. On Qwen2.5-Coder-0.5B, positions keep 4,000 tokens in the mean (the
#: limit of 8,192 binds at flat ones), which leaves out 0.65 % and makes the mean divergence of 4-bit artifacts
#: 1.0 % low; 32 KB a position, where all logits have 608 KB.
TRUNCATION: Final = Truncation(tail_mass=2.0**-10, least=16, most=8192)

_ROW: Final = np.dtype([("start", "<u8"), ("kept", "<u4"), ("next", "<u4"), ("total", "<f8"), ("next_logit", "<f8")])
_ID: Final = np.dtype("<u4")
_LOGIT: Final = np.dtype("<f4")
#: What one position takes on disk at most.
MAX_ROW_BYTES: Final = _ROW.itemsize + TRUNCATION.most * (_ID.itemsize + _LOGIT.itemsize)


@dataclass(frozen=True)
class ReferenceRows:
    """Consecutive positions of the reference.

    Logits are relative to the largest of their position: the log-probability of a token is its logit minus
    log(total), in nats.

    Attributes:
        ids: uint32, kept tokens of all positions, the most likely first within each.
        logits: float32 of the same shape.
        bounds: int64 [positions + 1]: position i has the tokens [bounds[i], bounds[i + 1]).
        totals: float64 [positions], sum of the exponentials of all logits, kept or not.
        next_ids: int64 [positions], the token that follows in the text.
        next_logits: float64 [positions], its logit, kept or not.
    """

    ids: NDArray[np.uint32]
    logits: NDArray[np.float32]
    bounds: NDArray[np.int64]
    totals: NDArray[np.float64]
    next_ids: NDArray[np.int64]
    next_logits: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.totals)

    def kept(self, position: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Return (ids, logits) of one position."""
        part = slice(int(self.bounds[position]), int(self.bounds[position + 1]))
        return self.ids[part], self.logits[part]


def _keys(shifted: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return integers that sort as the tokens do, the most likely first, equal ones by their ids.

    Bits of floats that are not negative sort as the floats; integers sort several times faster than indices.
    """
    bits = np.abs(shifted[ids]).view(np.uint32).astype(np.uint64)
    return (bits << np.uint64(32)) | ids.astype(np.uint64)


def truncate(
    shifted: NDArray[np.float32], weights: NDArray[np.float32], total: float, limits: Truncation = TRUNCATION
) -> NDArray[np.int64]:
    """Return the tokens to keep, the most likely first, equal ones in the order of their ids.

    Args:
        shifted: float32 [vocabulary], logits minus their maximum.
        weights: Their exponentials.
        total: Sum of these.
        limits: How many are kept.
    """
    size = len(shifted)
    # What lies below this would be too little even if it were the whole vocabulary.
    likely = np.flatnonzero(weights > total * limits.tail_mass / size) if size > limits.most else np.arange(size)
    if len(likely) < min(limits.least, size):
        likely = np.arange(size)
    keys = _keys(shifted, likely)
    if len(keys) > limits.most:
        keys = np.partition(keys, limits.most)[: limits.most]
    keys.sort()
    ids = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if size <= limits.most:
        return ids
    mass = np.cumsum(weights[ids], dtype=np.float64)
    needed = int(np.searchsorted(mass, total * (1 - limits.tail_mass))) + 1
    return ids[: min(max(needed, limits.least), limits.most)]


def _paths(directory: Path, name: str) -> tuple[Path, Path, Path]:
    return directory / f"{name}.rows", directory / f"{name}.ids", directory / f"{name}.logits"


class RowWriter:
    """Writes the rows of one sequence after the other; `close` or leaving its context ends it.

    `NAME.rows` has 32 bytes per position, `NAME.ids` (uint32) and `NAME.logits` (float32) an entry per kept token;
    all are little-endian. A position takes at most `MAX_ROW_BYTES`.
    """

    def __init__(self, directory: Path, name: str, limits: Truncation = TRUNCATION) -> None:
        self._limits = limits
        self._kept = 0
        self._open = contextlib.ExitStack()
        self._rows, self._ids, self._logits = (
            self._open.enter_context(path.open("wb")) for path in _paths(directory, name)
        )
        self.vocabulary = 0
        self.positions = 0

    def add(self, logits: NDArray[np.float32], next_ids: Sequence[int]) -> None:
        """Append positions.

        Args:
            logits: float32 [positions, vocabulary].
            next_ids: The token that follows each position.

        Raises:
            StepError: A logit of the reference is NaN or infinite, or shapes do not agree.
        """
        if logits.ndim != 2 or len(next_ids) != len(logits) or logits.shape[1] != (self.vocabulary or logits.shape[1]):
            raise StepError(
                f"the reference gave logits of shape {list(logits.shape)} for {len(next_ids)} positions and a "
                f"vocabulary of {self.vocabulary or 'any size'}; this is a fault of Edgekiln: report it"
            )
        self.vocabulary = logits.shape[1]
        weights = np.empty(self.vocabulary, np.float32)
        for row, following in zip(logits, next_ids, strict=True):
            if not np.isfinite(row).all():
                raise StepError(
                    "the reference's own logits are NaN or infinite, so nothing can be compared with them; check the "
                    "weights of the checkpoint"
                )
            shifted = np.subtract(row, row.max(), dtype=np.float32)
            total = float(np.exp(shifted, out=weights).sum(dtype=np.float64))
            ids = truncate(shifted, weights, total, self._limits)
            record = np.array((self._kept, len(ids), following, total, shifted[following]), dtype=_ROW)
            self._write(self._rows, record)
            self._write(self._ids, ids.astype(_ID))
            self._write(self._logits, shifted[ids].astype(_LOGIT, copy=False))
            self._kept += len(ids)
            self.positions += 1

    @staticmethod
    def _write(file: BinaryIO, values: NDArray[Any]) -> None:
        file.write(values.tobytes())

    def close(self) -> None:
        """Flush and close the files."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RowReader:
    """Reads what a `RowWriter` wrote; nothing in the files is trusted, and memory is bounded by the rows asked for."""

    def __init__(self, directory: Path, name: str, vocabulary: int, *, most: int = TRUNCATION.most) -> None:
        self._rows, self._ids, self._logits = _paths(directory, name)
        self._vocabulary, self._most = vocabulary, most

    def _part(self, path: Path, kind: np.dtype[Any], first: int, count: int) -> NDArray[Any]:
        try:
            found = np.fromfile(path, dtype=kind, count=count, offset=first * kind.itemsize)
        except OSError as error:
            raise StepError(f"{path} cannot be read ({error.strerror}); make the reference again") from None
        if len(found) != count:
            raise StepError(f"{path} ends before entry {first + count}; make the reference again")
        return found

    def _bad(self, what: str) -> StepError:
        return StepError(f"{self._rows} {what}; it is damaged: make the reference again")

    def _records(self, first: int, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the records of some rows, and where their tokens begin and end, relative to the first."""
        records = self._part(self._rows, _ROW, first, count)
        kept = records["kept"].astype(np.int64)
        if ((kept < 1) | (kept > min(self._most, self._vocabulary))).any():
            raise self._bad(f"keeps no token, or more than {min(self._most, self._vocabulary)}")
        bounds = np.concatenate([[0], np.cumsum(kept)])
        start = int(records["start"][0])
        if start > np.iinfo(np.int64).max // 16 or (records["start"] != start + bounds[:-1].astype(np.uint64)).any():
            raise self._bad("has tokens that do not follow each other")
        if (records["next"] >= self._vocabulary).any():
            raise self._bad(f"names tokens beyond its vocabulary of {self._vocabulary}")
        sane = (records["total"] >= 1) & (records["total"] <= self._vocabulary * (1 + 1e-6))
        if not (sane & (records["next_logit"] <= 0) & np.isfinite(records["next_logit"])).all():
            raise self._bad("has probabilities that are none")
        return records, bounds

    def _check_tokens(self, ids: NDArray[np.uint32], logits: NDArray[np.float32], bounds: NDArray[np.int64]) -> None:
        """Refuse ids that are too large or come twice in a row, and logits that do not fall from zero on."""
        if int(ids.max()) >= self._vocabulary:
            raise self._bad(f"names tokens beyond its vocabulary of {self._vocabulary}")
        falling = logits[1:] <= logits[:-1]
        falling[bounds[1:-1] - 1] = True  # from one row to the next
        if not (falling.all() and np.isfinite(logits).all() and not logits[bounds[:-1]].any()):
            raise self._bad("has logits that are not sorted from zero on")
        place = np.empty(self._vocabulary, np.int32)
        for begin, end in itertools.pairwise(bounds):
            order = np.arange(end - begin, dtype=np.int32)
            place[ids[begin:end]] = order  # the last of equal ids wins
            if (place[ids[begin:end]] != order).any():
                raise self._bad("names a token twice")

    def read(self, first: int, count: int) -> ReferenceRows:
        """Return the positions [first, first + count), count being at least 1.

        Raises:
            StepError: The files are missing, too short or damaged; no artifact is to blame.
        """
        records, bounds = self._records(first, count)
        start, size = int(records["start"][0]), int(bounds[-1])
        ids = self._part(self._ids, _ID, start, size).astype(np.uint32, copy=False)
        logits = self._part(self._logits, _LOGIT, start, size).astype(np.float32, copy=False)
        self._check_tokens(ids, logits, bounds)
        return ReferenceRows(
            ids,
            logits,
            bounds,
            records["total"].astype(np.float64),
            records["next"].astype(np.int64),
            records["next_logit"].astype(np.float64),
        )
