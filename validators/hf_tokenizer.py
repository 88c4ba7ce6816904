"""The checkpoint's own tokenizer: Hugging Face's, from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import CheckpointError
from edgekiln.memory import uncollected
from edgekiln.tokenizer_file import parse_tokenizer, read_tokenizer


def load_tokenizer(directory: Path, *, normalize: bool = True) -> Any:
    """Return the `tokenizers.Tokenizer` of a checkpoint.

    Args:
        directory: Holds tokenizer.json.
        normalize: False leaves out the normalizer, as llama.cpp and ORT GenAI do.

    Raises:
        CheckpointError: The file is missing or damaged, or Hugging Face's library refuses it.
        MachineError: The system does not let us read it.
    """
    path = directory / "tokenizer.json"
    content, root = read_tokenizer(path)
    if not normalize:
        content = json.dumps({**root, "normalizer": None})
    return parse_tokenizer(path, content)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text`, with special tokens recognised and none added."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of `ids`, special tokens included; ids that are no token, such as padding, have none."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def chat_renderer(directory: Path) -> Callable[[Sequence[dict[str, str]]], str]:
    """Return what renders conversations by the checkpoint's chat template; without one it gives their last content.

    Raises:
        CheckpointError: The tokenizer cannot be loaded; later, the template cannot be rendered.
    """
    from jinja2 import TemplateError

    with uncollected():  # of thousands of modules, of which nothing goes away
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"Transformers cannot load the tokenizer of {directory}: {error}") from None

    def render(messages: Sequence[dict[str, str]]) -> str:
        if tokenizer.chat_template is None:
            return messages[-1]["content"]
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except (TemplateError, ValueError, KeyError) as error:
            raise CheckpointError(f"the chat template of {directory} cannot be rendered: {error}") from None

    return render


def render_chat(directory: Path, messages: Sequence[dict[str, str]]) -> str:
    """Return one conversation as `chat_renderer` renders it."""
    return chat_renderer(directory)(messages)
