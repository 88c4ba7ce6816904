"""llama.cpp, through the low-level interface of llama-cpp-python."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.validators.base import LOGIT_CHUNK

_UBATCH = 512  # llama-bench's own default
_PIECE_BYTES = 4096  # longer than any token's text


class LlamaRuntime:
    """Runs a GGUF file on the CPU. llama.cpp's chatter goes to standard error."""

    libraries: ClassVar[tuple[str, ...]] = ("llama_cpp",)

    def __init__(self) -> None:
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._sampler: Any = None
        self._vocab: Any = None
        self._vocab_size = 0

    def _load_model(self, path: Path, *, vocab_only: bool) -> None:
        import llama_cpp

        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.vocab_only = vocab_only
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise ArtifactError(f"llama.cpp cannot load {path}; the log has its reason")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:
        """Load a GGUF file; see `Runtime.load`."""
        import llama_cpp

        self._load_model(path, vocab_only=False)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context_tokens
        parameters.n_batch = parameters.n_ubatch = min(_UBATCH, context_tokens)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.n_seq_max, parameters.kv_unified = sequences, sequences > 1  # else each had a part of the context
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ArtifactError(f"llama.cpp cannot run {path} with a context of {context_tokens}; the log has why")
        self._batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def load_tokenizer(self, path: Path) -> None:
        """Load the vocabulary alone."""
        self._load_model(path, vocab_only=True)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return llama.cpp's own ids of `text`."""
        import llama_cpp

        data = text.encode()
        capacity = len(data) + 8  # a token has at least one byte
        buffer = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, special)
        if count < 0:
            raise ArtifactError(f"llama.cpp's tokenizer wants {-count} tokens for {len(data)} bytes of text")
        return list(buffer[:count])

    def detokenize_stream(self, ids: Sequence[int]) -> list[str | bytes]:
        """Return what each token adds to a reply, in bytes; control tokens add none.

        Raises:
            ArtifactError: A token lies beyond the vocabulary, where llama.cpp would abort, or has an endless text.
        """
        import ctypes

        import llama_cpp

        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        pieces: list[str | bytes] = []
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise ArtifactError(f"the file has no token {token}: its vocabulary has {self._vocab_size}")
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, False)
            if length < 0:
                raise ArtifactError(f"token {token} has a text of {-length} bytes")
            pieces.append(buffer.raw[:length])
        return pieces

    def end_tokens(self) -> frozenset[int]:
        """Return the tokens with which llama.cpp ends a generation."""
        import llama_cpp

        return frozenset(i for i in range(self._vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, i))

    def vocabulary_size(self) -> int:
        """Return the number of tokens in the file's vocabulary."""
        return int(self._vocab_size)

    def _clear(self) -> None:
        import llama_cpp

        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode_batch(self, ids: Sequence[int], position: int, *, all_logits: bool) -> None:
        """Run `ids` at `position`, asking for the logits of all of them or of the last."""
        self._batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            self._batch.token[index] = token
            self._batch.pos[index] = position + index
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
            self._batch.logits[index] = all_logits or index == len(ids) - 1
        self._run_batch(position)

    def _run_batch(self, position: int) -> None:
        import llama_cpp

        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise ArtifactError(f"llama_decode returned {status} at position {position}; the log has its reason")

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [positions, vocabulary]; see `Runtime.logits`."""
        import llama_cpp

        self._clear()
        for start in range(0, len(ids), LOGIT_CHUNK):
            part = ids[start : start + LOGIT_CHUNK]
            self._decode_batch(part, start, all_logits=True)
            pointer = llama_cpp.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(pointer, shape=(len(part), self._vocab_size))

    def step_logits(self, prefix: Sequence[int], ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [1, vocabulary] after each of `ids`; see `Runtime.step_logits`."""
        import llama_cpp

        self.prefill(prefix)
        for position, token in enumerate(ids, start=len(prefix)):
            self._decode_batch([token], position, all_logits=True)
            yield np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(1, self._vocab_size))

    def declared_context(self) -> int:
        """Return the context length of the file's metadata."""
        import llama_cpp

        return int(llama_cpp.llama_model_n_ctx_train(self._model))

    def _sample(self) -> int:
        import llama_cpp

        return int(llama_cpp.llama_sampler_sample(self._sampler, self._context, -1))

    def prefill(self, ids: Sequence[int]) -> None:
        """Process a prompt in batches of n_ubatch, with the logits of the last token."""
        import llama_cpp

        self._clear()
        step = llama_cpp.llama_n_ubatch(self._context)
        for start in range(0, len(ids), step):
            self._decode_batch(ids[start : start + step], start, all_logits=False)
        llama_cpp.llama_synchronize(self._context)

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        """Decode greedily with llama.cpp's own sampler."""
        self.prefill(ids)
        tokens = [self._sample()]
        while len(tokens) < count and tokens[-1] not in stop:
            self._decode_batch(tokens[-1:], len(ids) + len(tokens) - 1, all_logits=False)
            tokens.append(self._sample())
        return tokens

    def decode(self, count: int) -> None:
        """Generate `count` tokens from an empty cache, each fed back."""
        import llama_cpp

        self._clear()
        token = 0
        for position in range(count):
            self._decode_batch([token], position, all_logits=False)
            token = self._sample()
        llama_cpp.llama_synchronize(self._context)

    def decode_after(self, ids: Sequence[int], count: int) -> float:
        """Process a prompt, then generate; see `Runtime.decode_after`."""
        import llama_cpp

        self.prefill(ids)
        begin, token = time.perf_counter(), 0
        for position in range(len(ids), len(ids) + count):
            self._decode_batch([token], position, all_logits=False)
            token = self._sample()
        llama_cpp.llama_synchronize(self._context)
        return time.perf_counter() - begin

    def decode_together(self, sequences: int, count: int) -> None:
        """Generate in several sequences, a batch with one token of each per step, as llama-batched-bench does."""
        import llama_cpp

        self._clear()
        tokens = [0] * sequences
        for position in range(count):
            self._batch.n_tokens = sequences
            for index, token in enumerate(tokens):
                self._batch.token[index], self._batch.pos[index] = token, position
                self._batch.n_seq_id[index], self._batch.seq_id[index][0] = 1, index
                self._batch.logits[index] = True
            self._run_batch(position)
            tokens = [int(llama_cpp.llama_sampler_sample(self._sampler, self._context, i)) for i in range(sequences)]
        llama_cpp.llama_synchronize(self._context)

    def first_token(self, ids: Sequence[int]) -> int:
        """Return the first token that llama.cpp's sampler picks after a prompt."""
        self.prefill(ids)
        return self._sample()

    def end(self) -> None:
        """Free model, context and batch."""
        import llama_cpp

        if self._sampler is not None:
            llama_cpp.llama_sampler_free(self._sampler)
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
        self._model = self._context = self._batch = self._sampler = self._vocab = None
