"""Parity beside the prefill of short windows: token by token through the cache, and at the end of a long context.

A fault of the cache (a position off by one, a mask that ends early) does not show in prefill, and one of far positions
(a scaled rotary base, a window of attention) does not show in short windows. Both are judged against the same
artifact's own windows, so that a coarse precision is not taken for a fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.validators.base import LOGIT_CHUNK, CheckResult, Finding, Runtime
from edgekiln.validators.parity import (
    PathParity,
    PositionScores,
    RowScorer,
    check_finite,
    concatenate,
    score_window,
)
from edgekiln.validators.reference_rows import RowReader

DECODE: Final = "parity/decode"
LONG_CONTEXT: Final = "parity/long_context"
#: Windows that are decoded token by token.
DECODE_WINDOWS: Final = 2
#: Last positions of the long window that are compared.
LONG_POSITIONS: Final = 64


@dataclass(frozen=True)
class Limit:
    """How large a KLD may be beside another one: factor · the other + nats."""

    factor: float
    nats: float

    def holds(self, kld: float, other: float) -> bool:
        """Tell whether a KLD is within it."""
        return kld <= self.factor * other + self.nats


#: Decoding and prefill use other kernels. With quantized activations their rounding puts the two 0.001 to 0.0027 nats
#: apart (Qwen2.5-Coder-0.5B: Q4_K_M 0.0027, int4 0.0015, Q4_0 0.0014, int8 0.0012), without them 1e-5 or less; lengths
#: of the cache that are off by one, 0.013 and more.
DECODE_LIMIT: Final = Limit(0.02, 0.006)
#: Sound artifacts had 0.7 to 1.3 times the KLD of their windows at the end of 2,048 tokens; what is written there is
#: one kind of text, and the kinds differ by a factor of four.
LONG_LIMIT: Final = Limit(4.0, 0.005)


@dataclass(frozen=True)
class Span:
    """Positions of a window that are decoded.

    Attributes:
        window: Index of the window.
        prefix: Tokens processed at once before them; the first decoded position is this one.
        count: Tokens decoded one by one.
    """

    window: int
    prefix: int
    count: int


def choose_spans(lengths: Sequence[int], positions: int) -> list[Span]:
    """Return what is decoded: `positions` in all, from the middle of the longest windows on.

    All lies within one chunk of prefill: a longer prefill continues a cache, and would have its faults as well.

    Args:
        lengths: Tokens of each window; the last is predicted, not run.
        positions: Most positions decoded.
    """
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[:DECODE_WINDOWS]
    each = -(-positions // len(longest))
    spans = []
    for window in sorted(longest):
        run = min(lengths[window] - 1, LOGIT_CHUNK)
        prefix = max(1, run // 2)
        spans.append(Span(window, prefix, min(each, run - prefix)))
    return [span for span in spans if span.count > 0]


def summarize_path(scores: PositionScores, context_tokens: int) -> PathParity:
    """Return the metrics of a path.

    Raises:
        ArtifactError: A logit was NaN or infinite.
    """
    check_finite(scores)
    return PathParity(
        scored_tokens=len(scores),
        context_tokens=context_tokens,
        mean_kld=float(scores.kld.mean()),
        max_kld=float(scores.kld.max()),
        top1_agreement=float(scores.same_top.mean()),
    )


def divergence(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KL(softmax(first) ‖ softmax(second)) of each row, in nats; both are float32 [positions, vocabulary]."""
    found = np.empty(len(first))
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        log_p = one.astype(np.float64) - one.max()
        log_q = other.astype(np.float64) - other.max()
        p, q_total = np.exp(log_p), np.exp(log_q).sum()
        total = p.sum()
        found[index] = p @ (log_p - log_q) / total - np.log(total) + np.log(q_total)
    return np.maximum(found, 0.0)


def _compare_span(
    runtime: Runtime, scorer: RowScorer, reader: RowReader, first_row: int, ids: Sequence[int], span: Span
) -> tuple[PositionScores, PositionScores, NDArray[np.float64]]:
    """Return the scores by decoding, those by prefill, and the divergence of decoding from prefill.

    Args:
        runtime: Loaded.
        scorer: Of the common vocabulary.
        reader: Rows of the reference.
        first_row: The row of the first decoded position.
        ids: Tokens of the window.
        span: What is decoded; its logits are held: 0.6 MB per position at a vocabulary of 151,936.
    """
    end = span.prefix + span.count
    following = ids[span.prefix + 1 : end + 1]
    (chunk,) = (chunk[span.prefix :].copy() for chunk in runtime.logits(ids[:end]))
    prefilled = score_window(scorer, reader, first_row, [chunk], following, window=span.window)
    steps: list[PositionScores] = []
    apart = np.empty(span.count)
    for index, row in enumerate(runtime.step_logits(ids[: span.prefix], ids[span.prefix : end])):
        steps.append(score_window(scorer, reader, first_row + index, [row], following[index : index + 1]))
        with np.errstate(invalid="ignore"):  # NaN is refused later
            apart[index] = divergence(chunk[index : index + 1], row)[0]
    if len(steps) != span.count:
        raise ArtifactError(f"the runtime gave logits for {len(steps)} of {span.count} tokens, run one by one")
    return concatenate(steps), prefilled, apart


