"""What runs in a process of its own: each task takes a JSON request and returns a JSON result.

Started as `python -m edgekiln.validators.tasks` by `edgekiln.process.run_task`; paths in requests are absolute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from packaging.specifiers import SpecifierSet

from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError, CheckpointError, StepError, UnsupportedError
from edgekiln.families import FAMILIES
from edgekiln.model_config import read_json
from edgekiln.process import Json, Task, serve
from edgekiln.validators import RUNTIMES
from edgekiln.validators.base import CheckResult, MeasurementProtocol
from edgekiln.validators.compare import choose_text, compare_artifact, write_reference
from edgekiln.validators.conservation import QUICK_SAMPLE, audit
from edgekiln.validators.corpus import read_corpus, read_prompts
from edgekiln.validators.gguf_read import read_header
from edgekiln.validators.hf_tokenizer import chat_renderer, decode, encode, load_tokenizer
from edgekiln.validators.kinds import ArtifactKind, identify
from edgekiln.validators.latency import load_once, measure
from edgekiln.validators.layered import LayeredModel
from edgekiln.validators.runtime_fit import check_fit, requirements
from edgekiln.validators.runtime_foundry import FoundryRuntime
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.runtime_llama import LlamaRuntime
from edgekiln.validators.storage import weights_by_type
from edgekiln.validators.structure import check_structure
from edgekiln.validators.tokenizer import check_tokenizer

#: The runtime that loads each kind of artifact here.
_OWN_RUNTIMES: Final[Mapping[str, str]] = MappingProxyType(
    {"gguf": "llama.cpp", "onnx": "onnxruntime-genai", "foundry-local": "foundry-local"}
)
#: What tokenizes and detokenizes in each.
_TOKENIZERS: Final[Mapping[str, type[LlamaRuntime | GenaiRuntime]]] = MappingProxyType(
    {"gguf": LlamaRuntime, "onnx": GenaiRuntime, "foundry-local": GenaiRuntime}
)


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


def _plain(results: Sequence[CheckResult]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(result) for result in results]


def reference(request: Json) -> Json:
    """Run the reference on one corpus and leave its distributions, replies and token ids in a directory.

    Request: `checkpoint`, `corpus` (path or null), `directory`, `protocol`, `memory_bytes`.

    Raises:
        StepError: Weights do not fit fp16; logits of infinite weights would blame every artifact.
    """
    protocol, directory = _protocol(request), Path(request["directory"])
    checkpoint = open_checkpoint(request["checkpoint"], offline=True, with_text=False)
    tokenizer, render = load_tokenizer(checkpoint.directory), chat_renderer(checkpoint.directory)
    text = choose_text(
        read_corpus(Path(request["corpus"]) if request["corpus"] else None),
        read_prompts(),
        protocol,
        encode=lambda part: encode(tokenizer, part),
        render=lambda prompt: render([{"role": "user", "content": prompt}]),
        stop=checkpoint.config.eos_token_ids,
        longest=checkpoint.config.max_position_embeddings,
    )
    with LayeredModel(checkpoint, threads=protocol.threads, memory_bytes=request["memory_bytes"]) as model:
        rounding = model.rounding
        if rounding.overflowed:
            raise StepError(
                f"{rounding.overflowed} weights of the checkpoint lie beyond ±65504, so the model does not fit fp16, "
                "and there is no reference to compare artifacts with; give a checkpoint whose weights were scaled "
                "for fp16"
            )
        write_reference(model, text, directory, protocol, dataclasses.asdict(rounding))
    return {}


def parity(request: Json) -> Json:
    """Compare an artifact with a reference. Request: `format`, `path`, `reference`, `checkpoint`, `protocol`."""
    tokenizer = load_tokenizer(Path(request["checkpoint"]))
    with _ended(RUNTIMES[request["format"]]()) as runtime:
        found = compare_artifact(
            runtime,
            Path(request["path"]),
            Path(request["reference"]),
            _protocol(request),
            lambda ids: decode(tokenizer, ids),
        )
    return {"parity": dataclasses.asdict(found.parity), "checks": _plain(found.checks)}


def latency(request: Json) -> Json:
    """Measure one process. Request: `format` (or `reference`), `path`, `prompt`, `protocol`."""
    runtime = RUNTIMES[request["format"]]()
    return dataclasses.asdict(measure(runtime, Path(request["path"]), request["prompt"], _protocol(request)))


def load(request: Json) -> Json:
    """Time one load and nothing else. Request: `format`, `path`, `protocol`."""
    runtime = RUNTIMES[request["format"]]()
    return {"seconds": load_once(runtime, Path(request["path"]), _protocol(request))}


def _fit(kind: ArtifactKind, request: Json) -> CheckResult:
    runtime, versions = request["runtime"], request["versions"]
    if runtime is None:
        return check_fit(kind, _OWN_RUNTIMES[kind.format], None)
    return check_fit(kind, runtime, SpecifierSet(versions, prereleases=True), provider=request["provider"])


def _requirements(kind: ArtifactKind) -> list[dict[str, Any]]:
    try:
        return [dataclasses.asdict(entry) for entry in requirements(kind)]
    except (ArtifactError, CheckpointError):
        return []  # the checks of its structure say why it cannot be read


def _require_known(kind: ArtifactKind) -> None:
    """Refuse an artifact of a family that nothing here could judge; what cannot be read is for the checks to say.

    Raises:
        UnsupportedError: Names its architecture and those that are known.
    """
    try:
        if kind.format == "gguf":
            found, known = read_header(kind.path).metadata.get("general.architecture"), "gguf_architecture"
        else:
            model = read_json(kind.path / "genai_config.json").get("model")
            found, known = model.get("type") if isinstance(model, dict) else None, "genai_type"
    except (ArtifactError, CheckpointError, OSError):
        return
    names = sorted(getattr(family, known) for family in FAMILIES.values())
    if isinstance(found, str) and found not in names:
        raise UnsupportedError(
            f"{kind.root.name} is of the architecture {found[:60]!r}, which Edgekiln cannot judge; it knows "
            f"{', '.join(names)}"
        )


def structure(request: Json) -> Json:
    """Check all of an artifact that can be told without running it.

    Request: `path`, `checkpoint`, `precision`, `runtime`, `versions`, `provider`, `sampled`; see `Expected`.

    Raises:
        UnsupportedError: It is of a family that is not known.
    """
    checkpoint = open_checkpoint(request["checkpoint"], offline=True, with_text=False)
    kind = identify(Path(request["path"]))
    _require_known(kind)
    found = check_structure(
        kind,
        checkpoint.config,
        architecture=checkpoint.family.gguf_architecture,
        genai_type=checkpoint.family.genai_type,
        reread=not request["sampled"],
    )
    sound = all(entry.outcome != "fail" for entry in found.checks)
    weights = audit(kind, checkpoint, asked=request["precision"], sample=QUICK_SAMPLE if request["sampled"] else None)
    return {
        "checks": _plain([*found.checks, *weights.checks, _fit(kind, request)]),
        "sound": sound,
        "weights_bytes": found.weights_bytes,
        "weights_by_type": weights_by_type(kind) if sound else {},
        "conservation": weights.conservation and dataclasses.asdict(weights.conservation),
        "precision": weights.precision and dataclasses.asdict(weights.precision),
        "requirements": _requirements(kind),
    }


def tokenizer(request: Json) -> Json:
    """Compare tokenizers on the built-in corpus and samples. Request: `format`, `path`, `checkpoint`."""
    texts = [document.text for document in read_corpus().documents]
    with _ended(_TOKENIZERS[request["format"]]()) as runtime:
        runtime.load_tokenizer(Path(request["path"]))
        return {"checks": _plain(check_tokenizer(runtime, Path(request["checkpoint"]), texts))}


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
