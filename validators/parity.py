"""Output parity on equal token ids: the reference's logits on disk, an artifact's as they come, row by row.

Names follow llama.cpp's perplexity tool: KLD is KL(reference ‖ artifact) in nats per position; "same top" is
the share of positions where both rank the same token first. All metrics are computed first and judged elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, StepError
from edgekiln.validators.base import LOGIT_CHUNK

#: Runtimes and checkpoints pad the vocabulary to multiples of up to this many rows; a larger difference is an error.
MAX_VOCABULARY_PADDING = 1024


@dataclass(frozen=True)
class RowComparison:
    """One value per position.

    Attributes:
        kld: float64, nats.
        same_top: bool.
        reference_nll: float64, negative log-likelihood of the next token under the reference, nats.
        nll: The same under the artifact.
    """

    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    reference_nll: NDArray[np.float64]
    nll: NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """How near an artifact is to the reference.

    Attributes:
        mean_kld: Nats per position, as the other KLDs.
        top1_agreement: Share of positions with the same most likely token, 0…1.
        perplexity: exp of the artifact's mean negative log-likelihood.
        greedy_agreement_tokens: Mean number of leading tokens that both decode alike.
        greedy_tokens: Tokens decoded per prompt: the most that `greedy_agreement_tokens` can be.
        scored_tokens: Positions compared.
        note: What a reader must know about the comparison, or None.
    """

    mean_kld: float
    median_kld: float
    p99_kld: float
    max_kld: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    greedy_agreement_tokens: float
    greedy_tokens: int
    scored_tokens: int
    note: str | None = None


def _normalized(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Return logits minus their maximum, the float64 logarithm of the sum of their exponentials, and these.

    Shifted logits are exact where it matters (the largest are near zero), and the sum runs in float64.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return shifted, np.log(exponentials.sum(axis=1, dtype=np.float64)), exponentials


def compare_rows(
    reference: NDArray[np.float32], artifact: NDArray[np.float32], next_ids: NDArray[np.int64]
) -> RowComparison:
    """Compare the logits of the same positions.

    KLD = Σ p · (log p - log q) with p and q the softmax of the rows; equal rows give exactly zero, and what
    rounding leaves below zero is zero.

    Args:
        reference: float32 [positions, vocabulary].
        artifact: float32 of the same shape.
        next_ids: The token that follows each position, [positions].
    """
    ours, our_log_sum, weights = _normalized(reference)
    theirs, their_log_sum, _ = _normalized(artifact)
    rows = np.arange(len(next_ids))
    reference_nll = our_log_sum - ours[rows, next_ids]
    nll = their_log_sum - theirs[rows, next_ids]
    same_top = ours.argmax(axis=1) == theirs.argmax(axis=1)
    total = weights.sum(axis=1, dtype=np.float64)
    np.subtract(ours, theirs, out=ours)
    np.multiply(weights, ours, out=weights)
    kld = weights.sum(axis=1, dtype=np.float64) / total - (our_log_sum - their_log_sum)
    return RowComparison(np.maximum(kld, 0.0), same_top, reference_nll, nll)


def rechunk(chunks: Iterable[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """Split chunks so that none has more than `rows` rows."""
    for chunk in chunks:
        for start in range(0, len(chunk), rows):
            yield chunk[start : start + rows]


class LogitRows:
    """The reference's logits on disk: little-endian float32 rows, read with bounded memory.

    They are stored as computed, without rounding; a memory map would count its pages as ours.
    """

    def __init__(self, path: Path, vocabulary: int) -> None:
        self.path, self.vocabulary = path, vocabulary

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Return rows [start, start + count), float32 [count, vocabulary].

        Raises:
            StepError: The file is too short; no artifact is to blame.
        """
        items = count * self.vocabulary
        rows = np.fromfile(self.path, dtype="<f4", count=items, offset=start * self.vocabulary * 4)
        if rows.size != items:
            raise StepError(f"{self.path} ends before row {start + count}; make the reference again")
        return rows.reshape(count, self.vocabulary).astype(np.float32, copy=False)


