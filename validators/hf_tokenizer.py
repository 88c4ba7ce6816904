"""The checkpoint's own tokenizer: Hugging Face's, from tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekiln.errors import CheckpointError


def load_tokenizer(directory: Path, *, normalize: bool = True) -> Any:
    """Return the `tokenizers.Tokenizer` of a checkpoint.

    Args:
        directory: Holds tokenizer.json.
        normalize: False leaves out the normalizer, as llama.cpp and ORT GenAI do.

    Raises:
        CheckpointError: The file is missing or Hugging Face's library refuses it.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    try:
        content = path.read_text(encoding="utf-8")
        if not normalize:
            content = json.dumps(json.loads(content) | {"normalizer": None})
        return Tokenizer.from_str(content)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001 - the library raises a bare Exception for whatever it cannot parse
        raise CheckpointError(f"{path} is no tokenizer that Hugging Face's library reads: {error}") from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text`, with special tokens recognised and none added."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def render_chat(directory: Path, messages: Sequence[dict[str, str]]) -> str:
    """Return a conversation as the checkpoint's chat template renders it, or its last content without a template.

    Raises:
        CheckpointError: The template cannot be rendered.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        if tokenizer.chat_template is None:
            return messages[-1]["content"]
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise CheckpointError(f"the chat template of {directory} cannot be rendered: {error}") from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"Transformers cannot load the tokenizer of {directory}: {error}") from None
