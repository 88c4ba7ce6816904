"""The two halves of parity: what the reference leaves in a directory, and the comparison of an artifact with it.

`reference.json` has the token ids and replies, `windows.*` and `long.*` the distributions (see `reference_rows`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, CheckpointError, StepError, UsageError
from edgekiln.model_config import read_json
from edgekiln.validators.base import CheckResult, MeasurementProtocol, Runtime
from edgekiln.validators.corpus import Corpus, Window, make_windows
from edgekiln.validators.parity import (
    CONTEXT,
    Parity,
    PathParity,
    PositionScores,
    ReplyParity,
    RowScorer,
    TokenParity,
    WorstToken,
    agreement,
    common_vocabulary,
    concatenate,
    measure_parity,
    score_window,
)
from edgekiln.validators.parity_paths import (
    LONG_POSITIONS,
    compare_decode,
    compare_long,
    explain_short,
    judge_decode,
    judge_long,
    refuse_long,
)
from edgekiln.validators.reference_rows import RowReader, RowWriter

REFERENCE_SCHEMA: Final = "edgekiln.reference/2"
INDEX: Final = "reference.json"
WINDOWS: Final = "windows"
LONG: Final = "long"
#: A full run has 16,000 token ids; a user's may have many more windows.
_MAX_INDEX_BYTES: Final = 64 << 20
#: No published vocabulary has more than 2^18 entries.
_MAX_VOCABULARY: Final = 1 << 22

Decode = Callable[[Sequence[int]], str]


class ReferenceModel(Protocol):
    """What runs the checkpoint."""

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield (sequence, first position, float32 [positions, vocabulary]), in order, each valid until the next."""
        ...

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, stop: Collection[int]) -> list[list[int]]:
        """Return up to `count` greedily decoded tokens per prompt; the first of `stop` ends one and is included."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt that is answered greedily.

    Attributes:
        text: What the user says.
        ids: Its tokens, in the chat template.
        reply: The reference's tokens; empty before it ran.
    """

    text: str
    ids: tuple[int, ...]
    reply: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReferenceText:
    """What the reference is run on.

    Attributes:
        corpus: `name`, `sha256` and `tokens`, for the report.
        windows: At least one.
        long: One long window; empty for none.
        prompts: At least one.
        stop: Tokens that end a reply.
        latency_prompt: Tokens that speed is measured with.
    """

    corpus: Mapping[str, Any]
    windows: tuple[Window, ...]
    long: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    stop: tuple[int, ...]
    latency_prompt: tuple[int, ...]


@dataclass(frozen=True)
class ReferenceIndex:
    """`reference.json`: the text, with the reference's replies.

    Attributes:
        text: What was run.
        vocabulary: Tokens of the reference's logits.
        rounding: Weights that fp16 could not hold: `overflowed`, `underflowed`.
    """

    text: ReferenceText
    vocabulary: int
    rounding: Mapping[str, int]


