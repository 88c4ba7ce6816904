"""Telling a checkpoint from an artifact, and describing either."""

from __future__ import annotations

from pathlib import Path

from edgekiln.errors import ArtifactError
from edgekiln.hub_files import Listener
from edgekiln.pipelines.inspect_artifact import inspect_artifact
from edgekiln.pipelines.inspect_checkpoint import Inspected, inspect_checkpoint


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a directory holds a model to export: an ORT GenAI directory may have a config.json too."""
    if (path / "genai_config.json").is_file():
        return False
    return (path / "config.json").is_file() or any(path.glob("*.safetensors"))


def inspect(
    source: str,
    *,
    tensors: bool = False,
    hashed: bool = False,
    offline: bool = False,
    listener: Listener | None = None,
) -> Inspected:
    """Describe the checkpoint or artifact that `source` names; see `inspect_checkpoint` and `inspect_artifact`.

    Raises:
        EdgekilnError: Nothing at all can be said about it.
    """
    path = Path(source)
    if path.is_dir():
        if _is_checkpoint(path):
            return inspect_checkpoint(source, tensors=tensors, hashed=hashed, offline=offline)
        return inspect_artifact(path, tensors=tensors, hashed=hashed)
    if path.exists():
        return inspect_artifact(path, tensors=tensors, hashed=hashed)
    if path.suffix in {".gguf", ".onnx", ".safetensors"} or source.startswith((".", "/", "~")):
        raise ArtifactError(f"{source} does not exist; give a checkpoint, or an artifact's file or directory")
    return inspect_checkpoint(source, tensors=tensors, hashed=hashed, offline=offline, listener=listener)
