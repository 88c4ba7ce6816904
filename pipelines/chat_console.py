"""A conversation on a terminal or through pipes: replies go to standard output as they come, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from edgekiln.errors import ArtifactError, StepError, UsageError
from edgekiln.pipelines.chat import RUNTIME_OF, Conversation, Finished, Loaded, open_conversation
from edgekiln.standard_streams import show
from edgekiln.terminal import printable
from edgekiln.validators.chat_base import CONTEXT_FULL, INTERRUPTED, MAX_TOKENS, ChatOptions
from edgekiln.validators.kinds import ArtifactKind

_HELP: Final = "Type a message; /new begins a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply."
#: Lines of the runtime's log that a failure shows.
_TAIL: Final = 12
#: Beyond any context.
_MAX_PROMPT_BYTES: Final = 4 << 20
#: What follows "stopped" in the line below a reply.
_STOPS: Final = {MAX_TOKENS: "by --max-tokens", CONTEXT_FULL: "because the context is full", INTERRUPTED: "by Ctrl-C"}


def notice(text: str) -> None:
    """Say something beside the conversation."""
    print(f"edgekiln: {text}", file=sys.stderr, flush=True)


def statistics(finished: Finished) -> str:
    """Return the line below a reply: tokens, speed, time to the first token, why it ended."""
    parts = [f"{finished.tokens} tokens"]
    if finished.tokens_per_second is not None:
        parts.append(f"{finished.tokens_per_second:.1f} tokens/s")
    if finished.first_token_seconds is not None:
        after = "" if finished.prompt_tokens is None else f" (prompt of {finished.prompt_tokens} tokens)"
        parts.append(f"first token after {finished.first_token_seconds:.2f} s{after}")
    parts.append(f"stopped {_STOPS[finished.stop]}" if finished.stop in _STOPS else "ended its turn")
    return ", ".join(parts)


class _Output:
    """Standard output, where pieces of replies go; on a terminal, without what could control it."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._terminal = sys.stdout.isatty()
        self._reasoning = False
        self._at_line_start = True

    def piece(self, text: str, reasoning: bool) -> None:
        if self._silent:
            return
        if reasoning != self._reasoning:
            self._reasoning = reasoning
            self.end_line()
        sys.stdout.write(printable(text, lines=True) if self._terminal else text)
        sys.stdout.flush()
        self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        if not self._silent and not self._at_line_start:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._at_line_start = True


@contextlib.contextmanager
def _on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C of the block do `action`; the second one interrupts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        action()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ask(conversation: Conversation, prompt: str, output: _Output) -> tuple[str, Finished]:
    """Stream one reply and return it.

    Raises:
        UsageError: The conversation does not fit the context.
    """
    pieces: list[str] = []
    finished: Finished | None = None
    for event in conversation.ask(prompt):
        if isinstance(event, Finished):
            finished = event
        else:
            pieces.append(event.text)
            output.piece(event.text, event.reasoning)
    output.end_line()
    if finished is None:
        raise ArtifactError("the reply has no end")
    if finished.stop == CONTEXT_FULL and not finished.tokens:
        raise UsageError(
            f"the conversation has {finished.prompt_tokens} tokens, but the context {conversation.loaded.context}; "
            "shorten it, or give a larger --context if the model has one"
        )
    return "".join(pieces), finished


def converse(conversation: Conversation, prompts: Sequence[str], *, silent: bool) -> list[tuple[str, str, Finished]]:
    """Ask `prompts` in turn and return each with its reply.

    Args:
        conversation: A new one.
        prompts: The turns.
        silent: Nothing goes to standard output.

    Raises:
        ArtifactError: A reply is empty: the artifact loads, but says nothing.
    """
    output = _Output(silent=silent)
    turns = []
    for prompt in prompts:
        reply, finished = ask(conversation, prompt, output)
        notice(statistics(finished))
        if not reply.strip():
            raise ArtifactError(
                f"the reply to {prompt[:40]!r} is empty: the artifact loads, but says nothing "
                f"({finished.tokens} tokens without text)"
            )
        turns.append((prompt, reply, finished))
    return turns


