"""A chat in llama.cpp, by the template in the GGUF file.

libllama's own `llama_chat_apply_template` knows a list of templates by their looks and renders none, so the template is
rendered by llama-cpp-python's Jinja2 formatter: in a sandbox, and in this process, which has limits.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import ArtifactError
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
from edgekiln.validators.chat_template import gguf_template
from edgekiln.validators.gguf_read import read_header
from edgekiln.validators.runtime_llama import LlamaRuntime

#: Longer than any token's text.
_PIECE_BYTES = 4096


class LlamaChat(LlamaRuntime):
    """Chats with a GGUF file."""

    def __init__(self) -> None:
        super().__init__()
        self._formatter: Any = None
        self._options = ChatOptions(1)
        self._context_tokens = 0

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:
        """See `ChatRuntime`."""
        super().load(path, threads, context_tokens, sequences)
        self._context_tokens = context_tokens

    def prepare(self, path: Path, options: ChatOptions) -> None:
        """See `ChatRuntime`."""
        import jinja2
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._options = options
        if options.temperature > 0:
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_temp(options.temperature))
            llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_dist(options.seed))
        template = gguf_template(read_header(path).metadata)
        if template is None:
            return
        ends = {
            "eos_token": self._special(llama_cpp.llama_vocab_eos(self._vocab)),
            "bos_token": self._special(llama_cpp.llama_vocab_bos(self._vocab)),
        }
        try:
            self._formatter = Jinja2ChatFormatter(template.text, **ends)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"the chat template of {path} is broken: {error}") from None

    def _piece(self, token: int, *, special: bool) -> bytes:
        import ctypes

        import llama_cpp

        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        if length < 0:
            raise ArtifactError(f"token {token} has a text of {-length} bytes")
        return buffer.raw[:length]

    def _special(self, token: int) -> str:
        """Return the text of a special token, or nothing where the vocabulary has none."""
        return self._piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    def _render(self, messages: Sequence[Message]) -> str:
        import jinja2

        try:
            return str(self._formatter(messages=list(messages), **self._options.template_variables()).prompt)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"the chat template cannot be rendered: {error}") from None
        except RecursionError:
            raise ArtifactError("the chat template cannot be rendered: it recurses without an end") from None

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        import llama_cpp

        if self._formatter is not None:
            return self.tokenize(self._render(messages))
        begin = [llama_cpp.llama_vocab_bos(self._vocab)] if llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
        return [*begin, *self.tokenize(plain_prompt(messages))]

    def reply(self, messages: Sequence[Message], reply: Reply) -> Ending:
        """See `ChatRuntime`."""
        ids = self._prompt(messages)
        if not ids:
            raise ArtifactError("the chat template renders to nothing; there is nothing to reply to")
        if len(ids) >= self._context_tokens:
            return Ending(CONTEXT_FULL, len(ids))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        stop = self._generate(ids, decoder, reply)
        rest = decoder.decode(b"", final=True)
        if rest and stop == END_OF_TURN:  # cut off by a limit, half a character is nobody's fault
            reply.emit(rest, False)
        return Ending(stop, len(ids))

    def _generate(self, ids: list[int], decoder: codecs.IncrementalDecoder, reply: Reply) -> Stop:
        import llama_cpp

        self.prefill(ids)
        for position in range(len(ids), len(ids) + self._options.max_tokens):
            token = self._sample()
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return END_OF_TURN
            if not reply.token(decoder.decode(self._piece(token, special=False))):
                return INTERRUPTED
            if position >= self._context_tokens:
                return CONTEXT_FULL
            if position + 1 < len(ids) + self._options.max_tokens:
                self._decode_batch([token], position, all_logits=False)
        return MAX_TOKENS
