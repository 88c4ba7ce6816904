"""Output parity on equal token ids: an artifact's logits as they come, against the stored rows of the reference.

Names follow llama.cpp's perplexity tool: KLD is KL(reference ‖ artifact) in nats per position; "same top" is the share
of positions where both rank the same token first; the RMS of Δp is that of the probability of the token that follows.
All metrics are computed first and judged elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, StepError
from edgekiln.validators.base import LOGIT_CHUNK
from edgekiln.validators.bootstrap import mean_intervals
from edgekiln.validators.reference_rows import ReferenceRows, RowReader

#: Runtimes and checkpoints pad the vocabulary to multiples of up to this many rows; a larger difference is an error.
MAX_VOCABULARY_PADDING = 1024
#: No two tokens whose log-probabilities differ by more are tied (one is a tenth more likely), however noisy a runtime
#: is: a broken artifact must not excuse its errors with its noise.
NEAR_TIE_LIMIT: Final = 0.1
#: What 1 - (mass of the kept tokens) can be off in float64; below it a tail's mass means nothing.
_TAIL_ROUNDING: Final = 1e-15
#: Worst tokens that are kept, their candidates shown, and the tokens shown before them.
WORST: Final = 10
CANDIDATES: Final = 3
CONTEXT: Final = 24
_LARGEST_EXPONENT: Final = 700.0  # e^709 is the largest double


@dataclass(frozen=True)
class SectionParity:
    """Parity on one part of the corpus; see `Parity`."""

    section: str
    scored_tokens: int
    mean_kld: float
    p99_kld: float
    top1_agreement: float
    perplexity_ratio: float


@dataclass(frozen=True)
class PathParity:
    """Parity on another path through the runtime than the prefill of the corpus.

    Attributes:
        scored_tokens: Positions compared.
        context_tokens: Most tokens that a compared position had in the cache, itself included.
        prefill_mean_kld: Mean KLD of the same positions by prefill; None where they were not run.
        kld_from_prefill: Mean of KL(prefill ‖ this path), both the artifact's own; likewise.
    """

    scored_tokens: int
    context_tokens: int
    mean_kld: float
    max_kld: float
    top1_agreement: float
    prefill_mean_kld: float | None = None
    kld_from_prefill: float | None = None


@dataclass(frozen=True)
class TokenParity:
    """One token that the artifact predicts badly, as text.

    Attributes:
        section: Part of the corpus.
        position: Position in its window, from 0.
        kld: In nats.
        before: Text up to and with this position.
        token: The token that follows in the corpus.
        reference: The reference's most likely tokens with their probabilities.
        artifact: The artifact's.
    """

    section: str
    position: int
    kld: float
    before: str
    token: str
    reference: tuple[tuple[str, float], ...]
    artifact: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ReplyParity:
    """Greedy replies to one prompt, as text.

    Attributes:
        agreed_tokens: Leading tokens that are equal; all that were asked for where both end alike.
    """

    prompt: str
    reference: str
    artifact: str
    agreed_tokens: int


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
        mean_kld_interval: 95 % interval; see `bootstrap`. None where there is too little text.
        perplexity_ratio_interval: The same for perplexity over reference_perplexity.
        near_tie_nats: The runtime's noise: median over positions of how far it moves the difference in log-probability
            of the reference's top two, at most `NEAR_TIE_LIMIT`. Nearer ones are a tie that the noise decides.
        top1_near_ties: Share of positions with such a tie.
        top1_agreement_clear: Agreement over all others; None where there are none.
        rms_delta_p: Root mean square of p(following token) - that of the reference.
        tail_mass: Mean probability outside the kept tokens; see `reference_rows`.
        kld_by_position: Mean KLD at each position of a window.
        decode: Through the cache, token by token.
        long_context: At the end of a long context.
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
    p95_kld: float | None = None
    p999_kld: float | None = None
    mean_kld_interval: tuple[float, float] | None = None
    perplexity_ratio_interval: tuple[float, float] | None = None
    near_tie_nats: float | None = None
    top1_near_ties: float | None = None
    top1_agreement_clear: float | None = None
    rms_delta_p: float | None = None
    tail_mass: float | None = None
    sections: tuple[SectionParity, ...] = ()
    kld_by_position: tuple[float, ...] = ()
    worst_tokens: tuple[TokenParity, ...] = ()
    replies: tuple[ReplyParity, ...] = ()
    decode: PathParity | None = None
    long_context: PathParity | None = None


@dataclass(frozen=True)
class PositionScores:
    """One value per position.

    Attributes:
        kld: float64, nats.
        same_top: bool.
        reference_nll: float64, negative log-likelihood of the following token under the reference, nats.
        nll: The same under the artifact.
        gap: float64, how much more log-probability the reference gives to its first token than to its second.
        shift: float64, how far the artifact's difference of the same two tokens is from `gap`, absolute.
        tail: float64, the reference's probability outside the kept tokens.
    """

    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    reference_nll: NDArray[np.float64]
    nll: NDArray[np.float64]
    gap: NDArray[np.float64]
    shift: NDArray[np.float64]
    tail: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.kld)

    def part(self, chosen: slice | NDArray[np.bool_]) -> PositionScores:
        """Return some positions."""
        return PositionScores(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def concatenate(parts: Sequence[PositionScores]) -> PositionScores:
    """Return the positions of all `parts`, in order."""
    names = PositionScores.__dataclass_fields__
    return PositionScores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class WorstToken:
    """One of the positions with the largest KLD, in token ids.

    Attributes:
        kld: In nats.
        window: Index of its window.
        position: Position in the window.
        reference: Most likely tokens of the reference, with their probabilities.
        artifact: Those of the artifact.
    """

    kld: float
    window: int
    position: int
    reference: tuple[tuple[int, float], ...]
    artifact: tuple[tuple[int, float], ...]


class _Worst:
    """Keeps the positions with the largest KLD; of equal ones, the first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, WorstToken]] = []
        self._seen = itertools.count()

    def takes(self, kld: float) -> bool:
        return kld > (self._heap[0][0] if len(self._heap) == self._size else 0.0)

    def add(self, token: WorstToken) -> None:
        entry = (token.kld, -next(self._seen), token)
        (heapq.heappush if len(self._heap) < self._size else heapq.heappushpop)(self._heap, entry)

    def all(self) -> tuple[WorstToken, ...]:
        return tuple(token for _, _, token in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))


