"""The chat template of an artifact or a checkpoint: where it is and what it knows. It is read here, never rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgekiln.errors import ArtifactError
from edgekiln.model_config import read_json

Thinking: TypeAlias = Literal["switch", "tags", "none"]
#: No template has a hundredth of this.
_MAX_TEMPLATE_BYTES: Final = 4 << 20
_KEY: Final = "tokenizer.chat_template"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        text: Its source.
        where: The file or metadata key that holds it.
    """

    text: str
    where: str

    @property
    def tools(self) -> bool:
        """Whether it looks at the variable `tools`."""
        return re.search(r"\btools\b", self.text) is not None

    @property
    def thinking(self) -> Thinking:
        """`switch`: it looks at `enable_thinking`; `tags`: it knows `<think>` but cannot be told; else `none`."""
        if re.search(r"\benable_thinking\b", self.text):
            return "switch"
        return "tags" if "<think>" in self.text else "none"


def gguf_template(metadata: Mapping[str, object]) -> ChatTemplate | None:
    """Return the default template of a GGUF file's metadata."""
    text = metadata.get(_KEY)
    return ChatTemplate(text, _KEY) if isinstance(text, str) and text else None


def directory_template(directory: Path) -> ChatTemplate | None:
    """Return the template of a Hugging Face or ORT GenAI directory: chat_template.jinja, else tokenizer_config.json's.

    Raises:
        ArtifactError: chat_template.jinja is too large or no UTF-8 text.
        CheckpointError: tokenizer_config.json is no JSON object.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ArtifactError(f"{path} has more than {_MAX_TEMPLATE_BYTES} bytes, which no chat template needs")
        try:
            return ChatTemplate(path.read_bytes().decode("utf-8"), path.name)
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{path} is not UTF-8: {error}") from None
    path = directory / "tokenizer_config.json"
    text = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(text, list):  # several named templates, as transformers 4 stored them
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, dict)}
        text = named.get("default")
    return ChatTemplate(text, path.name) if isinstance(text, str) and text else None
