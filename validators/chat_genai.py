"""A chat in ONNX Runtime GenAI, by its own template engine and with the search settings of genai_config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.validators.chat_base import (
    CONTEXT_FULL,
    END_OF_TURN,
    INTERRUPTED,
    MAX_TOKENS,
    ChatOptions,
    Ending,
    Message,
    Reply,
    Stop,
    plain_prompt,
)
from edgekiln.validators.chat_template import directory_template
from edgekiln.validators.runtime_genai import GenaiRuntime, refusals


class GenaiChat(GenaiRuntime):
    """Chats with an ORT GenAI directory."""

    def __init__(self) -> None:
        super().__init__()
        self._options = ChatOptions(1)
        self._has_template = True

    def prepare(self, path: Path, options: ChatOptions) -> None:
        """See `ChatRuntime`."""
        self._options = options
        self._has_template = directory_template(path) is not None
        if options.thinking is not None:
            with refusals("set the template's variables"):
                self._tokenizer.update_options(chat_template_kwargs=options.template_json())

    def _prompt(self, messages: Sequence[Message]) -> Any:
        if not self._has_template:
            text = plain_prompt(messages)
        else:
            with refusals("render the chat template"):
                text = self._tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)
        with refusals("tokenize"):
            return np.asarray(self._tokenizer.encode(text), dtype=np.int32)

    def _new_generator(self, longest: int) -> Any:
        import onnxruntime_genai as og

        chosen: dict[str, float | bool] = {"max_length": longest, "do_sample": False}
        if self._options.temperature > 0:
            chosen = {
                "max_length": longest,
                "do_sample": True,
                "temperature": self._options.temperature,
                "random_seed": self._options.seed,
            }
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(**chosen)
        return og.Generator(self._model, parameters)

    def reply(self, messages: Sequence[Message], reply: Reply) -> Ending:
        """See `ChatRuntime`."""
        ids = self._prompt(messages)
        if len(ids) >= self._context_tokens:
            return Ending(CONTEXT_FULL, len(ids))
        longest = min(self._context_tokens, len(ids) + self._options.max_tokens)
        with refusals("chat"):
            generator = self._new_generator(longest)
            generator.append_tokens(ids)
            stop = self._generate(generator, reply)
        if stop is None:
            stop = MAX_TOKENS if longest == len(ids) + self._options.max_tokens else CONTEXT_FULL
        return Ending(stop, len(ids))

    def _generate(self, generator: Any, reply: Reply) -> Stop | None:
        """Return why it stopped, or None when the generator reached its longest."""
        ends = {int(token) for token in self._tokenizer.eos_token_ids}
        stream = self._tokenizer.create_stream()
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if generator.is_done() and token in ends:
                return END_OF_TURN
            if not reply.token(stream.decode(token)):
                return INTERRUPTED
        return None
