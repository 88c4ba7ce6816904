"""Hugging Face Transformers as a runtime: the checkpoint itself, in float32, as a baseline for latency."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.validators.base import LOGIT_CHUNK

#: PyTorch's own.
_ATTENTION: Final = "sdpa"


class ReferenceRuntime:
    """Runs a checkpoint as an artifact is run, as a baseline for latency."""

    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers.models.auto.modeling_auto",
        "transformers.generation",
    )

    def __init__(self) -> None:
        self._model: Any = None
        self._directory = Path()
        self._tokenizer: Any = None

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:  # noqa: ARG002 - of any
        """Load a checkpoint directory; no remote code, no pickle, no network."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(threads)
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            # A config.json can name a kernel on a hub as its `_attn_implementation`, which beats the argument below.
            config._attn_implementation = _ATTENTION
            self._model = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                attn_implementation=_ATTENTION,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ArtifactError(f"Transformers cannot load {path}: {error}") from None
        self._model.eval()
        self._directory = path
        limit = self._model.config.max_position_embeddings
        if context_tokens > limit:
            raise ArtifactError(f"{path} has a context of {limit} tokens, but the measurement needs {context_tokens}")

    def load_tokenizer(self, path: Path) -> None:
        """Remember where tokenizer.json is; it is read when it is first used."""
        self._directory = path

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of the checkpoint's tokenizer.json."""
        from edgekiln.validators.hf_tokenizer import encode, load_tokenizer

        if not special:
            raise ArtifactError("the reference tokenizer is used with special tokens only")
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._directory)
        return encode(self._tokenizer, text)

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield float32 [positions, vocabulary]; the head is applied chunk by chunk."""
        import torch

        with torch.inference_mode():
            hidden = self._model.model(torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0]
            for part in hidden.split(LOGIT_CHUNK):
                yield self._model.lm_head(part).numpy()

    def _generate(self, ids: Sequence[int], count: int, stop: Collection[int], least: int = 0) -> list[int]:
        import torch
        from transformers import GenerationConfig

        # Its own configuration would bring sampling, penalties and the checkpoint's end-of-turn tokens.
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=least,
            eos_token_id=sorted(stop) or None,
            pad_token_id=0,
        )
        prompt = torch.tensor([list(ids)])
        with torch.inference_mode():
            output = self._model.generate(prompt, attention_mask=torch.ones_like(prompt))
        return [int(token) for token in output[0, len(ids) :]]

    def step_logits(self, prefix: Sequence[int], ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Nobody compares the reference with itself; see `Runtime.step_logits`."""
        raise ArtifactError(f"the reference is not run token by token ({len(ids)} after {len(prefix)})")

    def declared_context(self) -> int:
        """Return the context length of config.json."""
        return int(self._model.config.max_position_embeddings)

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        """Decode greedily through Transformers' generate."""
        return self._generate(ids, count, stop)

    def prefill(self, ids: Sequence[int]) -> None:
        """Process a prompt, with a cache and the logits of its last token."""
        import torch

        with torch.inference_mode():
            self._model(torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)

    def decode(self, count: int) -> None:
        """Generate `count` tokens after one."""
        self._generate([0], count, ())

    def decode_after(self, ids: Sequence[int], count: int) -> float:
        """Nobody asks a reference for it; see `Runtime.decode_after`."""
        raise ArtifactError(f"the reference is not timed after {len(ids)} tokens; ask for no depths ({count} tokens)")

    def decode_together(self, sequences: int, count: int) -> None:
        """Nobody asks a reference for it; see `Runtime.decode_together`."""
        raise ArtifactError(f"the reference is not timed in batches of {sequences}; ask for none ({count} tokens)")

    def first_token(self, ids: Sequence[int]) -> int:
        """Return the first token of Transformers' generate."""
        return self._generate(ids, 1, ())[0]

    def end(self) -> None:
        """Free the model."""
        self._model = None
