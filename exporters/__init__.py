"""Exporters: containers that pack what quantizers produce. They round nothing.

A new container is one module, one test file and one line in `EXPORTERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekiln.exporters.foundry_local import FoundryLocal
from edgekiln.exporters.gguf import Gguf
from edgekiln.exporters.onnx import Onnx

if TYPE_CHECKING:
    from edgekiln.exporters.base import Exporter

EXPORTERS: Mapping[str, Exporter] = MappingProxyType({"onnx": Onnx(), "gguf": Gguf(), "foundry-local": FoundryLocal()})
