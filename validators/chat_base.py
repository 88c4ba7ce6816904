"""What the chats of all runtimes share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

Message: TypeAlias = dict[str, str]
Stop: TypeAlias = Literal["end of turn", "max tokens", "context full", "interrupted"]

END_OF_TURN: Final = "end of turn"
MAX_TOKENS: Final = "max tokens"
CONTEXT_FULL: Final = "context full"
INTERRUPTED: Final = "interrupted"


@dataclass(frozen=True)
class ChatOptions:
    """How replies are made.

    Attributes:
        max_tokens: Longest reply.
        temperature: 0 is greedy.
        seed: Of the sampling, where the temperature is not 0.
        thinking: The template's `enable_thinking`; None leaves it to the template.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    thinking: bool | None = None

    def template_variables(self) -> dict[str, bool]:
        """Return what the template is told beside the messages."""
        return {} if self.thinking is None else {"enable_thinking": self.thinking}

    def template_json(self) -> str:
        """Return the same as JSON."""
        return json.dumps(self.template_variables())


@dataclass
class Reply:
    """A reply as it comes.

    Attributes:
        emit: Takes (piece, whether it is reasoning).
        interrupted: Tells whether somebody wants no more.
        tokens: Tokens so far.
        first: Time of the first one.
        last: Time of the last one.
    """

    emit: Callable[[str, bool], None]
    interrupted: Callable[[], bool]
    tokens: int = 0
    begin: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None

    def token(self, text: str, *, reasoning: bool = False) -> bool:
        """Take the text that one more token adds, which may be none, and tell whether to go on."""
        self.tokens += 1
        self.last = time.perf_counter()
        self.first = self.last if self.first is None else self.first
        if text:
            self.emit(text, reasoning)
        return not self.interrupted()


@dataclass(frozen=True)
class Ending:
    """How a reply ended.

    Attributes:
        stop: Why.
        prompt_tokens: Tokens of the templated conversation; None where the runtime does not tell.
    """

    stop: Stop
    prompt_tokens: int | None


class ChatRuntime(Protocol):
    """A runtime that chats. `load` comes first, `end` last; every reply processes the whole conversation anew."""

    def load(self, path: Path, threads: int, context_tokens: int) -> None:
        """Load the artifact at `path`."""
        ...

    def prepare(self, path: Path, options: ChatOptions) -> None:
        """Take the options of all replies, after `load`."""
        ...

    def reply(self, messages: Sequence[Message], reply: Reply) -> Ending:
        """Reply to a conversation of `role` and `content`, giving each token to `reply` at once.

        Raises:
            ArtifactError: The template cannot be rendered, or the runtime refuses.
        """
        ...

    def end(self) -> None:
        """Free what `load` took."""
        ...


def plain_prompt(messages: Sequence[Message]) -> str:
    """Return a conversation without a template: its texts, one a line, for a model to go on with."""
    return "\n".join(message["content"] for message in messages)