def common_vocabulary(reference: int, artifact: int, largest_id: int) -> tuple[int, str | None]:
    """Return how many leading vocabulary rows are compared, and a note where the sizes differ.

    Raises:
        ArtifactError: They differ by more than padding explains, or the artifact lacks a token of the corpus.
    """
    common = min(reference, artifact)
    if abs(reference - artifact) > MAX_VOCABULARY_PADDING or largest_id >= common:
        raise ArtifactError(
            f"the artifact has logits for {artifact} tokens and the reference for {reference}; "
            "they are not of the same model"
        )
    if reference == artifact:
        return common, None
    return common, f"compared over the first {common} tokens: the reference has {reference}, the artifact {artifact}"


def compare_window(
    reference: LogitRows, first_row: int, chunks: Iterable[NDArray[np.float32]], ids: Sequence[int], common: int
) -> RowComparison:
    """Compare one window, whose reference rows begin at `first_row`; the last token is predicted, not run."""
    parts: list[RowComparison] = []
    position = 0
    for chunk in rechunk(chunks, LOGIT_CHUNK):
        following = np.asarray(ids[position + 1 : position + 1 + len(chunk)], dtype=np.int64)
        if len(following) != len(chunk):
            raise ArtifactError(f"the runtime gave more logits than the {len(ids) - 1} positions that it was given")
        rows = reference.read(first_row + position, len(chunk))
        parts.append(compare_rows(rows[:, :common], chunk[:, :common], following))
        position += len(chunk)
    if position != len(ids) - 1:
        raise ArtifactError(f"the runtime gave logits for {position} of {len(ids) - 1} positions")
    return join(parts)


def join(parts: Sequence[RowComparison]) -> RowComparison:
    """Return the positions of all `parts`, in order."""
    return RowComparison(
        np.concatenate([part.kld for part in parts]),
        np.concatenate([part.same_top for part in parts]),
        np.concatenate([part.reference_nll for part in parts]),
        np.concatenate([part.nll for part in parts]),
    )


def agreement(expected: Sequence[int], actual: Sequence[int], limit: int, stop: Collection[int]) -> int:
    """Return how many leading tokens agree; two replies that end alike with a stop token agree for all `limit`."""
    equal = 0
    for one, other in zip(expected, actual, strict=False):
        if one != other:
            return equal
        equal += 1
    ended = bool(expected) and expected[-1] in stop
    return limit if ended and len(expected) == len(actual) else equal


def summarize(rows: RowComparison, agreements: Sequence[int], greedy_tokens: int, note: str | None = None) -> Parity:
    """Return the metrics over all positions and prompts.

    Raises:
        ArtifactError: A logit was NaN or infinite, so that nothing was compared.
    """
    if not (np.isfinite(rows.kld).all() and np.isfinite(rows.nll).all()):
        bad = int(np.count_nonzero(~(np.isfinite(rows.kld) & np.isfinite(rows.nll))))
        raise ArtifactError(f"the artifact's logits are NaN or infinite at {bad} of {len(rows.kld)} positions")
    return Parity(
        mean_kld=float(rows.kld.mean()),
        median_kld=float(np.median(rows.kld)),
        p99_kld=float(np.quantile(rows.kld, 0.99)),
        max_kld=float(rows.kld.max()),
        top1_agreement=float(rows.same_top.mean()),
        perplexity=math.exp(min(float(rows.nll.mean()), 700.0)),  # e^709 is the largest double
        reference_perplexity=math.exp(min(float(rows.reference_nll.mean()), 700.0)),
        greedy_agreement_tokens=float(np.mean(agreements)) if agreements else 0.0,
        greedy_tokens=greedy_tokens,
        scored_tokens=len(rows.kld),
        note=note,
    )
