"""The golden renderings: Transformers' own `apply_chat_template` on the checkpoint, in its sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import CheckpointError
from edgekiln.validators.chat_template import ChatTemplate, directory_template
from edgekiln.validators.hf_tokenizer import load_tokenizer
from edgekiln.validators.template_render import Conversation, Golden, Rendering, bounded

_TURN = ({"role": "user", "content": "Ping"}, {"role": "assistant", "content": "Pong"})


def _tokenizer(directory: Path) -> Any:
    """Return Transformers' tokenizer; the class of all fast ones, whose import does without torch."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"Transformers cannot load the tokenizer of {directory}: {error}") from None


def _render(tokenizer: Any, conversation: Conversation, *, thinking: bool | None, prompt: bool) -> Rendering:
    from jinja2 import TemplateError

    more = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=prompt,
            **more,
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Rendering(None, str(error) or type(error).__name__)
    except (RecursionError, MemoryError) as error:
        return Rendering(None, type(error).__name__)
    return bounded(str(text))


def _end_of_turn(tokenizer: Any, directory: Path) -> tuple[int, str] | None:
    """Return the special token that follows the assistant's words."""
    text = _render(tokenizer, Conversation("", "", _TURN), thinking=None, prompt=False).text or ""
    _, found, rest = text.rpartition("Pong")
    if not found:
        return None
    raw = load_tokenizer(directory)
    special = {number for number, token in raw.get_added_tokens_decoder().items() if token.special}
    ids = raw.encode(rest, add_special_tokens=False).ids
    return next(((token, raw.id_to_token(token)) for token in ids if token in special), None)


def golden(directory: Path, conversations: Sequence[Conversation]) -> Golden:
    """Render all conversations with a checkpoint's template.

    Raises:
        CheckpointError: Transformers cannot load the tokenizer.
        ArtifactError: The template cannot be read.
    """
    found: ChatTemplate | None = directory_template(directory)
    if found is None:
        none = Rendering(None, "the checkpoint has no chat template")
        nothing = (None,) * len(conversations)
        return Golden(None, (none,) * len(conversations), nothing, prompted=False, unprompted=nothing, end_of_turn=None)
    tokenizer = _tokenizer(directory)
    renderings, unprompted, thinking = [], [], []
    for entry in conversations:
        asked = entry.thinking
        renderings.append(_render(tokenizer, entry, thinking=asked, prompt=entry.generation_prompt))
        unprompted.append(_render(tokenizer, entry, thinking=asked, prompt=False).text)
        pair = [_render(tokenizer, entry, thinking=on, prompt=entry.generation_prompt).text for on in (True, False)]
        thinking.append(None if asked is not None or None in pair else (str(pair[0]), str(pair[1])))
    prompted = any(
        entry.generation_prompt and rendering.text != bare
        for entry, rendering, bare in zip(conversations, renderings, unprompted, strict=True)
    )
    return Golden(
        found.text, tuple(renderings), tuple(thinking), prompted, tuple(unprompted), _end_of_turn(tokenizer, directory)
    )
