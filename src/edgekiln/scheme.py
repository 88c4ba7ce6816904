"""A scheme: how the weights of a checkpoint are to be stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Precisions that name an intent; each container says what it makes of them.
GENERIC_PRECISIONS: Final = ("fp16", "int8", "int4", "nf4")


@dataclass(frozen=True)
class Scheme:
    """What is asked of an exporter.

    Attributes:
        precision: `fp16`, `int8`, `int4`, `nf4`, or a container's own (`q4_k_m`).
        group_size: Weights that share a scale; None leaves it to the container.
        symmetric: No zero points.
        embedding_precision: Precision of the embeddings; None leaves it to the container.
        head_precision: Precision of the output head; None leaves it to the container.
        embedding_group_size: Group size of embeddings and head; None means that of the other weights where the
            precision is the same, else the container's own.
    """

    precision: str
    group_size: int | None = None
    symmetric: bool = True
    embedding_precision: str | None = None
    head_precision: str | None = None
    embedding_group_size: int | None = None