def _most_likely(weights: NDArray[np.float32], total: float) -> tuple[tuple[int, float], ...]:
    count = min(CANDIDATES, len(weights))
    ids = np.argpartition(weights, -count)[-count:]
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    return tuple((int(token), float(weights[token]) / total) for token in ids)


class RowScorer:
    """Scores an artifact's logits row by row: the scratch memory is two rows, so that it stays in a processor's cache.

    All exponentials are float32 of logits minus their maximum, all sums float64; the same operations on both sides, so
    that equal rows give exactly zero. What rounding leaves below zero is zero.

    Args:
        common: Leading tokens of the vocabulary that reference and artifact share; others are left out of both.
    """

    def __init__(self, common: int) -> None:
        self._common = common
        self._shifted = np.empty(common, np.float32)
        self._weights = np.empty(common, np.float32)
        self.worst = _Worst(WORST)

    def _reference_row(
        self, rows: ReferenceRows, index: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.float64], float]:
        """Return (kept ids, their logits, exponentials, sum over the common vocabulary) of a position."""
        ids, logits = rows.kept(index)
        weights = np.exp(logits).astype(np.float64)
        total = float(rows.totals[index])
        shared = ids < self._common
        if shared.all():
            return ids, logits, weights, total
        if not shared.any():
            raise ArtifactError(f"the reference's likely tokens all lie beyond the artifact's {self._common}")
        # A padding token that the artifact does not have; those in the tail stay, at most the tail's mass.
        return ids[shared], logits[shared], weights[shared], total - float(weights[~shared].sum())

    def _score(self, rows: ReferenceRows, index: int, row: NDArray[np.float32]) -> tuple[float, ...]:
        """Return a position's values in the order of `PositionScores`, leaving weights for `_most_likely`."""
        ids, logits, p, p_total = self._reference_row(rows, index)
        np.subtract(row, row.max(), out=self._shifted)
        np.exp(self._shifted, out=self._weights)
        q_total = float(self._weights.sum(dtype=np.float64))
        theirs = self._shifted[ids]
        q = np.exp(theirs).astype(np.float64)
        log_p_total, log_q_total = np.log(p_total), np.log(q_total)
        difference = logits.astype(np.float64) - theirs
        p_sum = float(p.sum())
        kld = float(p @ difference) / p_total - p_sum / p_total * (log_p_total - log_q_total)
        p_tail, q_tail = 0.0, 0.0
        if len(ids) < self._common:
            p_tail, q_tail = 1 - p_sum / p_total, 1 - float(q.sum()) / q_total
        if p_tail > _TAIL_ROUNDING:
            kld += p_tail * np.log(p_tail / max(q_tail, _TAIL_ROUNDING))
        following = rows.next_ids[index]
        gap = float(logits[0]) - float(logits[1]) if len(logits) > 1 else np.inf
        shift = abs(float(difference[0] - difference[1])) if len(logits) > 1 else 0.0
        return (
            float(np.maximum(kld, 0.0)),  # Python's max would hide NaN
            float(int(row.argmax()) == int(ids[0])),
            log_p_total - float(rows.next_logits[index]),
            log_q_total - float(self._shifted[following]),
            gap,
            shift,
            max(p_tail, 0.0),
        )

    def score(
        self, rows: ReferenceRows, chunk: NDArray[np.float32], window: int = 0, position: int = 0
    ) -> PositionScores:
        """Compare the same positions of both.

        Args:
            rows: The reference's.
            chunk: float32 [positions, vocabulary], the artifact's; not changed.
            window: Index of the window, for the worst tokens.
            position: Position of the first row in the window.
        """
        found = np.empty((len(rows), len(PositionScores.__dataclass_fields__)))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # NaN and infinity are counted afterwards
            for index, row in enumerate(chunk):
                found[index] = values = self._score(rows, index, row[: self._common])
                if math.isfinite(values[0]) and self.worst.takes(values[0]):
                    self.worst.add(self._worst_token(values[0], window, position + index, rows, index))
        kld, same_top, *others = found.T
        return PositionScores(kld, same_top == 1, *others)

    def _worst_token(self, kld: float, window: int, position: int, rows: ReferenceRows, index: int) -> WorstToken:
        ids, _, weights, total = self._reference_row(rows, index)
        ours = tuple((int(i), float(w) / total) for i, w in zip(ids[:CANDIDATES], weights, strict=False))
        return WorstToken(
            kld, window, position, ours, _most_likely(self._weights, float(self._weights.sum(dtype=np.float64)))
        )


