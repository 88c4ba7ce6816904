"""What every exporter promises, and the values that pass between planning and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import nearest
from edgekiln.grids import FloatDtype, Grid, QuantizedRows
from edgekiln.journal import Journal
from edgekiln.scheme import Scheme

#: Maps float32 rows onto a grid; the caller of an exporter provides it, so that no exporter knows an algorithm.
Quantize: TypeAlias = Callable[[NDArray[np.float32], Grid], QuantizedRows]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of an artifact, decided from metadata alone.

    Attributes:
        name: Name in the artifact.
        sources: The checkpoint tensors whose rows it holds, in order; empty for a computed tensor.
        shape: Logical shape, row-major: [experts, rows, columns], [rows, columns] or [length].
        storage: The grid, or the float type, that it lies in.
        nbytes: Bytes in the artifact; 0 when it shares those of another tensor.
        note: Why it differs from what the scheme asked for; None when it does not.
        through: Float type that the weights are rounded to before they are quantized; None for none.
        in_turn: So many sources after another give a row each in turn; 1 for all rows of one before those of the next.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    storage: Grid | FloatDtype
    nbytes: int
    note: str | None = None
    through: FloatDtype | None = None
    in_turn: int = 1

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
        device: Where it is to run.
        notes: What of the artifact as a whole is not as asked for.
    """

    format: str
    scheme: Scheme
    container_type: str
    tensors: tuple[TensorPlan, ...]
    device: Device = ANY_CPU
    notes: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class Exporter(Protocol):
    """Writes one container format. It packs what it is given and rounds nothing."""

    #: Precisions that this container can hold, each with one line on what it means here.
    precisions: Mapping[str, str]
    #: Execution providers that its artifacts run on, each with one line on what that means here.
    providers: Mapping[str, str]
    #: For a precision that it lacks, the one to use instead, where one comes near.
    nearest: Mapping[str, str]
    #: For a precision, the name of its form with an offset, where that is a precision of its own.
    asymmetric: Mapping[str, str]

    def unsupported(self, scheme: Scheme, device: Device) -> str | None:
        """Return why this container cannot hold `scheme` for `device`, with the way out; None when it can.

        Only tables are asked; what depends on a checkpoint, `plan` finds out.
        """
        ...

    def plan(self, checkpoint: Checkpoint, scheme: Scheme, device: Device = ANY_CPU) -> ExportPlan:
        """Decide every tensor of the artifact from metadata alone: no weight is read, nothing is written.

        Raises:
            UsageError: The scheme contradicts itself or the shapes (a group size that does not divide).
            UnsupportedError: This container cannot hold what is asked, or not for this device; see `unsupported`.
        """
        ...

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
        """Write the artifact's files into an empty `directory`, tensor by tensor in row chunks.

        Args:
            checkpoint: The source.
            plan: What `plan` decided.
            directory: Empty, or what earlier attempts with the same journal left.
            quantize: Brings rows onto a grid.
            journal: Remembers which tensors are whole; these are neither read nor quantized again. All else is made
                anew, and the files are those of an undisturbed export.
            threads: Workers that read and quantize; None leaves it to the exporter. They do not change the files.

        Raises:
            StepError: The weights hold what cannot be exported (NaN, infinity, fp16 overflow).
        """
        ...

    def size(self, checkpoint: Checkpoint, plan: ExportPlan) -> int:
        """Predict the bytes of the artifact, all files with manifest.json and SHA256SUMS, within 1 %.

        Metadata and tokenizer files alone are looked at; nothing is written and no framework is imported.
        """
        ...

    def tool_versions(self) -> Mapping[str, str]:
        """Return name and version of every library that touches the bytes."""
        ...


def unknown_provider(container: str, provider: str, providers: Mapping[str, str], refused: Mapping[str, str]) -> str:
    """Return why a container is not made for `provider`.

    Args:
        container: The format's name, to begin a sentence with.
        provider: One that is not in `providers`.
        providers: Those that it is made for.
        refused: Those known not to work, with the reason and the way out.
    """
    if provider in refused:
        return f"{container} is not exported for {provider}: {refused[provider]}"
    return f"{container} is not exported for {provider!r}, which it does not know; {nearest(provider, providers)}"


def unknown_precision(
    container: str, scheme: Scheme, precisions: Mapping[str, str], instead: Mapping[str, str]
) -> str | None:
    """Return which precision of `scheme` a container lacks and what to use, or None when it lacks none."""
    for precision in scheme.precisions:
        if precision not in precisions:
            hint = f"use {instead[precision]}, the nearest it has" if precision in instead else None
            return f"{container} does not hold {precision}; {hint or nearest(precision, precisions)}"
    return None
