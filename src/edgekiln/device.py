"""Where an artifact is to run, as far as that decides what is written into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Device:
    """The part of a target that an exporter needs.

    Attributes:
        execution_provider: Where the runtime computes: `cpu`, `cuda`, `webgpu`, … An exporter says which it serves.
        context_length: Tokens of context that the device has room for; None for as many as the model allows.
    """

    execution_provider: str = "cpu"
    context_length: int | None = None


#: What an artifact is made for when nothing else is said.
ANY_CPU: Final = Device()
