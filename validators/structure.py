"""Structural checks: is the artifact complete, well-formed, and of the reference's shape?

Everything is read from the artifact itself; a check that finds something wrong reports it and the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.model_config import ModelConfig
from edgekiln.validators.base import CheckResult
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.structure_gguf import check_gguf
from edgekiln.validators.structure_onnx import check_onnx


@dataclass(frozen=True)
class Structure:
    """What the structural checks found.

    Attributes:
        checks: One result per check.
        weights_bytes: Bytes of all tensors, shared ones once; None when not all of the artifact is read.
    """

    checks: tuple[CheckResult, ...]
    weights_bytes: int | None


def check_structure(
    kind: ArtifactKind, config: ModelConfig, *, architecture: str, genai_type: str, reread: bool = True
) -> Structure:
    """Return every structural check of an artifact against the reference's configuration.

    Args:
        kind: What `identify` said.
        config: The reference's.
        architecture: `general.architecture` that GGUF has for this family.
        genai_type: `model.type` that ORT GenAI has for this family.
        reread: Read a GGUF file with gguf's own reader as well, which takes seconds for a large vocabulary.
    """
    if kind.format == "gguf":
        return Structure(*check_gguf(kind.path, config, architecture, reread=reread))
    return Structure(*check_onnx(kind, config, genai_type))
