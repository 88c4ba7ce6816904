"""Validators: they run an artifact in its real runtime and measure it against the reference. Gates judge, later."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.validators.base import Runtime
from edgekiln.validators.reference import ReferenceRuntime
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.runtime_llama import LlamaRuntime

#: The runtime that gives logits and speed for each kind of artifact, and for the reference. Foundry Local gives no
#: logits: ORT GenAI, which it runs inside, stands in on the same directory; `runtime_foundry` does the rest.
RUNTIMES: Final[Mapping[str, type[Runtime]]] = MappingProxyType(
    {
        "gguf": LlamaRuntime,
        "onnx": GenaiRuntime,
        "foundry-local": GenaiRuntime,
        "reference": ReferenceRuntime,
    }
)
#: What the report calls them.
RUNTIME_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gguf": "llama.cpp",
        "onnx": "ONNX Runtime GenAI",
        "foundry-local": "ONNX Runtime GenAI on the Foundry Local directory",
        "reference": "Transformers, float32",
    }
)
