"""A weight of an artifact: what one operator reads as one matrix or vector, whatever it is stored as.

Its values are given in ranges of rows, so that no big matrix is ever held in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError

#: What is done with it: `embedding` is looked up, `head` makes the logits.
Use: TypeAlias = Literal["embedding", "head", "matrix", "vector"]
#: What tells bytes from others: a file and an offset in it, or the name of an initializer inside the graph.
Place: TypeAlias = tuple[str, int]
#: float32 [stop - start, columns] of rows [start, stop); of a vector [1, n] whatever the range.
Rows: TypeAlias = Callable[[int, int], NDArray[np.float32]]
#: What the type's own rounding makes of rows, float32 in and out, both [rows, columns].
Rounding: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Weight:
    """One weight.

    Attributes:
        name: In the artifact; of the codes, where it has scales beside them.
        shape: [rows, columns], where the columns are what a row of activations is multiplied with; or [n].
        type: `q4_0`, `f16` of GGUF; `int4`, `nf4`, `fp16` of ONNX.
        use: What is done with it.
        parts: Bytes at each place; weights that share a place share its bytes.
        rows: Gives the values.
        rounding: Gives what rounding to this type makes of others.
        group: Weights in a row that share a scale; 1 for plain numbers.
        unreadable: Why its values cannot be given; None when they can.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    use: Use
    parts: tuple[tuple[Place, int], ...]
    rows: Rows = field(repr=False, compare=False)
    rounding: Rounding = field(repr=False, compare=False)
    group: int = 1
    unreadable: str | None = None

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def place(self) -> Place:
        """Where its codes or numbers lie."""
        return self.parts[0][0]

    @property
    def nbytes(self) -> int:
        """Bytes with scales and offsets."""
        return sum(size for _, size in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """With scales and offsets."""
        return self.nbytes * 8 / self.weights

    @property
    def is_float(self) -> bool:
        """Whether it is plain numbers."""
        return self.type in FLOAT_TYPES


#: Names of plain numbers, in GGUF and in ONNX.
FLOAT_TYPES = frozenset({"f64", "f32", "f16", "bf16", "fp64", "fp32", "fp16"})


def read_at(path: Path, ranges: list[tuple[int, int]]) -> bytearray:
    """Return the bytes of (offset, length) ranges of a file, one after the other.

    Raises:
        ArtifactError: The file ends before, or cannot be read.
    """
    data = bytearray(sum(length for _, length in ranges))
    view, done = memoryview(data), 0
    try:
        with path.open("rb", buffering=0) as file:
            for offset, length in ranges:
                file.seek(offset)
                end = done + length
                while done < end:
                    count = file.readinto(view[done:end])
                    if not count:
                        raise ArtifactError(f"{path} ends before byte {offset + length}; fetch or export it again")
                    done += count
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    return data


def bfloat16_to_float32(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 words as float32, without loss."""
    return np.left_shift(raw, np.uint32(16), dtype=np.uint32).view(np.float32)


def round_to_bfloat16(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 rows rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def round_to_float16(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 rows rounded to float16; what is too large is infinite."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16).astype(np.float32)


def unchanged(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows as they are: float32 holds them."""
    return rows
