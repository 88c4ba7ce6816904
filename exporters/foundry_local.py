"""Foundry Local: an ORT GenAI directory with the `inference_model.json` that Foundry Local's cache asks for.

The directory loads both ways: copied below a publisher folder of the model cache, or registered by its path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import UnsupportedError
from edgekiln.exporters.base import ExportPlan, Quantize, unknown_provider
from edgekiln.exporters.onnx import TOOLS, Onnx
from edgekiln.exporters.onnx_providers import REFUSED
from edgekiln.exporters.onnx_size import artifact_size
from edgekiln.exporters.onnx_task import MODEL_FILE
from edgekiln.journal import Journal
from edgekiln.scheme import Scheme

INFERENCE_MODEL: Final = "inference_model.json"
#: Providers that its runtime fetches and registers, with the ending that the catalogue's names have for each.
_ENDINGS: Final = {"cpu": "generic-cpu", "cuda": "cuda-gpu", "webgpu": "generic-gpu"}
_REFUSED: Final = {**REFUSED, "dml": "its runtime is built without DirectML; use webgpu, or the onnx format"}
#: The turns of ChatML, which every Qwen chat template writes.
_CHATML: Final = {
    "system": "<|im_start|>system\n{Content}<|im_end|>",
    "user": "<|im_start|>user\n{Content}<|im_end|>",
    "assistant": "<|im_start|>assistant\n{Content}<|im_end|>",
    "prompt": "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant",
}


class FoundryLocal:
    """Exporter of Foundry Local model directories."""

    def __init__(self) -> None:
        self._onnx = Onnx()
        self.precisions: Mapping[str, str] = self._onnx.precisions
        self.providers: Mapping[str, str] = {name: self._onnx.providers[name] for name in _ENDINGS}
        self.nearest: Mapping[str, str] = self._onnx.nearest
        self.asymmetric: Mapping[str, str] = self._onnx.asymmetric

    def unsupported(self, scheme: Scheme, device: Device) -> str | None:
        """Return why there is no such artifact for `device`, or None. See `Exporter.unsupported`."""
        if device.execution_provider not in self.providers:
            return unknown_provider("Foundry Local", device.execution_provider, self.providers, _REFUSED)
        return self._onnx.unsupported(scheme, device)

    def plan(self, checkpoint: Checkpoint, scheme: Scheme, device: Device = ANY_CPU) -> ExportPlan:
        """Decide every tensor from metadata alone. See `Exporter.plan`."""
        if reason := self.unsupported(scheme, device):
            raise UnsupportedError(reason)
        template = checkpoint.chat_template
        if template is None or "<|im_start|>" not in template:
            raise UnsupportedError(
                f"{checkpoint.source} has no ChatML chat template, which Foundry Local needs to chat; "
                "add chat_template.jinja to the checkpoint or export to onnx"
            )
        return replace(self._onnx.plan(checkpoint, scheme, device), format="foundry-local")

    def write(
        self,
        checkpoint: Checkpoint,
        plan: ExportPlan,
        directory: Path,
        quantize: Quantize,
        *,
        journal: Journal | None = None,
        threads: int | None = None,
    ) -> None:
        """Write the ONNX directory and inference_model.json. See `Exporter.write`."""
        self._onnx.write(checkpoint, plan, directory, quantize, journal=journal, threads=threads)
        text = _inference_model(checkpoint, plan)
        (directory / INFERENCE_MODEL).write_text(text, encoding="utf-8", newline="\n")

    def size(self, checkpoint: Checkpoint, plan: ExportPlan) -> int:
        """Return about how many bytes the artifact has. See `Exporter.size`."""
        others = {INFERENCE_MODEL: len(_inference_model(checkpoint, plan).encode("utf-8"))}
        return artifact_size(checkpoint, plan, MODEL_FILE, TOOLS, others)

    def tool_versions(self) -> Mapping[str, str]:
        """Return the packages that touch the bytes."""
        return self._onnx.tool_versions()


def _inference_model(checkpoint: Checkpoint, plan: ExportPlan) -> str:
    """Return the text of inference_model.json."""
    document = {"Name": model_name(checkpoint, plan.scheme, plan.device), "PromptTemplate": _CHATML}
    return json.dumps(document, indent=2) + "\n"


def model_name(checkpoint: Checkpoint, scheme: Scheme, device: Device = ANY_CPU) -> str:
    """Return the name under which the catalogue lists the model: family, size, precision and kind of device."""
    millions = checkpoint.weight_count / 1e6
    size = f"{millions / 1000:.1f}b" if millions >= 100 else f"{millions:.1f}m"
    name = f"{checkpoint.config.model_type}-{size}-{scheme.precision}-{_ENDINGS[device.execution_provider]}"
    return re.sub(r"[^a-z0-9.-]+", "-", name)
