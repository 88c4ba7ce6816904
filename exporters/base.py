"""What every exporter promises, and the values that pass between planning and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.grids import FloatDtype, Grid, QuantizedRows
from edgekiln.scheme import Scheme

#: Maps float32 rows onto a grid; the caller of an exporter provides it, so that no exporter knows an algorithm.
Quantize: TypeAlias = Callable[[NDArray[np.float32], Grid], QuantizedRows]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of an artifact, decided from metadata alone.

    Attributes:
        name: Name in the artifact.
        sources: The checkpoint tensors whose rows it holds, in order; empty for a computed tensor.
        shape: Logical shape, row-major: [rows, columns] or [length].
        storage: The grid, or the float type, that it lies in.
        nbytes: Bytes in the artifact; 0 when it shares those of another tensor.
        note: Why it differs from what the scheme asked for; None when it does not.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    storage: Grid | FloatDtype
    nbytes: int
    note: str | None = None

    @property
    def storage_name(self) -> str:
        """The storage as reports and manifests name it."""
        return self.storage if isinstance(self.storage, str) else self.storage.name


@dataclass(frozen=True)
class ExportPlan:
    """An artifact before it is written.

    Attributes:
        format: Key of the exporter table.
        scheme: What was asked.
        container_type: What the container holds, for reports: `Q4_0`, `MatMulNBits int4 g32 sym`.
        tensors: Every tensor, in the order in which it is written.
    """

    format: str
    scheme: Scheme
    container_type: str
    tensors: tuple[TensorPlan, ...]

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class Exporter(Protocol):
    """Writes one container format. It packs what it is given and rounds nothing."""

    #: Precisions that this container can hold, each with one line on what it means here.
    precisions: Mapping[str, str]

    def plan(self, checkpoint: Checkpoint, scheme: Scheme) -> ExportPlan:
        """Decide every tensor of the artifact from metadata alone: no weight is read, nothing is written.

        Raises:
            UsageError: The scheme contradicts itself or the shapes (a group size that does not divide).
            UnsupportedError: This container cannot hold what is asked; the message names the nearest it can.
        """
        ...

    def write(self, checkpoint: Checkpoint, plan: ExportPlan, directory: Path, quantize: Quantize) -> None:
        """Write the artifact's files into an empty `directory`, tensor by tensor in row chunks.

        Raises:
            StepError: The weights hold what cannot be exported (NaN, infinity, fp16 overflow).
        """
        ...

    def tool_versions(self) -> Mapping[str, str]:
        """Return name and version of every library that touches the bytes."""
        ...