def rechunk(chunks: Iterable[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """Split chunks so that none has more than `rows` rows."""
    for chunk in chunks:
        for start in range(0, len(chunk), rows):
            yield chunk[start : start + rows]


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


def score_window(
    scorer: RowScorer,
    reader: RowReader,
    first_row: int,
    chunks: Iterable[NDArray[np.float32]],
    following: Sequence[int],
    *,
    window: int = 0,
    skip: int = 0,
) -> PositionScores:
    """Compare one window with the reference rows from `first_row` on, as its logits come.

    Args:
        scorer: Of the common vocabulary.
        reader: The reference.
        first_row: Where the reference has the first compared position.
        chunks: float32 [positions, vocabulary], consecutive positions of the window.
        following: The token after each position.
        window: Index of the window.
        skip: Leading positions that are not compared; the reference did not keep them.

    Raises:
        ArtifactError: The runtime gave too many or too few rows.
        StepError: The reference is short, damaged, or of other text.
    """
    parts: list[PositionScores] = []
    position = 0
    for chunk in rechunk(chunks, LOGIT_CHUNK):
        if position + len(chunk) > len(following):
            raise ArtifactError(f"the runtime gave more logits than the {len(following)} positions that it was given")
        compared = chunk[max(0, skip - position) :]
        position += len(chunk)
        if not len(compared):
            continue
        at = position - len(compared)
        rows = reader.read(first_row + at - skip, len(compared))
        if rows.next_ids.tolist() != list(following[at:position]):
            raise StepError("the reference's rows are of another text than its index says; make the reference again")
        parts.append(scorer.score(rows, compared, window, at))
    if position != len(following):
        raise ArtifactError(f"the runtime gave logits for {position} of {len(following)} positions")
    return concatenate(parts)


def agreement(expected: Sequence[int], actual: Sequence[int], limit: int, stop: Collection[int]) -> int:
    """Return how many leading tokens agree; two replies that end alike with a stop token agree for all `limit`."""
    equal = 0
    for one, other in zip(expected, actual, strict=False):
        if one != other:
            return equal
        equal += 1
    ended = bool(expected) and expected[-1] in stop
    return limit if ended and len(expected) == len(actual) else equal


def check_finite(scores: PositionScores) -> None:
    """Refuse logits that say nothing.

    Raises:
        ArtifactError: A logit was NaN or infinite.
    """
    bad = int(np.count_nonzero(~(np.isfinite(scores.kld) & np.isfinite(scores.nll))))
    if bad:
        raise ArtifactError(f"the artifact's logits are NaN or infinite at {bad} of {len(scores)} positions")


def _exponential(mean: float) -> float:
    return math.exp(min(mean, _LARGEST_EXPONENT))


def measure_sections(scores: PositionScores, lengths: Sequence[int], sections: Sequence[str]) -> list[SectionParity]:
    """Return the metrics of each part of the corpus, in the order in which they first appear."""
    owners = np.repeat(np.array(sections), lengths)
    found = []
    for section in dict.fromkeys(sections):
        part = scores.part(owners == section)
        found.append(
            SectionParity(
                section=section,
                scored_tokens=len(part),
                mean_kld=float(part.kld.mean()),
                p99_kld=float(np.quantile(part.kld, 0.99)),
                top1_agreement=float(part.same_top.mean()),
                perplexity_ratio=_exponential(float((part.nll - part.reference_nll).mean())),
            )
        )
    return found


def mean_by_position(kld: NDArray[np.float64], lengths: Sequence[int]) -> tuple[float, ...]:
    """Return the mean KLD at each position over the windows that reach it."""
    sums, counts = np.zeros(max(lengths)), np.zeros(max(lengths))
    for window in np.split(kld, np.cumsum(lengths)[:-1]):
        sums[: len(window)] += window
        counts[: len(window)] += 1
    return tuple((sums / counts).tolist())


def _near_ties(scores: PositionScores) -> dict[str, Any]:
    noise = min(float(np.median(scores.shift)), NEAR_TIE_LIMIT)
    clear = ~(scores.gap < noise)
    return {
        "near_tie_nats": noise,
        "top1_near_ties": float(1 - clear.mean()),
        "top1_agreement_clear": float(scores.same_top[clear].mean()) if clear.any() else None,
    }


def _intervals(scores: PositionScores, lengths: Sequence[int]) -> dict[str, Any]:
    found = mean_intervals(np.stack([scores.kld, scores.nll - scores.reference_nll], axis=1), lengths)
    if found is None:
        return {}
    kld, (low, high) = found
    return {"mean_kld_interval": kld, "perplexity_ratio_interval": (_exponential(low), _exponential(high))}


def measure_parity(
    scores: PositionScores,
    lengths: Sequence[int],
    sections: Sequence[str],
    agreements: Sequence[int],
    greedy_tokens: int,
    **others: Any,
) -> Parity:
    """Return the metrics over all positions and prompts.

    Args:
        scores: Of all windows, one after the other.
        lengths: Positions of each window.
        sections: Part of the corpus of each window.
        agreements: Of each prompt.
        greedy_tokens: Tokens decoded per prompt.
        others: Further attributes of `Parity`.

    Raises:
        ArtifactError: A logit was NaN or infinite, so that nothing was compared.
    """
    check_finite(scores)
    kld = scores.kld
    p95, p99, p999 = (float(value) for value in np.quantile(kld, [0.95, 0.99, 0.999]))
    delta = np.exp(-scores.nll) - np.exp(-scores.reference_nll)
    return Parity(
        mean_kld=float(kld.mean()),
        median_kld=float(np.median(kld)),
        p95_kld=p95,
        p99_kld=p99,
        p999_kld=p999,
        max_kld=float(kld.max()),
        top1_agreement=float(scores.same_top.mean()),
        perplexity=_exponential(float(scores.nll.mean())),
        reference_perplexity=_exponential(float(scores.reference_nll.mean())),
        rms_delta_p=float(np.sqrt(np.mean(delta**2))),
        tail_mass=float(scores.tail.mean()),
        greedy_agreement_tokens=float(np.mean(agreements)) if agreements else 0.0,
        greedy_tokens=greedy_tokens,
        scored_tokens=len(scores),
        sections=tuple(measure_sections(scores, lengths, sections)),
        kld_by_position=mean_by_position(kld, lengths),
        **_near_ties(scores),
        **_intervals(scores, lengths),
        **others,
    )
