"""Initializers of an ONNX graph as bytes that are read in ranges, and what each type of bytes stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.validators.onnx_files import external_region, tensor_nbytes
from edgekiln.validators.weights import (
    Place,
    Rounding,
    bfloat16_to_float32,
    read_at,
    round_to_bfloat16,
    round_to_float16,
    unchanged,
)

#: By the name of TensorProto.DataType: our name, and the numpy layout of one element.
FLOATS: Final[Mapping[str, tuple[str, str, Rounding]]] = MappingProxyType(
    {
        "FLOAT": ("fp32", "<f4", unchanged),
        "FLOAT16": ("fp16", "<f2", round_to_float16),
        "BFLOAT16": ("bf16", "<u2", round_to_bfloat16),
        "DOUBLE": ("fp64", "<f8", unchanged),
    }
)
#: By the name of TensorProto.DataType: bits of one code, whether it is signed.
CODES: Final[Mapping[str, tuple[int, bool]]] = MappingProxyType(
    {
        "UINT8": (8, False),
        "INT8": (8, True),
        "UINT4": (4, False),
        "INT4": (4, True),
        "UINT2": (2, False),
        "INT2": (2, True),
    }
)


@dataclass(frozen=True)
class Part:
    """One initializer.

    Attributes:
        name: In the graph.
        type: Name of its TensorProto.DataType.
        shape: As stored.
        place: What tells its bytes from others.
        nbytes: Length.
        path: The data file; None where the bytes are in the graph.
        inline: Those bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    place: Place
    nbytes: int
    path: Path | None
    inline: bytes = field(default=b"", repr=False)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it is plain numbers."""
        return self.type in FLOATS

    def read(self, ranges: list[tuple[int, int]]) -> NDArray[np.uint8]:
        """Return the bytes of (offset, length) ranges, one after the other."""
        if any(start < 0 or length < 0 or start + length > self.nbytes for start, length in ranges):
            raise ArtifactError(f"{self.name} has {self.nbytes} bytes, fewer than its operator reads")
        if self.path is not None:
            return np.frombuffer(read_at(self.path, [(self.place[1] + s, n) for s, n in ranges]), np.uint8)
        data = np.frombuffer(self.inline, np.uint8)
        if data.size < self.nbytes:
            raise ArtifactError(f"{self.name} needs {self.nbytes} bytes, but the graph has {data.size} of it")
        pieces = [data[start : start + length] for start, length in ranges]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def floats(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return numbers [start, stop) of the flattened tensor."""
        return self.float_block(stop - start, 0, 1, 0, stop - start, start).reshape(-1)

    def float_block(
        self, width: int, first: int, last: int, left: int, right: int, skip: int = 0
    ) -> NDArray[np.float32]:
        """Return numbers of a table with `width` columns: rows [first, last), columns [left, right), as float32.

        Args:
            width: Columns of the table.
            first: First row.
            last: Behind the last row.
            left: First column.
            right: Behind the last column.
            skip: Numbers before the table.

        Raises:
            ArtifactError: It is not stored in plain numbers, or has fewer.
        """
        if self.type not in FLOATS:
            raise ArtifactError(f"{self.name} is {self.type}, where its operator takes floating point")
        layout = np.dtype(FLOATS[self.type][1])
        ranges = _ranges(width * layout.itemsize, first, last, left * layout.itemsize, right * layout.itemsize)
        raw = self.read([(skip * layout.itemsize + start, length) for start, length in ranges]).view(layout)
        values = bfloat16_to_float32(raw) if self.type == "BFLOAT16" else raw.astype(np.float32, copy=False)
        return values.reshape(last - first, right - left)

    def code_block(self, bits: int, width: int, first: int, last: int, left: int, right: int) -> NDArray[np.uint8]:
        """Return codes of a table, one per byte; see `float_block`. The first code of a byte is in its low bits."""
        per_byte = 8 // bits
        if width % per_byte:  # rows do not begin at a byte: take whole ones
            start, stop = first * width, last * width
            packed = self.read([(start // per_byte, -(-stop // per_byte) - start // per_byte)])
            flat = unpack(packed, bits)[start % per_byte :][: stop - start]
            return flat.reshape(last - first, width)[:, left:right]
        low, high = left // per_byte, -(-right // per_byte)
        packed = self.read(_ranges(width // per_byte, first, last, low, high))
        rows = unpack(packed, bits).reshape(last - first, (high - low) * per_byte)
        return rows[:, left - low * per_byte : right - low * per_byte]


def _ranges(width: int, first: int, last: int, left: int, right: int) -> list[tuple[int, int]]:
    """Return (offset, length) of a block in a table of `width` bytes per row."""
    if (left, right) == (0, width):
        return [(first * width, (last - first) * width)]
    return [(row * width + left, right - left) for row in range(first, last)]


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return one code per byte of a flat array; the first of a byte is in its low bits."""
    if bits == 8:
        return packed
    codes = np.empty((packed.size, 8 // bits), np.uint8)
    for position in range(8 // bits):
        codes[:, position] = (packed >> np.uint8(position * bits)) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Return two's-complement codes as signed numbers."""
    half = 1 << (bits - 1)
    return ((codes ^ np.uint8(half)).astype(np.int16) - half).astype(np.int8)


def read_parts(root: Path, folder: Path, model: Any) -> dict[str, Part]:
    """Return the initializers of a graph, and the tensors of its Constant nodes under the names of their outputs.

    Args:
        root: The artifact's directory, which data files must not leave.
        folder: Of the graph's file; data files are named relative to it.
        model: A ModelProto without its data.

    Raises:
        ArtifactError: A data file is outside the artifact or too short, or a tensor is impossible.
    """
    found = {str(tensor.name): _part(root, folder, tensor, str(tensor.name)) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    name = str(node.output[0])
                    found[name] = _part(root, folder, attribute.t, name)
    return found


def _part(root: Path, folder: Path, tensor: Any, name: str) -> Part:
    from onnx import TensorProto

    nbytes, kind = tensor_nbytes(tensor), str(TensorProto.DataType.Name(tensor.data_type))
    shape = tuple(int(extent) for extent in tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        path, offset, _ = external_region(root, folder, tensor, nbytes)
        return Part(name, kind, shape, (str(path), offset), nbytes, path)
    return Part(name, kind, shape, (name, -1), nbytes, None, _inline(tensor, kind))


def _inline(tensor: Any, kind: str) -> bytes:
    """Return the bytes of a tensor inside the graph; too few where it contradicts itself."""
    from onnx import numpy_helper

    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if CODES.get(kind, (8, False))[0] < 8:  # packed, one byte per entry
        return bytes(value & 0xFF for value in tensor.int32_data)
    try:
        return bytes(numpy_helper.to_array(tensor).tobytes())
    except (ValueError, TypeError):
        return b""
