"""Where the bytes of an ONNX artifact lie: the initializers of each planned tensor and their place in the data file.

A logical weight becomes one to three initializers (codes, scales, zero points). A tied embedding is the head's codes
under a second name and shape at the same place, so its bytes are written once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from edgekiln.exporters.base import TensorPlan
from edgekiln.exporters.shards import divide, numbered
from edgekiln.grids import CodebookGrid, FloatDtype, Grid, IntegerGrid
from edgekiln.journal import Extent, Layout

DATA_STEM: Final = "model"
DATA_ENDING: Final = ".onnx.data"
#: Computed from the configuration, not read from the checkpoint.
ROTARY_TABLES: Final = ("model.rotary_emb.cos_cache", "model.rotary_emb.sin_cache")
#: Kernels read whole cache lines, and a mapped file begins on a page.
ALIGNMENT: Final = 64

Role: TypeAlias = Literal["values", "codes", "scales", "zero_points", "absmax"]
_ITEM_BYTES: Final[Mapping[str, int]] = {"uint8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Part:
    """One initializer.

    Attributes:
        role: What it holds.
        dtype: `uint8`, `float16` or `float32`.
        shape: Shape of the whole initializer.
        file: The data file.
        offset: Position in it.
    """

    role: Role
    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Placed:
    """A planned tensor with its initializers."""

    plan: TensorPlan
    parts: Mapping[Role, Part]


def parts_of(storage: Grid | FloatDtype, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """Return the initializers that a tensor needs, without a place.

    Shapes are those of MatMulNBits (codes [N, groups, bytes per group], scales [N, groups], zero points packed per
    row), of QMoE for experts (codes [E, N, bytes per row], scales [E, N, groups], zero points likewise) and of
    MatMulBnb4 (flat codes and absmax).
    """
    match storage:
        case "float16" | "float32":
            return (Part("values", storage, shape),)
        case IntegerGrid(bits, group_size, symmetric, scale_dtype):
            *rows, columns = shape
            groups, group_bytes = columns // group_size, group_size * bits // 8
            in_row = (groups, group_bytes) if len(rows) == 1 else (groups * group_bytes,)
            codes = Part("codes", "uint8", (*rows, *in_row))
            scales = Part("scales", scale_dtype, (*rows, groups))
            if symmetric:
                return codes, scales
            return codes, scales, Part("zero_points", "uint8", (*rows, -(-groups * bits // 8)))
        case CodebookGrid(_, group_size, scale_dtype):
            weights = math.prod(shape)
            return Part("codes", "uint8", (weights // 2,)), Part("absmax", scale_dtype, (weights // group_size,))
        case _:
            raise TypeError(f"an ONNX file does not hold {storage}")


def stored_bytes(storage: Grid | FloatDtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor without alignment."""
    return sum(part.nbytes for part in parts_of(storage, shape))


def place(tensors: Sequence[TensorPlan], *, most: int | None = None, alignment: int = ALIGNMENT) -> dict[str, Placed]:
    """Give every initializer its place in a data file, in the order of the plan.

    Args:
        tensors: Of the artifact.
        most: Bytes of tensor data that a file may have, see `divide`.
        alignment: What offsets are multiples of.
    """
    divided = divide(tensors, most)
    placed: dict[str, Placed] = {}
    for file, inside in zip(numbered(DATA_STEM, DATA_ENDING, len(divided)), divided, strict=True):
        position = 0
        for tensor in inside:
            parts: dict[Role, Part] = {}
            for part in parts_of(tensor.storage, tensor.shape):
                position = -(-position // alignment) * alignment
                parts[part.role] = Part(part.role, part.dtype, part.shape, file, position)
                position += part.nbytes
            placed[tensor.name] = Placed(tensor, parts)
    return placed


def layout(placed: Mapping[str, Placed]) -> Layout:
    """Return the places of all parts in the data files."""
    extents = {
        name: tuple(Extent(part.file, part.offset, part.nbytes) for part in item.parts.values())
        for name, item in placed.items()
    }
    sizes: dict[str, int] = {}
    for extent in (extent for parts in extents.values() for extent in parts):
        sizes[extent.file] = max(sizes.get(extent.file, 0), extent.offset + extent.nbytes)
    return Layout(sizes, extents)
