"""What an artifact's weights are stored as, read from the artifact itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edgekiln.errors import ArtifactError, CheckpointError
from edgekiln.model_config import read_json
from edgekiln.validators.gguf_weights import gguf_weights
from edgekiln.validators.kinds import ArtifactKind
from edgekiln.validators.onnx_files import decoder_path
from edgekiln.validators.onnx_weights import onnx_weights
from edgekiln.validators.weights import Weight


def artifact_weights(kind: ArtifactKind) -> tuple[Weight, ...]:
    """Return the weights of an artifact, without reading one.

    Raises:
        ArtifactError: The artifact cannot be read.
    """
    if kind.format == "gguf":
        return gguf_weights(kind.path)
    try:
        genai = read_json(kind.path / "genai_config.json")
    except CheckpointError as error:
        raise ArtifactError(str(error)) from None
    return onnx_weights(kind.path, decoder_path(kind.path, genai))


def weights_by_type(kind: ArtifactKind) -> dict[str, int]:
    """Return how many weights of matrices lie in each type, e.g. `{"int4": 357_826_560, "fp32": 136_134_656}`.

    GGUF types are named in lower case (`q4_0`, `f16`). In ONNX the operator that reads a weight says its type (`int4`,
    `int8`, `nf4`), and matrices of plain numbers are `fp16`, `bf16` or `fp32`. A weight that two operators read counts
    once.

    Raises:
        ArtifactError: The artifact cannot be read.
    """
    counts: Counter[str] = Counter()
    for weight in {weight.place: weight for weight in artifact_weights(kind) if len(weight.shape) > 1}.values():
        counts[weight.type] += weight.weights
    return dict(counts)


def main_type(counts: Mapping[str, int]) -> str | None:
    """Return the type that most weights have, or None where there are none."""
    return max(counts, key=lambda name: (counts[name], name), default=None)
