"""What every validator shares: the runtime interface, the protocol of a measurement, and the values it yields."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import UsageError

Outcome: TypeAlias = Literal["pass", "fail", "not_measured", "known_divergence"]
#: An `error` fails the check that found it; a `warning` and a `note` fail nothing.
Severity: TypeAlias = Literal["error", "warning", "note"]

_LEAST: Final = MappingProxyType(
    {
        "window": 2,
        "windows": 1,
        "greedy_tokens": 1,
        "warmups": 0,
        "repeats": 1,
        "processes": 1,
        "threads": 1,
        "decode_positions": 0,
        "long_context": 0,
    }
)
#: Positions whose logits are held at once: 128 rows of 151,936 float32 are 78 MB. MatMulBnb4 dequantizes all weights
#: for every chunk, so fewer chunks make NF4 bearable.
LOGIT_CHUNK: Final = 128


#: The room that a context must leave for a greedy prompt: a short question in a chat template.
LEAST_PROMPT_TOKENS: Final = 64


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        id: Stable id, e.g. `conservation/swapped`; what reports of two runs are matched by, with `subject`.
        severity: How much it weighs.
        subject: The tensor, file, key or input that it is about.
        detail: One sentence: what was found, and what was expected.
        fix: What to do about it, in the imperative.
    """

    id: str
    severity: Severity
    subject: str
    detail: str
    fix: str


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one structural check.

    Attributes:
        check: Stable id, e.g. `gguf/metadata`.
        outcome: `known_divergence` is a difference that the runtime is known for; it fails nothing.
        detail: One sentence: what was compared, or the first things found wrong.
        findings: Everything found, each with its fix. A failed check has at least one error.
    """

    check: str
    outcome: Outcome
    detail: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class MeasurementProtocol:
    """How artifacts are compared and timed; the report carries it.

    Attributes:
        window: Tokens per window of the corpus.
        windows: Windows compared, at most.
        greedy_tokens: Tokens decoded greedily per prompt.
        prefill_tokens: Prompt lengths of the prefill speed; the first is that of the headline figure and of the time
            to first token.
        decode_tokens: Numbers of generated tokens for the decode speed; the first is that of the headline figure.
        depths: Tokens in the cache before decode speed is measured again, with the least of `decode_tokens`.
        batches: Numbers of sequences that are decoded side by side, likewise.
        warmups: Warm-up runs in each process.
        repeats: Measured runs in each process, at least.
        processes: Fresh processes per artifact, at least.
        threads: Threads of the runtime.
        context: Context length the runtime is loaded with, in tokens; a prompt and its reply must fit.
        decode_positions: Positions of the windows that are compared token by token as well, through the cache; 0 for
            none.
        long_context: Tokens of one long window whose end is compared, at most what the checkpoint's context holds;
            0 for none. The runtime is loaded once more for it.
    """

    window: int = 256
    windows: int = 8
    greedy_tokens: int = 32
    prefill_tokens: tuple[int, ...] = (128,)
    decode_tokens: tuple[int, ...] = (64,)
    depths: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    warmups: int = 1
    repeats: int = 1
    processes: int = 3
    threads: int = 2
    context: int = 512
    decode_positions: int = 48
    long_context: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"{name} of the measurement is {value!r}, but must be an integer of at least {least}")
        for name in ("prefill_tokens", "decode_tokens"):
            lengths = getattr(self, name)
            if type(lengths) is not tuple or not lengths or any(type(n) is not int or n < 1 for n in lengths):
                raise UsageError(f"{name} of the measurement is {lengths!r}, but must be one or more positive integers")
        for name in ("depths", "batches"):
            if type(getattr(self, name)) is not tuple or any(type(n) is not int or n < 1 for n in getattr(self, name)):
                raise UsageError(f"{name} of the measurement is {getattr(self, name)!r}, but must be positive integers")
        needed = max(
            self.window,
            max(self.prefill_tokens) + 1,
            max(self.decode_tokens) + 1,
            max(self.depths, default=0) + min(self.decode_tokens) + 1,
            max(self.batches, default=0) * (min(self.decode_tokens) + 1),
            self.greedy_tokens + LEAST_PROMPT_TOKENS,
        )
        if type(self.context) is not int or self.context < needed:
            raise UsageError(
                f"context of the measurement is {self.context!r}, but its windows, prompts and replies need at least "
                f"{needed}"
            )
        if self.repeats * self.processes < 3:
            raise UsageError(f"{self.processes} processes of {self.repeats} repeats are too few: a median needs three")


class Runtime(Protocol):
    """One runtime, in a process of its own. `load` comes first, `end` last; every run starts from an empty cache.

    Token ids are those of the checkpoint's tokenizer. All methods raise ArtifactError when the runtime refuses.

    Attributes:
        libraries: Modules that `load` imports; a load that is timed imports them before.
    """

    libraries: ClassVar[tuple[str, ...]]

    def load(self, path: Path, threads: int, context_tokens: int, sequences: int = 1) -> None:
        """Load an artifact on the CPU.

        Args:
            path: A GGUF file, or a directory.
            threads: Threads for prefill and decode.
            context_tokens: Longest sequence that will be run.
            sequences: Sequences that `decode_together` will run at most; together they fit the context.
        """
        ...

    def load_tokenizer(self, path: Path) -> None:
        """Load as little of an artifact as `tokenize` needs."""
        ...

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of `text` by the artifact's own tokenizer, adding no BOS or EOS.

        Args:
            text: Any text.
            special: Special tokens inside the text become their single ids.
        """
        ...

    def logits(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of all positions in order, float32 [positions, vocabulary], by the prefill path.

        A chunk is valid until the next one is asked for.
        """
        ...

    def step_logits(self, prefix: Sequence[int], ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Process `prefix`, then yield float32 [1, vocabulary] after each of `ids`, run one by one through the cache.

        A row is valid until the next one is asked for.
        """
        ...

    def declared_context(self) -> int:
        """Return the longest context that the loaded artifact says it was made for, in tokens."""
        ...

    def greedy(self, ids: Sequence[int], count: int, stop: Collection[int]) -> list[int]:
        """Return up to `count` greedily decoded tokens; the first of `stop` ends it and is included."""
        ...

    def prefill(self, ids: Sequence[int]) -> None:
        """Process a prompt, as `llama-bench -p` does: returns when the logits of its last token are there."""
        ...

    def decode(self, count: int) -> None:
        """Generate `count` tokens one by one from an almost empty cache, as `llama-bench -n` does."""
        ...

    def decode_after(self, ids: Sequence[int], count: int) -> float:
        """Process a prompt, then generate `count` tokens one by one; return the seconds of the latter alone."""
        ...

    def decode_together(self, sequences: int, count: int) -> None:
        """Generate `count` tokens in each of several sequences side by side, from almost empty caches."""
        ...

    def first_token(self, ids: Sequence[int]) -> int:
        """Return the first greedy token for a prompt, through the runtime's own generate call where it has one."""
        ...

    def end(self) -> None:
        """Free what `load` took."""
        ...