def repeat_to(pieces: Sequence[Sequence[int]], length: int) -> tuple[int, ...]:
    """Return `length` tokens: the pieces in order, again and again where they are too short."""
    tokens = [token for piece in pieces for token in piece]
    return tuple((tokens * (length // len(tokens) + 1))[:length])


def fitting(prompts: Sequence[Prompt], protocol: MeasurementProtocol) -> tuple[Prompt, ...]:
    """Return the prompts that leave room for a reply in the context; one that lost its beginning would be another.

    Raises:
        UsageError: None does.
    """
    limit = protocol.context - protocol.greedy_tokens
    kept = tuple(prompt for prompt in prompts if len(prompt.ids) <= limit)
    if not kept:
        shortest = min(len(prompt.ids) for prompt in prompts)
        raise UsageError(
            f"no prompt fits a context of {protocol.context} tokens with a reply of {protocol.greedy_tokens}: the "
            f"shortest has {shortest}; measure with fewer greedy_tokens or with a longer context"
        )
    return kept


def choose_text(
    corpus: Corpus,
    prompts: Sequence[str],
    protocol: MeasurementProtocol,
    *,
    encode: Callable[[str], Sequence[int]],
    render: Callable[[str], str],
    stop: Sequence[int],
    longest: int,
) -> ReferenceText:
    """Return what the reference is run on.

    Args:
        corpus: Gives the windows, and its documents in order the long one.
        prompts: What users say.
        protocol: How much of each.
        encode: Returns the token ids of a text.
        render: Puts a prompt into the chat template.
        stop: Tokens that end a reply.
        longest: Context of the checkpoint in tokens; the long window has no more.
    """
    windows = make_windows(corpus, encode, window=protocol.window, windows=protocol.windows)
    long: tuple[int, ...] = ()
    if protocol.long_context:
        documents = [encode(document.text) for document in corpus.documents]
        long = repeat_to(documents, max(2, min(protocol.long_context, longest)))
    return ReferenceText(
        corpus={"name": corpus.name, "sha256": corpus.sha256, "tokens": sum(len(window.ids) for window in windows)},
        windows=windows,
        long=long,
        prompts=fitting([Prompt(text, tuple(encode(render(text)))) for text in prompts], protocol),
        stop=tuple(stop),
        latency_prompt=repeat_to([window.ids for window in windows], max(protocol.prefill_tokens)),
    )


def _write_rows(model: ReferenceModel, text: ReferenceText, directory: Path) -> int:
    """Write the rows of all windows and the last ones of the long one; return the size of the vocabulary.

    Raises:
        StepError: The reference gives NaN or infinite logits, or not those of all positions in order.
    """
    sequences = [window.ids for window in text.windows] + ([text.long] if text.long else [])
    windows, done = len(text.windows), [0] * len(sequences)
    with RowWriter(directory, WINDOWS) as writer, RowWriter(directory, LONG) as long_writer:
        for number, first, chunk in model.logits([ids[:-1] for ids in sequences]):
            following = sequences[number][first + 1 : first + 1 + len(chunk)]
            if first != done[number] or any(done[number + 1 :]) or len(following) != len(chunk):
                raise StepError("the reference gave positions out of order; this is a fault of Edgekiln: report it")
            done[number] += len(chunk)
            if number < windows:
                writer.add(chunk, following)
            elif done[number] > (start := len(text.long) - 1 - LONG_POSITIONS):
                skip = max(0, start - first)
                long_writer.add(chunk[skip:], following[skip:])
        if done != [len(ids) - 1 for ids in sequences]:
            raise StepError("the reference left out positions; this is a fault of Edgekiln: report it")
        return writer.vocabulary


def write_reference(
    model: ReferenceModel,
    text: ReferenceText,
    directory: Path,
    protocol: MeasurementProtocol,
    rounding: Mapping[str, int],
) -> None:
    """Run the reference and leave its distributions, replies and token ids in a directory.

    Args:
        model: The reference.
        text: What it is run on.
        directory: Exists; `reference.json` is written last.
        protocol: Number of greedy tokens.
        rounding: Weights that fp16 could not hold: `overflowed`, `underflowed`.

    Raises:
        StepError: The reference gives NaN or infinite logits.
    """
    vocabulary = _write_rows(model, text, directory)
    replies = model.greedy([prompt.ids for prompt in text.prompts], protocol.greedy_tokens, text.stop)
    index = {
        "schema": REFERENCE_SCHEMA,
        "vocabulary": vocabulary,
        "rounding": dict(rounding),
        "text": dataclasses.asdict(text)
        | {"prompts": [{"text": p.text, "ids": p.ids, "reply": r} for p, r in zip(text.prompts, replies, strict=True)]},
    }
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _ids(values: object, vocabulary: int, least: int) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) < least:
        raise ValueError("too few token ids")
    if any(type(value) is not int or not 0 <= value < vocabulary for value in values):
        raise ValueError("a token id that is none")
    return tuple(values)


def _count(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"a count of {value!r}")
    return value


def _parse_index(index: Mapping[str, Any]) -> ReferenceIndex:
    """Return the typed index.

    Raises:
        KeyError, TypeError, ValueError: It is not one.
    """
    vocabulary, text = _count(index["vocabulary"], _MAX_VOCABULARY), index["text"]
    windows = tuple(Window(str(w["section"]), _ids(w["ids"], vocabulary, 2)) for w in text["windows"])
    long = _ids(text["long"], vocabulary, 0)
    if not windows or len(long) == 1:
        raise ValueError("no window, or one of a single token")
    prompts = tuple(
        Prompt(str(p["text"]), _ids(p["ids"], vocabulary, 1), _ids(p["reply"], vocabulary, 0)) for p in text["prompts"]
    )
    corpus = {key: str(text["corpus"][key]) for key in ("name", "sha256")}
    tokens = _count(text["corpus"]["tokens"], 1 << 40)
    stop, latency = _ids(text["stop"], 1 << 31, 0), _ids(text["latency_prompt"], vocabulary, 1)
    rounding = {key: _count(index["rounding"][key], 1 << 60) for key in ("overflowed", "underflowed")}
    parsed = ReferenceText(corpus | {"tokens": tokens}, windows, long, prompts, stop, latency)
    return ReferenceIndex(parsed, vocabulary, rounding)


def read_reference(directory: Path) -> ReferenceIndex:
    """Return the index that `write_reference` wrote; its content is not trusted.

    Raises:
        StepError: It is missing, damaged or of another version.
    """
    try:
        index = read_json(directory / INDEX, _MAX_INDEX_BYTES)
        if index.get("schema") == REFERENCE_SCHEMA:
            return _parse_index(index)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise StepError(f"{directory} holds no usable reference ({error}); make it again") from None
    raise StepError(f"{directory} holds a reference of another version than {REFERENCE_SCHEMA}; make it again")


@dataclass(frozen=True)
class Comparison:
    """What was found about an artifact.

    Attributes:
        parity: The metrics.
        checks: `parity/decode` and, where it was asked for, `parity/long_context`.
    """

    parity: Parity
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True)
class _Windows:
    """What prefill gave on the windows.

    Attributes:
        scores: Of all positions.
        common: Tokens of the vocabulary that were compared.
        note: What differs in the vocabulary.
        worst: The worst tokens.
    """

    scores: PositionScores
    common: int
    note: str | None
    worst: tuple[WorstToken, ...]


def _compare_windows(runtime: Runtime, reader: RowReader, index: ReferenceIndex) -> _Windows:
    """Compare every window, by prefill, as its logits come."""
    windows = index.text.windows
    largest = max(itertools.chain(*(window.ids for window in windows), index.text.long))
    parts: list[PositionScores] = []
    scorer: RowScorer | None = None
    common, note, first_row = 0, None, 0
    for number, window in enumerate(windows):
        chunks = runtime.logits(window.ids[:-1])
        head = next(chunks)
        if scorer is None:
            common, note = common_vocabulary(index.vocabulary, head.shape[1], largest)
            scorer = RowScorer(common)
        rows = itertools.chain([head], chunks)
        parts.append(score_window(scorer, reader, first_row, rows, window.ids[1:], window=number))
        first_row += len(window.ids) - 1
    worst = scorer.worst.all() if scorer else ()
    return _Windows(concatenate(parts), common, note, worst)


def describe_token(token: int, decode: Decode) -> str:
    """Return the text of one token, or its id where it has none: padding, or a part of a letter."""
    text = decode([token])
    return text if text and "\ufffd" not in text else f"<{token}>"


def describe_worst(worst: WorstToken, window: Window, decode: Decode) -> TokenParity:
    """Return a worst token as text, with what stands before it."""
    after = worst.position + 1

    def likely(entries: tuple[tuple[int, float], ...]) -> tuple[tuple[str, float], ...]:
        return tuple((describe_token(token, decode), probability) for token, probability in entries)

    return TokenParity(
        section=window.section,
        position=worst.position,
        kld=worst.kld,
        before=decode(window.ids[max(0, after - CONTEXT) : after]),
        token=describe_token(window.ids[after], decode),
        reference=likely(worst.reference),
        artifact=likely(worst.artifact),
    )


def _compare_replies(runtime: Runtime, text: ReferenceText, count: int, decode: Decode) -> list[ReplyParity]:
    """Decode every prompt greedily and set the replies side by side."""
    found = []
    for prompt in text.prompts:
        reply = runtime.greedy(prompt.ids, count, text.stop)
        agreed = agreement(prompt.reply, reply, count, text.stop)
        found.append(ReplyParity(prompt.text, decode(prompt.reply), decode(reply), agreed))
    return found


def _compare_long(
    runtime: Runtime, path: Path, directory: Path, index: ReferenceIndex, protocol: MeasurementProtocol, near: _Windows
) -> tuple[PathParity | None, CheckResult]:
    """Compare the end of the long window and judge it by the short ones; the runtime may be loaded anew for it."""
    ids = index.text.long
    try:
        short = explain_short(runtime.declared_context(), len(ids))
        if short is not None:
            return None, short
        if len(ids) > protocol.context:
            runtime.end()
            runtime.load(path, protocol.threads, len(ids))
        found = compare_long(runtime, RowReader(directory, LONG, index.vocabulary), ids, near.common)
    except ArtifactError as error:
        return None, refuse_long(error)
    return found, judge_long(found, float(near.scores.kld.mean()))


def compare_artifact(
    runtime: Runtime, path: Path, directory: Path, protocol: MeasurementProtocol, decode: Decode
) -> Comparison:
    """Compare an artifact with the reference in a directory.

    Args:
        runtime: Not loaded; it is left loaded, for the caller to end.
        path: What the runtime loads.
        directory: What `write_reference` left.
        protocol: The one that the reference was made under.
        decode: Returns the text of token ids by the checkpoint's tokenizer.

    Raises:
        ArtifactError: The runtime refuses the artifact, or its logits are NaN, infinite, or of another model.
        StepError: The reference is damaged.
    """
    index = read_reference(directory)
    text = index.text
    runtime.load(path, protocol.threads, protocol.context)
    reader = RowReader(directory, WINDOWS, index.vocabulary)
    windows = _compare_windows(runtime, reader, index)
    replies = _compare_replies(runtime, text, protocol.greedy_tokens, decode)
    parity = measure_parity(
        windows.scores,
        [len(window.ids) - 1 for window in text.windows],
        [window.section for window in text.windows],
        [reply.agreed_tokens for reply in replies],
        protocol.greedy_tokens,
        note=windows.note,
        replies=tuple(replies),
        worst_tokens=tuple(describe_worst(worst, text.windows[worst.window], decode) for worst in windows.worst),
    )
    ids = [window.ids for window in text.windows]
    decoded = compare_decode(runtime, reader, ids, windows.common, protocol.decode_positions)
    checks = [judge_decode(decoded)]
    long: PathParity | None = None
    if text.long:
        long, judged = _compare_long(runtime, path, directory, index, protocol, windows)
        checks.append(judged)
    return Comparison(dataclasses.replace(parity, decode=decoded, long_context=long), tuple(checks))
