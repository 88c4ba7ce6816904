"""What runs in a process of its own: each task takes a JSON request and returns a JSON result.

Started as `python -m edgekiln.validators.tasks` by `edgekiln.process.run_task`; paths in requests are absolute.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.process import Json, Task, serve
from edgekiln.validators import RUNTIMES
from edgekiln.validators.base import MeasurementProtocol, Runtime
from edgekiln.validators.corpus import make_windows, read_corpus, read_prompts
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer, render_chat
from edgekiln.validators.kinds import identify
from edgekiln.validators.latency import measure
from edgekiln.validators.parity import (
    LogitRows,
    RowComparison,
    agreement,
    common_vocabulary,
    compare_window,
    join,
    summarize,
)
from edgekiln.validators.reference import ReferenceRuntime
from edgekiln.validators.runtime_foundry import FoundryRuntime
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.storage import weights_by_type
from edgekiln.validators.structure import check_structure
from edgekiln.validators.tokenizer import compare_tokenizer

REFERENCE_SCHEMA: Final = "edgekiln.reference/1"
INDEX: Final = "reference.json"
LOGITS: Final = "logits.f32"


def _protocol(request: Json) -> MeasurementProtocol:
    return MeasurementProtocol(**request["protocol"])


def _latency_prompt(windows: Sequence[Sequence[int]], length: int) -> list[int]:
    """Return `length` tokens of the corpus, repeating it if it is shorter."""
    tokens = [token for ids in windows for token in ids]
    return (tokens * (length // len(tokens) + 1))[:length]


def reference(request: Json) -> Json:
    """Write the reference's logits, greedy replies and token ids for one corpus into a directory.

    Request: `checkpoint`, `corpus` (path or null), `directory`, `protocol`.
    """
    protocol, directory = _protocol(request), Path(request["directory"])
    checkpoint = open_checkpoint(request["checkpoint"], offline=True)
    corpus = read_corpus(Path(request["corpus"]) if request["corpus"] else None)
    tokenizer = load_tokenizer(checkpoint.directory)
    windows = make_windows(
        corpus, lambda text: encode(tokenizer, text), window=protocol.window, windows=protocol.windows
    )
    chats = [render_chat(checkpoint.directory, [{"role": "user", "content": text}]) for text in read_prompts()]
    prompts = [encode(tokenizer, chat)[-(protocol.context - protocol.greedy_tokens) :] for chat in chats]
    stop = checkpoint.config.eos_token_ids
    runtime = ReferenceRuntime()
    runtime.load(checkpoint.directory, protocol.threads, protocol.context)
    rounding = runtime.round_weights()
    with (directory / LOGITS).open("wb") as file:
        for window in windows:
            for chunk in runtime.logits(window.ids[:-1]):
                vocabulary = chunk.shape[1]
                file.write(chunk.astype("<f4", copy=False).tobytes())
    replies = [runtime.greedy(prompt, protocol.greedy_tokens, stop) for prompt in prompts]
    index = {
        "schema": REFERENCE_SCHEMA,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "tokens": sum(len(w.ids) for w in windows)},
        "vocabulary": vocabulary,
        "windows": [{"section": window.section, "ids": list(window.ids)} for window in windows],
        "greedy": [{"prompt": p, "reply": r} for p, r in zip(prompts, replies, strict=True)],
        "stop": list(stop),
        "latency_prompt": _latency_prompt([window.ids for window in windows], protocol.prefill_tokens),
        "rounding": dataclasses.asdict(rounding),
    }
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return {key: index[key] for key in ("corpus", "vocabulary", "rounding")} | {
        "scored_tokens": sum(len(window.ids) - 1 for window in windows)
    }


def read_reference(directory: Path) -> dict[str, Any]:
    """Return the index that `reference` wrote.

    Raises:
        ArtifactError: It is missing or of another version.
    """
    try:
        index = json.loads((directory / INDEX).read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{directory} holds no usable reference ({error}); make it again") from None
    if not isinstance(index, dict) or index.get("schema") != REFERENCE_SCHEMA:
        raise ArtifactError(f"{directory} holds a reference of another version than {REFERENCE_SCHEMA}; make it again")
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
    runtime = RUNTIMES[request["format"]]()
    runtime.load(Path(request["path"]), protocol.threads, protocol.context)
    compared, note = _compare_windows(runtime, directory, index)
    stop, count = index["stop"], protocol.greedy_tokens
    agreements = [
        agreement(entry["reply"], runtime.greedy(entry["prompt"], count, stop), count, stop)
        for entry in index["greedy"]
    ]
    runtime.end()
    return dataclasses.asdict(summarize(compared, agreements, count, note))


def latency(request: Json) -> Json:
    """Measure one process. Request: `format` (or `reference`), `path`, `prompt`, `protocol`."""
    runtime = RUNTIMES[request["format"]]()
    return dataclasses.asdict(measure(runtime, Path(request["path"]), request["prompt"], _protocol(request)))


def structure(request: Json) -> Json:
    """Check an artifact's structure. Request: `path`, `checkpoint`."""
    checkpoint = open_checkpoint(request["checkpoint"], offline=True)
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
    runtime = RUNTIMES[request["format"]]()
    runtime.load_tokenizer(Path(request["path"]))
    texts = [document.text for document in read_corpus().documents]
    results = compare_tokenizer(Path(request["checkpoint"]), runtime.tokenize, texts)
    runtime.end()
    return {"checks": [dataclasses.asdict(result) for result in results]}


def _conversations() -> list[list[dict[str, str]]]:
    system = {"role": "system", "content": "You are a terse assistant."}
    chats = [[{"role": "user", "content": text}] for text in read_prompts()]
    return [[system, *chats[0]], *chats]


def foundry_chat(request: Json) -> Json:
    """Load and chat in Foundry Local. Request: `path`, `protocol`."""
    count = _protocol(request).greedy_tokens
    import foundry_local_sdk  # noqa: F401 - its import is no part of the load time

    runtime = FoundryRuntime()
    begin = time.perf_counter()
    runtime.load(Path(request["path"]))
    load_seconds = time.perf_counter() - begin
    replies = [runtime.chat(messages, count) for messages in _conversations()]
    runtime.end()
    return {"load_seconds": load_seconds, "replies": [dataclasses.asdict(reply) for reply in replies]}


def genai_chat(request: Json) -> Json:
    """Give ORT GenAI's greedy replies to the same conversations. Request: `path`, `protocol`."""
    protocol = _protocol(request)
    runtime = GenaiRuntime()
    runtime.load(Path(request["path"]), protocol.threads, protocol.context)
    replies = [runtime.chat(messages, protocol.greedy_tokens) for messages in _conversations()]
    runtime.end()
    return {"replies": [{"text": text, "prompt_tokens": tokens} for text, tokens in replies]}


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "reference": reference,
        "parity": parity,
        "latency": latency,
        "structure": structure,
        "tokenizer": tokenizer,
        "foundry_chat": foundry_chat,
        "genai_chat": genai_chat,
    }
)

if __name__ == "__main__":
    serve(TASKS)
