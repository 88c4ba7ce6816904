"""What an artifact is, told from its content alone: never from a manifest or from names of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from edgekiln.errors import ArtifactError, UnsupportedError
from edgekiln.validators.gguf_read import GgufHeader, is_gguf, read_header

Format: TypeAlias = Literal["gguf", "onnx", "foundry-local"]
#: `general.architecture` of the vision towers that lie beside a model (llama.cpp's `mmproj` files).
_PROJECTOR = "clip"


@dataclass(frozen=True)
class ArtifactKind:
    """An identified artifact.

    Attributes:
        format: Key of `edgekiln.validators.RUNTIMES`.
        path: What its runtime loads: a GGUF file (of a split model the first), or a directory.
        root: The artifact as given: a file or a directory, whose files make up its size.
    """

    format: Format
    path: Path
    root: Path


def _is_model(header: GgufHeader) -> bool:
    """Tell a model from a projector and from the second and later files of a split model."""
    return header.metadata.get("general.architecture") != _PROJECTOR and header.metadata.get("split.no", 0) == 0


def _single_gguf(directory: Path) -> Path | None:
    """Return the one GGUF model in a directory, or None if there is no GGUF file."""
    found = sorted(path for path in directory.iterdir() if path.is_file() and is_gguf(path))
    if not found:
        return None
    models = found if len(found) == 1 else [path for path in found if _is_model(read_header(path))]
    if len(models) != 1:
        names = ", ".join(path.name for path in models or found)
        raise ArtifactError(f"{directory} holds {len(models)} GGUF models ({names}); name the file to judge")
    return models[0]


def identify(path: Path) -> ArtifactKind:
    """Return what kind of artifact lies at `path`.

    Raises:
        ArtifactError: Nothing is there, it cannot be read, or it is ambiguous.
        UnsupportedError: It is none of the kinds that Edgekiln can run.
    """
    try:
        if path.is_file():
            if is_gguf(path):
                return ArtifactKind("gguf", path, path)
            if path.stat().st_size == 0:
                raise ArtifactError(f"{path} is empty; fetch or export it again")
        elif path.is_dir():
            if (path / "genai_config.json").is_file():
                foundry = (path / "inference_model.json").is_file()
                return ArtifactKind("foundry-local" if foundry else "onnx", path, path)
            if (model := _single_gguf(path)) is not None:
                return ArtifactKind("gguf", model, path)
        else:
            raise ArtifactError(f"{path} does not exist; give an artifact's file or directory")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    raise UnsupportedError(
        f"{path} is no artifact that Edgekiln can run; it needs a GGUF file, an ORT GenAI directory "
        "(genai_config.json) or a Foundry Local directory (inference_model.json beside it)"
    )