def compare_decode(
    runtime: Runtime, reader: RowReader, windows: Sequence[Sequence[int]], common: int, positions: int
) -> PathParity | None:
    """Decode parts of the windows token by token, and run the same by prefill.

    Args:
        runtime: Loaded.
        reader: Rows of all windows, one after the other.
        windows: Token ids.
        common: Leading tokens of the vocabulary that both have.
        positions: Most positions decoded; 0 for none.

    Returns:
        None where there is no position to decode.

    Raises:
        ArtifactError: A logit was NaN or infinite.
    """
    spans = choose_spans([len(ids) for ids in windows], positions)
    if not spans:
        return None
    scorer = RowScorer(common)
    rows = np.cumsum([0] + [len(ids) - 1 for ids in windows])
    decoded, prefilled, apart = zip(
        *(
            _compare_span(runtime, scorer, reader, int(rows[span.window]) + span.prefix, windows[span.window], span)
            for span in spans
        ),
        strict=True,
    )
    return dataclasses.replace(
        summarize_path(concatenate(decoded), max(span.prefix + span.count for span in spans)),
        prefill_mean_kld=float(concatenate(prefilled).kld.mean()),
        kld_from_prefill=float(np.concatenate(apart).mean()),
    )


def judge_decode(found: PathParity | None) -> CheckResult:
    """Return whether decoding gives what prefill gives at the same positions of the same artifact.

    Not the distances from the reference are compared, where a 4-bit precision would hide a fault of the cache, but the
    two paths with each other; only the noise that rounding gets from quantized activations grows with the former.
    """
    if found is None or found.prefill_mean_kld is None or found.kld_from_prefill is None:
        return CheckResult(DECODE, "not_measured", "no window has a position to decode, or none was asked for")
    detail = (
        f"{found.scored_tokens} tokens decoded one by one are {found.kld_from_prefill:.3g} nats from prefill in the "
        f"mean; from the reference, {found.mean_kld:.3g} and {found.prefill_mean_kld:.3g}"
    )
    if DECODE_LIMIT.holds(found.kld_from_prefill, found.prefill_mean_kld):
        return CheckResult(DECODE, "pass", detail)
    finding = Finding(
        DECODE,
        "error",
        "decode",
        f"{detail}; the paths of a sound artifact differ by rounding only",
        "Check what only decoding uses: the positions and lengths that the graph gives to the cache, the attention "
        "mask over past tokens, and how new keys and values are appended.",
    )
    return CheckResult(DECODE, "fail", f"{detail}: the cache is used wrongly", (finding,))


def compare_long(runtime: Runtime, reader: RowReader, ids: Sequence[int], common: int) -> PathParity:
    """Compare the last positions of a long window, whose rows are all that `reader` has."""
    following = ids[1:]
    skip = max(0, len(following) - LONG_POSITIONS)
    scores = score_window(RowScorer(common), reader, 0, runtime.logits(ids[:-1]), following, skip=skip)
    return summarize_path(scores, len(following))


def judge_long(found: PathParity, windows_mean_kld: float) -> CheckResult:
    """Return whether the end of a long context is about as near to the reference as the windows are."""
    detail = (
        f"mean KLD {found.mean_kld:.3g} over the last {found.scored_tokens} of {found.context_tokens} tokens, "
        f"{windows_mean_kld:.3g} in the windows"
    )
    if LONG_LIMIT.holds(found.mean_kld, windows_mean_kld):
        return CheckResult(LONG_CONTEXT, "pass", detail)
    finding = Finding(
        LONG_CONTEXT,
        "error",
        "long context",
        f"{detail}; the errors of a sound artifact hardly grow with the context",
        "Check what grows with the position: rotary base and scaling, the precision of rotary tables, a sliding window "
        "of attention, and the length of the cache.",
    )
    return CheckResult(LONG_CONTEXT, "fail", f"{detail}: far positions are wrong", (finding,))


def explain_short(declared: int, asked: int) -> CheckResult | None:
    """Return why a long context is not measured, where an artifact declares a shorter one."""
    if declared >= asked:
        return None
    return CheckResult(
        LONG_CONTEXT,
        "not_measured",
        f"the artifact declares a context of {declared} tokens, and {asked} were asked for",
    )


def refuse_long(error: ArtifactError) -> CheckResult:
    """Return the failed check of an artifact that declares a long context and cannot be run with it."""
    finding = Finding(
        LONG_CONTEXT,
        "error",
        "long context",
        str(error),
        "Declare the context that the artifact can be run with, or repair what stops it there.",
    )
    return CheckResult(LONG_CONTEXT, "fail", str(error), (finding,))
