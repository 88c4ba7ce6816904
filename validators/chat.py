"""The task behind `edgekiln chat`: it loads an artifact once and replies to one prompt after another.

Started as `python -m edgekiln.validators.chat` by `edgekiln.stream.open_stream`. It sends `loaded` once; each message
with a `prompt` it answers with any number of `piece`s and one `reply`. The conversation is kept here; a message with
`forget` begins a new one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.model_config import read_json
from edgekiln.process import Json, Task, serve
from edgekiln.stream import Channel, open_channel
from edgekiln.validators.chat_base import ChatOptions, ChatRuntime, Message, Reply
from edgekiln.validators.chat_foundry import FoundryChat
from edgekiln.validators.chat_genai import GenaiChat
from edgekiln.validators.chat_llama import LlamaChat
from edgekiln.validators.chat_template import ChatTemplate, directory_template, gguf_template
from edgekiln.validators.gguf_read import read_header

#: The runtime that chats with each kind of artifact.
CHATS: Final[Mapping[str, type[ChatRuntime]]] = MappingProxyType(
    {"gguf": LlamaChat, "onnx": GenaiChat, "foundry-local": FoundryChat}
)


def _described(format_name: str, path: Path) -> tuple[ChatTemplate | None, int | None]:
    """Return the chat template of an artifact and the longest context that it says it has.

    Raises:
        ArtifactError: Its metadata cannot be read.
    """
    if format_name == "gguf":
        metadata = read_header(path).metadata
        length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        return gguf_template(metadata), length if type(length) is int and length > 0 else None
    try:
        model = read_json(path / "genai_config.json").get("model")
        template = directory_template(path)
    except CheckpointError as error:
        raise ArtifactError(str(error)) from None
    length = model.get("context_length") if isinstance(model, dict) else None
    return template, length if type(length) is int and length > 0 else None


def _answer(runtime: ChatRuntime, messages: list[Message], channel: Channel) -> str:
    """Stream one reply and return it."""
    pieces: list[str] = []

    def emit(text: str, reasoning: bool) -> None:
        channel.send({"event": "piece", "text": text, "reasoning": reasoning})
        if not reasoning:
            pieces.append(text)

    reply = Reply(emit, channel.interrupted)
    ending = runtime.reply(messages, reply)
    first = None if reply.first is None else reply.first - reply.begin
    rest = (reply.last or 0.0) - (reply.first or 0.0)
    channel.send(
        {
            "event": "reply",
            "stop": ending.stop,
            "prompt_tokens": ending.prompt_tokens,
            "tokens": reply.tokens,
            "first_token_seconds": first,
            "tokens_per_second": (reply.tokens - 1) / rest if reply.tokens > 1 and rest > 0 else None,
        }
    )
    return "".join(pieces)


def _converse(runtime: ChatRuntime, system: str | None, channel: Channel) -> None:
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while (order := channel.receive()) is not None:
        if order.get("forget"):
            messages = list(opening)
        turn: Message = {"role": "user", "content": order["prompt"]}
        reply = _answer(runtime, [*messages, turn], channel)
        if reply:  # a turn without a reply would be none
            messages += [turn, {"role": "assistant", "content": reply}]


def chat(request: Json) -> Json:
    """Chat. Request: `format`, `path`, `threads`, `context`, `system` (or null), `options` (of `ChatOptions`)."""
    channel = open_channel()
    path, format_name = Path(request["path"]), request["format"]
    template, longest = _described(format_name, path)
    context = min(request["context"], longest or request["context"])
    runtime = CHATS[format_name]()
    try:
        begin = time.perf_counter()
        runtime.load(path, request["threads"], context)
        runtime.prepare(path, ChatOptions(**request["options"]))
        channel.send(
            {
                "event": "loaded",
                "load_seconds": time.perf_counter() - begin,
                "template": template and template.where,
                "thinking": template.thinking if template else "none",
                "context": context,
            }
        )
        _converse(runtime, request["system"], channel)
    finally:
        runtime.end()
    return {}


TASKS: Final[Mapping[str, Task]] = MappingProxyType({"chat": chat})

if __name__ == "__main__":
    serve(TASKS)
