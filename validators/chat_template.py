"""The chat template of an artifact or a checkpoint: where it is and what it knows. It is read here, never rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.template_check import find_template

Thinking: TypeAlias = Literal["switch", "tags", "none"]
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
        ArtifactError: It cannot be read; see `edgekiln.template_check.find_template`.
        MachineError: The system does not let us read it.
    """
    try:
        found = find_template(directory)
    except CheckpointError as error:
        raise ArtifactError(str(error)) from None
    return ChatTemplate(found[1], found[0].name) if found is not None and found[1] else None