def interact(conversation: Conversation) -> None:
    """Read prompts from the terminal until the user leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and line editing where the system has it

    notice(_HELP)
    output = _Output(silent=False)
    while True:
        try:
            prompt = _read_line()
        except EOFError:
            print(file=sys.stderr)
            return
        match prompt:
            case "":
                continue
            case "/exit":
                return
            case "/new":
                conversation.forget()
                notice("a new conversation")
            case _ if prompt.startswith("/"):
                notice(_HELP)
            case _:
                _turn(conversation, prompt, output)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ").strip()
    print("> ", end="", file=sys.stderr, flush=True)  # standard output is for replies alone
    return input().strip()


def _turn(conversation: Conversation, prompt: str, output: _Output) -> None:
    try:
        with _on_interrupt(conversation.interrupt):
            reply, finished = ask(conversation, prompt, output)
    except UsageError as error:  # too long; the conversation goes on without this turn
        notice(f"{error}; /new begins a new conversation")
        return
    notice(statistics(finished) if reply.strip() else f"the reply is empty ({statistics(finished)})")


# --- one run of the command ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatRun:
    """What the command was asked to do.

    Attributes:
        kind: The artifact.
        prompts: The turns; None for a conversation at the terminal.
        system: The system prompt, if any.
        options: Of all replies.
        threads: Of the runtime; None for the physical cores.
        context: Longest conversation in tokens.
        verbose: Say what renders the template and how tokens are chosen.
        debug: Show what the runtime printed.
        as_json: Print one JSON document and no text.
    """

    kind: ArtifactKind
    prompts: tuple[str, ...] | None
    system: str | None
    options: ChatOptions
    threads: int | None
    context: int
    verbose: bool = False
    debug: bool = False
    as_json: bool = False


def read_prompts(prompts: Sequence[str], *, as_json: bool) -> tuple[str, ...] | None:
    """Return the turns: those of the command line, else all of standard input; None for a conversation at a terminal.

    Raises:
        UsageError: There is none, or one that no runtime takes.
    """
    if not prompts and sys.stdin.isatty():
        if as_json:
            raise UsageError("--json prints one document at the end; give a --prompt")
        return None
    if not prompts:
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        if len(data) > _MAX_PROMPT_BYTES:
            raise UsageError(f"the prompt on standard input has more than {_MAX_PROMPT_BYTES} bytes; shorten it")
        prompts = (data.decode("utf-8", errors="replace"),)
    if any(not prompt.strip() for prompt in prompts):
        raise UsageError("a prompt is empty; say something with --prompt, or on standard input")
    if any("\0" in prompt for prompt in prompts):
        raise UsageError("a prompt holds a NUL character, which no runtime takes; remove it")
    return tuple(prompts)


def sampling(max_tokens: int, temperature: float, seed: int | None, thinking: bool | None) -> ChatOptions:
    """Return the options of all replies; a seed that is not given is drawn, and can be read in the output.

    Raises:
        UsageError: A seed without a temperature.
    """
    if seed is not None and not temperature:
        raise UsageError(f"--seed {seed} changes nothing without a --temperature above 0; give both or neither")
    drawn = secrets.randbits(31) if seed is None and temperature else seed or 0
    return ChatOptions(max_tokens=max_tokens, temperature=temperature, seed=drawn, thinking=thinking)


#: What renders the template, for --verbose.
_ENGINES: Final = {
    "gguf": "llama-cpp-python's sandboxed Jinja2",
    "onnx": "ONNX Runtime GenAI's own engine",
    "foundry-local": "Foundry Local's own engine",
}


def _remarks(run: ChatRun, loaded: Loaded) -> Iterator[str]:
    """Yield what the user should know before the first reply."""
    format_name, options = run.kind.format, run.options
    if loaded.template is None and format_name != "foundry-local":
        yield "the artifact has no chat template: the model goes on with the prompt as plain text"
    if options.thinking is not None and loaded.thinking != "switch":
        flag = "--thinking" if options.thinking else "--no-thinking"
        yield f"the chat template has no thinking switch (enable_thinking), so {flag} changes nothing"
    if format_name == "foundry-local" and run.threads is not None:
        yield "Foundry Local takes its threads from genai_config.json, so --threads changes nothing"
    if run.verbose:
        yield f"loaded in {RUNTIME_OF[format_name]} in {loaded.load_seconds:.1f} s, context {loaded.context} tokens"
        if loaded.template is not None:
            yield f"chat template from {loaded.template}, rendered by {_ENGINES[format_name]}"
        if options.temperature > 0:
            yield f"sampling at temperature {options.temperature:g} with seed {options.seed}"
        else:
            yield "greedy: the most likely token every time"


@contextlib.contextmanager
def _runtime_log(*, debug: bool) -> Iterator[Path]:
    """Give a file for what the runtime prints; it is shown, and stays, when a step fails."""
    descriptor, name = tempfile.mkstemp(prefix="edgekiln-chat-", suffix=".log")
    os.close(descriptor)
    log, keep = Path(name), False
    try:
        yield log
    except StepError:
        keep = True
        raise
    finally:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = lines if debug else lines[-_TAIL:] if keep else []
        for line in shown:
            print(f"  | {printable(line)}", file=sys.stderr)
        if keep and lines:
            notice(f"the log of the runtime is {log}")
        else:
            log.unlink(missing_ok=True)


def run_chat(run: ChatRun) -> None:
    """Chat as asked.

    Raises:
        StepError: The artifact cannot be loaded or run, or a reply is empty.
        UsageError: The conversation does not fit the context.
    """
    from edgekiln.host import physical_cores

    with (
        _runtime_log(debug=run.debug) as log,
        open_conversation(
            run.kind,
            run.options,
            system=run.system,
            threads=run.threads or physical_cores(),
            context=run.context,
            log=log,
        ) as conversation,
    ):
        for remark in _remarks(run, conversation.loaded):
            notice(remark)
        try:
            if run.prompts is None:
                interact(conversation)
                return
            turns = converse(conversation, run.prompts, silent=run.as_json)
        except BrokenPipeError:  # the reader has gone away; flushing at exit must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return
        if run.as_json:
            show(_document(run, conversation.loaded, turns))


def _document(run: ChatRun, loaded: Loaded, turns: Sequence[tuple[str, str, Finished]]) -> str:
    document = {
        "schema": "edgekiln.chat/1",
        "artifact": str(run.kind.root),
        "format": run.kind.format,
        "runtime": RUNTIME_OF[run.kind.format],
        "system": run.system,
        "options": asdict(run.options),
        "loaded": asdict(loaded),
        "turns": [{"prompt": prompt, "reply": reply, **asdict(end)} for prompt, reply, end in turns],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)
