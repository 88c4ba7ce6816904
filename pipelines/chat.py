"""A conversation with an artifact in its own runtime, as typed events."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

from edgekiln.checkpoint import EMBEDDED
from edgekiln.errors import ArtifactError, EdgekilnError, UnsupportedError
from edgekiln.files import read_text
from edgekiln.hub import parse_hub_id
from edgekiln.pipelines.workspace import LATEST
from edgekiln.process import Json, Limits
from edgekiln.stream import Stream, open_stream
from edgekiln.validators import RUNTIME_NAMES
from edgekiln.validators.chat_base import ChatOptions
from edgekiln.validators.kinds import ArtifactKind, identify

_MODULE: Final = "edgekiln.validators.chat"
#: A model of many gigabytes on a slow disk.
_LOAD_SECONDS: Final = 900
#: Between two tokens, and from a prompt to the first one; a template that loops ends here too.
_TOKEN_SECONDS: Final = 300


#: What runs each kind of artifact here: as in reports, but that Foundry Local itself runs its directories.
RUNTIME_OF: Final = {name: RUNTIME_NAMES[name] for name in ("gguf", "onnx")} | {"foundry-local": "Foundry Local"}
#: What `latest.txt` holds; see `edgekiln.pipelines.workspace.publish`.
_DIGEST: Final = re.compile(r"[0-9a-f]{12}")
_MAX_NAME: Final = 64
#: What no Hub id ends with.
_FILES: Final = frozenset({".gguf", ".onnx", ".safetensors"})


@dataclass(frozen=True)
class Loaded:
    """The artifact is loaded.

    Attributes:
        load_seconds: How long that took.
        template: File or metadata key of the chat template; None where there is none.
        thinking: `switch`, `tags` or `none`; see `ChatTemplate.thinking`.
        context: Longest conversation, in tokens.
    """

    load_seconds: float
    template: str | None
    thinking: str
    context: int


@dataclass(frozen=True)
class Piece:
    """A part of a reply, of whole characters."""

    text: str
    reasoning: bool


@dataclass(frozen=True)
class Finished:
    """The end of a reply.

    Attributes:
        stop: `end of turn`, `max tokens`, `context full` or `interrupted`.
        prompt_tokens: Tokens of the conversation so far, in its template; None where the runtime does not tell.
        tokens: Tokens of the reply, without the one that ends it.
        first_token_seconds: From the prompt to the first token; None where there was none.
        tokens_per_second: Speed after the first token; None for fewer than two.
    """

    stop: str
    prompt_tokens: int | None
    tokens: int
    first_token_seconds: float | None
    tokens_per_second: float | None


Event: TypeAlias = Piece | Finished


def find_artifact(path: Path) -> ArtifactKind:
    """Return what to chat with.

    Raises:
        ArtifactError: Nothing is there.
        UnsupportedError: It is no artifact; for a checkpoint, or the folder of a build, the message has the way to one.
    """
    name = str(path)
    try:
        return identify(path)
    except (ArtifactError, UnsupportedError):
        if (newest := _newest(path)) is not None:
            raise UnsupportedError(f"{name} is the folder of a build; chat with its newest, {newest}") from None
        if _is_source(path) or (path.is_dir() and (path / "config.json").is_file()):
            raise UnsupportedError(
                f"{name} is a checkpoint, and chat runs artifacts; make one with "
                f"`edgekiln export {shlex.quote(name)} --format gguf --precision q4_k_m --out DIR`, then chat with DIR"
            ) from None
        raise


def _is_source(path: Path) -> bool:
    """Tell whether a path that leads nowhere names a checkpoint, rather than something mistyped in a folder here."""
    if path.exists():
        return False
    is_id = parse_hub_id(path.as_posix()) is not None and path.suffix.lower() not in _FILES
    return str(path) == EMBEDDED or (is_id and not Path(path.parts[0]).is_dir())


def _newest(path: Path) -> Path | None:
    """Return the newest artifact in OUT/BUILD, by the link `latest` or the file that stands for it."""
    if (link := path / LATEST).is_dir():
        return link
    try:
        name = read_text(link.with_suffix(".txt"), _MAX_NAME).strip()
    except EdgekilnError:
        return None
    return path / name if _DIGEST.fullmatch(name) and (path / name).is_dir() else None


class Conversation:
    """A running chat; see `open_conversation`."""

    def __init__(self, stream: Stream, loaded: Loaded) -> None:
        self._stream, self.loaded = stream, loaded
        self._forget = False

    def forget(self) -> None:
        """Begin anew with the next prompt; the system prompt stays."""
        self._forget = True

    def interrupt(self) -> None:
        """Stop the reply that is being made; it still ends with a `Finished`."""
        self._stream.interrupt()

    def ask(self, prompt: str) -> Iterator[Event]:
        """Yield the pieces of the reply as they come, then its `Finished`.

        Raises:
            StepError: The runtime refuses, crashes or hangs; the conversation is over.
        """
        self._stream.send({"prompt": prompt, "forget": self._forget})
        self._forget = False
        while True:
            match _next(self._stream, _TOKEN_SECONDS):
                case {"event": "piece", "text": str(text), "reasoning": bool(reasoning)}:
                    yield Piece(text, reasoning)
                case {"event": "reply", **values}:
                    yield Finished(**values)
                    return
                case other:
                    raise ArtifactError(f"the chat answered with {str(other)[:80]}, which is no event")


def _next(stream: Stream, seconds: float) -> Json:
    message = stream.receive(seconds)
    if message is None:
        raise ArtifactError("the chat ended before its reply did")
    return message


@contextmanager
def open_conversation(
    kind: ArtifactKind, options: ChatOptions, *, system: str | None, threads: int, context: int, log: Path
) -> Iterator[Conversation]:
    """Load an artifact in a process of its own and give the conversation with it.

    Args:
        kind: See `find_artifact`.
        options: Of all replies.
        system: The system prompt, if any.
        threads: Of the runtime; Foundry Local takes those of genai_config.json.
        context: Longest conversation in tokens, if the model's own context is not shorter.
        log: File that gets what the runtime prints.

    Raises:
        StepError: It cannot be loaded.
    """
    request = {
        "format": kind.format,
        "path": str(kind.path.resolve()),
        "threads": threads,
        "context": context,
        "system": system,
        "options": asdict(options),
    }
    import psutil

    # A template may ask for any amount of memory; nothing on a machine can use more than what is free.
    limits = Limits(memory_bytes=int(psutil.virtual_memory().available))
    with open_stream(_MODULE, "chat", request, log=log, limits=limits) as stream:
        match _next(stream, _LOAD_SECONDS):
            case {"event": "loaded", **values}:
                yield Conversation(stream, Loaded(**values))
            case other:
                raise ArtifactError(f"the chat began with {str(other)[:80]}, which is no event")
