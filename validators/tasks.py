"""What runs in a process of its own: each task takes a JSON request and returns a JSON result.

Started as `python -m edgekiln.validators.tasks` by `edgekiln.process.run_task`; paths in requests are absolute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import StepError, UsageError
from edgekiln.process import Json, Task, serve
from edgekiln.validators import RUNTIMES
from edgekiln.validators.base import MeasurementProtocol, Runtime
from edgekiln.validators.corpus import Window, make_windows, read_corpus, read_prompts
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer, render_chat
from edgekiln.validators.kinds import identify
from edgekiln.validators.latency import load_once, measure
from edgekiln.validators.parity import (
    LogitRows,
    RowComparison,
    agreement,
    common_vocabulary,
    compare_window,
    join,
    summarize,
)
from edgekiln.validators.reference import ReferenceRuntime, Rounding
from edgekiln.validators.runtime_foundry import FoundryRuntime
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.storage import weights_by_type
from edgekiln.validators.structure import check_structure
from edgekiln.validators.tokenizer import compare_tokenizer

REFERENCE_SCHEMA: Final = "edgekiln.reference/1"
INDEX: Final = "reference.json"
LOGITS: Final = "logits.f32"


class _Endable(Protocol):
    def end(self) -> None: ...


_E = TypeVar("_E", bound=_Endable)


@contextlib.contextmanager
def _ended(runtime: _E) -> Iterator[_E]:
    """Give a runtime, and end it whatever happens: this process ends without running destructors."""
    try:
        yield runtime
    finally:
        runtime.end()


def _protocol(request: Json) -> MeasurementProtocol:
    asked: Json = {k: tuple(v) if isinstance(v, list) else v for k, v in request["protocol"].items()}
    return MeasurementProtocol(**asked)


def _latency_prompt(windows: Sequence[Sequence[int]], length: int) -> list[int]:
    """Return `length` tokens of the corpus, repeating it if it is shorter."""
    tokens = [token for ids in windows for token in ids]
    return (tokens * (length // len(tokens) + 1))[:length]


def _fitting(prompts: Sequence[list[int]], protocol: MeasurementProtocol) -> list[list[int]]:
    """Return the prompts that leave room for a reply in the context; one that lost its beginning would be another.

    Raises:
        UsageError: None does.
    """
    limit = protocol.context - protocol.greedy_tokens
    kept = [prompt for prompt in prompts if len(prompt) <= limit]
    if not kept:
        shortest = min(map(len, prompts))
        raise UsageError(
            f"no prompt fits a context of {protocol.context} tokens with a reply of {protocol.greedy_tokens}: the "
            f"shortest has {shortest}; measure with fewer greedy_tokens or with a longer context"
        )
    return kept


def _round_weights(runtime: ReferenceRuntime) -> Rounding:
    """Round the reference's weights.

    Raises:
        StepError: Some do not fit fp16; logits of infinite weights would blame every artifact.
    """
    rounding = runtime.round_weights()
    if rounding.overflowed:
        raise StepError(
            f"{rounding.overflowed} weights of the checkpoint lie beyond ±65504, so the model does not fit fp16, and "
            "there is no reference to compare artifacts with; give a checkpoint whose weights were scaled for fp16"
        )
    return rounding


def _write_logits(runtime: ReferenceRuntime, windows: Sequence[Window], path: Path) -> int:
    """Write the logits of all windows and return the size of the vocabulary.

    Raises:
        StepError: The reference itself gives NaN or infinite logits.
    """
    vocabulary = 0
    with path.open("wb") as file:
        for window in windows:
            for chunk in runtime.logits(window.ids[:-1]):
                if not np.isfinite(chunk).all():
                    raise StepError(
                        "the reference's own logits are NaN or infinite, so nothing can be compared with them; "
                        "check the weights of the checkpoint"
                    )
                vocabulary = chunk.shape[1]
                file.write(chunk.astype("<f4", copy=False).tobytes())
    return vocabulary


def reference(request: Json) -> Json:
    """Write the reference's logits, greedy replies and token ids for one corpus into a directory.

    Request: `checkpoint`, `corpus` (path or null), `directory`, `protocol`.
    """
    protocol, directory = _protocol(request), Path(request["directory"])
    checkpoint = open_checkpoint(request["checkpoint"], offline=True, check_text=False)
    corpus = read_corpus(Path(request["corpus"]) if request["corpus"] else None)
    tokenizer = load_tokenizer(checkpoint.directory)
    windows = make_windows(
        corpus, lambda text: encode(tokenizer, text), window=protocol.window, windows=protocol.windows
    )
    chats = [render_chat(checkpoint.directory, [{"role": "user", "content": text}]) for text in read_prompts()]
    prompts = _fitting([encode(tokenizer, chat) for chat in chats], protocol)
    stop = checkpoint.config.eos_token_ids
    with _ended(ReferenceRuntime()) as runtime:
        runtime.load(checkpoint.directory, protocol.threads, protocol.context)
        rounding = _round_weights(runtime)
        vocabulary = _write_logits(runtime, windows, directory / LOGITS)
        replies = [runtime.greedy(prompt, protocol.greedy_tokens, stop) for prompt in prompts]
    index = {
        "schema": REFERENCE_SCHEMA,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "tokens": sum(len(w.ids) for w in windows)},
        "vocabulary": vocabulary,
        "windows": [{"section": window.section, "ids": list(window.ids)} for window in windows],
        "greedy": [{"prompt": p, "reply": r} for p, r in zip(prompts, replies, strict=True)],
        "stop": list(stop),
        "latency_prompt": _latency_prompt([window.ids for window in windows], max(protocol.prefill_tokens)),
        "rounding": dataclasses.asdict(rounding),
    }
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return {}


def read_reference(directory: Path) -> dict[str, Any]:
    """Return the index that `reference` wrote.

    Raises:
        StepError: It is missing or of another version.
    """
    try:
        index = json.loads((directory / INDEX).read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise StepError(f"{directory} holds no usable reference ({error}); make it again") from None
    if not isinstance(index, dict) or index.get("schema") != REFERENCE_SCHEMA:
        raise StepError(f"{directory} holds a reference of another version than {REFERENCE_SCHEMA}; make it again")
    return index


def _compare_windows(runtime: Runtime, directory: Path, index: dict[str, Any]) -> tuple[RowComparison, str | None]:
    """Compare every window of the reference in `directory`; the note says what differs in the vocabulary."""
    rows = LogitRows(directory / LOGITS, index["vocabulary"])
    largest = max(max(window["ids"]) for window in index["windows"])
    parts: list[RowComparison] = []
    first_row, note = 0, None
    for window in index["windows"]:
        ids = window["ids"]
        chunks = runtime.logits(ids[:-1])
        head = next(chunks)
        common, note = common_vocabulary(rows.vocabulary, head.shape[1], largest)
        parts.append(compare_window(rows, first_row, itertools.chain([head], chunks), ids, common))
        first_row += len(ids) - 1
    return join(parts), note


def parity(request: Json) -> Json:
    """Compare an artifact with the reference. Request: `format`, `path`, `reference`, `protocol`."""
    protocol, directory = _protocol(request), Path(request["reference"])
    index = read_reference(directory)
    stop, count = index["stop"], protocol.greedy_tokens
    with _ended(RUNTIMES[request["format"]]()) as runtime:
        runtime.load(Path(request["path"]), protocol.threads, protocol.context)
        compared, note = _compare_windows(runtime, directory, index)
        agreements = [
            agreement(entry["reply"], runtime.greedy(entry["prompt"], count, stop), count, stop)
            for entry in index["greedy"]
        ]
    return dataclasses.asdict(summarize(compared, agreements, count, note))


def latency(request: Json) -> Json:
    """Measure one process. Request: `format` (or `reference`), `path`, `prompt`, `protocol`."""
    runtime = RUNTIMES[request["format"]]()
    return dataclasses.asdict(measure(runtime, Path(request["path"]), request["prompt"], _protocol(request)))


def load(request: Json) -> Json:
    """Time one load and nothing else. Request: `format`, `path`, `protocol`."""
    runtime = RUNTIMES[request["format"]]()
    return {"seconds": load_once(runtime, Path(request["path"]), _protocol(request))}


def structure(request: Json) -> Json:
    """Check an artifact's structure. Request: `path`, `checkpoint`."""
    checkpoint = open_checkpoint(request["checkpoint"], offline=True, check_text=False)
    family = checkpoint.family
    kind = identify(Path(request["path"]))
    found = check_structure(
        kind,
        checkpoint.config,
        architecture=family.gguf_architecture,
        genai_type=family.genai_type,
    )
    sound = all(entry.outcome != "fail" for entry in found.checks)
    return dataclasses.asdict(found) | {"weights_by_type": weights_by_type(kind) if sound else {}}


