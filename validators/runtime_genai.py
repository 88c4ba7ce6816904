"""ONNX Runtime GenAI."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.model_config import read_json
from edgekiln.validators.base import LOGIT_CHUNK


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn what ORT GenAI raises into an ArtifactError."""
    try:
        yield
    except RuntimeError as error:
        raise ArtifactError(f"ORT GenAI cannot {what}: {error}") from None


class GenaiRuntime:
    """Runs an ORT GenAI directory on the CPU.

    Threads are set through an overlay of genai_config.json in memory: the artifact is not touched.
    """

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime_genai",)

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._context_tokens = 0
        self._directory = Path()

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:  # noqa: ARG002 - a generator is told
        """Load a directory; see `Runtime.load`."""
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        options = {"intra_op_num_threads": threads}
        overlay = {"model": {"decoder": {"session_options": options}}}
        with refusals(f"load {path}"):
            config = og.Config(str(path))
            config.clear_providers()
            config.overlay(json.dumps(overlay))
            self._model = og.Model(config)
            self._tokenizer = og.Tokenizer(self._model)
        self._context_tokens, self._directory = context_tokens, path

    def load_tokenizer(self, path: Path) -> None:
        """Load the tokenizer alone; the graph stays where it is."""
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        with refusals(f"load the tokenizer of {path}"):
            self._tokenizer = og.Tokenizer(str(path))
        self._directory = path

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return ORT GenAI's own ids of `text`; it always recognises special tokens."""
        if not special:
            raise ArtifactError("ORT GenAI's tokenizer cannot read special tokens as plain text")
        with refusals("tokenize"):
            return [int(token) for token in self._tokenizer.encode(text)]

    def detokenize_stream(self, ids: Sequence[int]) -> list[str | bytes]:
        """Return what each token adds to a reply; ORT GenAI holds back a character until its bytes are complete."""
        with refusals("detokenize"):
            stream = self._tokenizer.create_stream()
            return [stream.decode(int(token)) for token in ids]

    def end_tokens(self) -> frozenset[int]:
        """Return the tokens with which ORT GenAI ends a generation."""
        return frozenset(int(token) for token in self._tokenizer.eos_token_ids)

    def vocabulary_size(self) -> int:
        """Return the size of the vocabulary that genai_config.json declares.

        Raises:
            ArtifactError: It declares none.
        """
        try:
            model = read_json(self._directory / "genai_config.json").get("model")
        except CheckpointError as error:
            raise ArtifactError(str(error)) from None
        size = model.get("vocab_size") if isinstance(model, dict) else None
        if type(size) is not int:
            raise ArtifactError(f"vocab_size in genai_config.json is {size!r}, but must be an integer")
        return size

    def _generator(self, **options: object) -> Any:
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(self._model)
        chosen = {"max_length": self._context_tokens, "min_length": 0, "do_sample": False, "repetition_penalty": 1.0}
        parameters.set_search_options(**{**chosen, **options})
        return og.Generator(self._model, parameters)

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [positions, vocabulary]; see `Runtime.logits`.

        The graph's output has a row for every appended token; `get_logits` would give the last one only.
        """
        with refusals("run the graph"):
            generator = self._generator()
        for start in range(0, len(ids), LOGIT_CHUNK):
            part = np.asarray(ids[start : start + LOGIT_CHUNK], dtype=np.int32)
            with refusals("run the graph"):
                generator.append_tokens(part)
                output = generator.get_output("logits")
            if output.shape[:2] != (1, len(part)):
                raise ArtifactError(
                    f"the graph gives logits of shape {list(output.shape)} for {len(part)} tokens; parity needs all "
                    "positions: export it without pruning the logits"
                )
            yield output[0].astype(np.float32, copy=False)

    def step_logits(self, prefix: Sequence[int], ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [1, vocabulary] after each of `ids`; see `Runtime.step_logits`."""
        with refusals("run the graph"):
            generator = self._generator()
            generator.append_tokens(np.asarray(prefix, dtype=np.int32))
        for token in ids:
            with refusals("run the graph token by token"):
                generator.append_tokens(np.asarray([token], dtype=np.int32))
                output = generator.get_output("logits")
            yield output[0, -1:].astype(np.float32, copy=False)

    def declared_context(self) -> int:
        """Return the context length of genai_config.json.

        Raises:
            ArtifactError: It has none.
        """
        try:
            model = read_json(self._directory / "genai_config.json").get("model")
        except CheckpointError as error:
            raise ArtifactError(str(error)) from None
        length = model.get("context_length") if isinstance(model, dict) else None
        if type(length) is not int or length < 1:
            raise ArtifactError(f"genai_config.json has a model.context_length of {length!r}; give a number of tokens")
        return length

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        """Decode greedily through `generate_next_token`."""
        tokens: list[int] = []
        with refusals("decode"):
            generator = self._generator()
            generator.append_tokens(np.asarray(ids, dtype=np.int32))
            while len(tokens) < count and not generator.is_done():
                generator.generate_next_token()
                tokens.append(int(generator.get_next_tokens()[0]))
                if tokens[-1] in stop:
                    break
        return tokens

    def prefill(self, ids: Sequence[int]) -> None:
        """Process a prompt; returns when the logits of its last token are there."""
        with refusals("process a prompt"):
            generator = self._generator()
            generator.append_tokens(np.asarray(ids, dtype=np.int32))
            generator.get_logits()

    def decode(self, count: int) -> None:
        """Generate `count` tokens after one; the end-of-turn token is held back by a minimum length."""
        with refusals("decode"):
            generator = self._generator(min_length=count + 1)
            generator.append_tokens(np.zeros(1, dtype=np.int32))
            for _ in range(count):
                generator.generate_next_token()

    def decode_after(self, ids: Sequence[int], count: int) -> float:
        """Process a prompt, then generate; see `Runtime.decode_after`."""
        with refusals("decode"):
            generator = self._generator(min_length=len(ids) + count)
            generator.append_tokens(np.asarray(ids, dtype=np.int32))
            generator.generate_next_token()  # its logits are the prompt's
            begin = time.perf_counter()
            for _ in range(count):
                generator.generate_next_token()
            return time.perf_counter() - begin

    def decode_together(self, sequences: int, count: int) -> None:
        """Generate in several sequences; see `Runtime.decode_together`."""
        with refusals("decode a batch"):
            generator = self._generator(batch_size=sequences, min_length=count + 1)
            generator.append_tokens(np.zeros((sequences, 1), dtype=np.int32))
            for _ in range(count):
                generator.generate_next_token()

    def first_token(self, ids: Sequence[int]) -> int:
        """Return the first token of ORT GenAI's generate call."""
        return self.greedy(ids, 1, ())[0]

    def chat(self, messages: Sequence[dict[str, str]], count: int) -> tuple[str, int]:
        """Return (greedy reply, tokens of the prompt), with template, penalties and end of turn of the directory."""
        import onnxruntime_genai as og

        with refusals("chat"):
            prompt = self._tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)
            ids = self._tokenizer.encode(prompt)
            parameters = og.GeneratorParams(self._model)
            parameters.set_search_options(max_length=len(ids) + count, do_sample=False)
            generator = og.Generator(self._model, parameters)
            generator.append_tokens(ids)
            stream, reply = self._tokenizer.create_stream(), ""
            while not generator.is_done():
                generator.generate_next_token()
                if not generator.is_done() or len(generator.get_sequence(0)) == len(ids) + count:
                    reply += stream.decode(int(generator.get_next_tokens()[0]))
        return reply, len(ids)

    def end(self) -> None:
        """Free model and tokenizer."""
        self._tokenizer = self._model = None