def tokenizer(request: Json) -> Json:
    """Compare tokenizers on the built-in corpus and samples. Request: `format`, `path`, `checkpoint`."""
    texts = [document.text for document in read_corpus().documents]
    with _ended(RUNTIMES[request["format"]]()) as runtime:
        runtime.load_tokenizer(Path(request["path"]))
        results = compare_tokenizer(Path(request["checkpoint"]), runtime.tokenize, texts)
    return {"checks": [dataclasses.asdict(result) for result in results]}


def _conversations() -> list[list[dict[str, str]]]:
    system = {"role": "system", "content": "You are a terse assistant."}
    chats = [[{"role": "user", "content": text}] for text in read_prompts()]
    return [[system, *chats[0]], *chats]


def foundry_chat(request: Json) -> Json:
    """Load and chat in Foundry Local. Request: `path`, `protocol`."""
    count = _protocol(request).greedy_tokens
    import foundry_local_sdk  # noqa: F401 - its import is no part of the load time

    with _ended(FoundryRuntime()) as runtime:
        begin = time.perf_counter()
        runtime.load(Path(request["path"]))
        load_seconds = time.perf_counter() - begin
        replies = [runtime.chat(messages, count) for messages in _conversations()]
    return {"load_seconds": load_seconds, "replies": [dataclasses.asdict(reply) for reply in replies]}


def genai_chat(request: Json) -> Json:
    """Give ORT GenAI's greedy replies to the same conversations. Request: `path`, `protocol`."""
    protocol = _protocol(request)
    with _ended(GenaiRuntime()) as runtime:
        runtime.load(Path(request["path"]), protocol.threads, protocol.context)
        replies = [runtime.chat(messages, protocol.greedy_tokens) for messages in _conversations()]
    return {"replies": [{"text": text, "prompt_tokens": tokens} for text, tokens in replies]}


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "reference": reference,
        "parity": parity,
        "latency": latency,
        "load": load,
        "structure": structure,
        "tokenizer": tokenizer,
        "foundry_chat": foundry_chat,
        "genai_chat": genai_chat,
    }
)

if __name__ == "__main__":
    serve(TASKS)
