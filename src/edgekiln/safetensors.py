"""Lazy, bounded reading of safetensors files.

The format: eight bytes of little-endian header length, a JSON header, then the data of all tensors without
gaps (https://github.com/huggingface/safetensors). A file is hostile input: the header is bounded and every
offset is checked before a byte of data is read. Data is read with `pread` rather than mapped, so that pages of a
large checkpoint do not count as the memory of this process.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import CheckpointError
from edgekiln.files import open_regular, parse_json, read_fault

#: The reference implementation allows 100 MB, which Python's JSON parser can turn into gigabytes; the largest Qwen,
#: with 36,000 tensors in all its shards, needs 5 MB.
MAX_HEADER_BYTES = 32 << 20
#: With the former it bounds time and memory spent on a header made to waste them: about 2 s and 200 MB.
MAX_TENSORS = 100_000
#: Commas, colons and opening brackets of one entry, with room for metadata.
_VALUES_PER_TENSOR = 16

_MAX_DIMENSIONS = 8

#: Bytes per element of the dtypes that a Qwen checkpoint holds its weights in.
FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies, as its header says.

    Attributes:
        name: Name in the checkpoint.
        dtype: `BF16`, `F16` or `F32`.
        shape: Row-major dimensions.
        path: The shard.
        offset: Position of the first byte in the shard.
        nbytes: Length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last; a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of the header; of two equal keys another reader might take the other."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _read_header(path: Path) -> tuple[object, int, int]:
    """Return the parsed header, the position of the data and the length of the data."""
    descriptor, size = open_regular(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is truncated: its header does not fit into its {size} bytes; fetch it again"
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} has a header of {length} bytes, more than the {MAX_HEADER_BYTES} that Edgekiln reads; "
                    "no Qwen needs a tenth of that, so it is not a usable checkpoint"
                )
            raw = file.read(length)
    except OSError as error:
        raise read_fault(path, error) from None
    try:
        header = parse_json(raw, _VALUES_PER_TENSOR * MAX_TENSORS, _unique)
    except ValueError as error:  # also an integer of thousands of digits
        raise CheckpointError(f"{path} has an unreadable safetensors header ({error}); fetch it again") from None
    return header, 8 + length, size - 8 - length


def _parse_entry(path: Path, name: str, entry: object, data_start: int, data_size: int) -> TensorInfo:
    """Check one header entry and turn it into a value."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise CheckpointError(f"{path}: the header entry of {name} is malformed; fetch the file again")
    if dtype not in FLOAT_BYTES:
        raise CheckpointError(
            f"{path}: {name} has dtype {dtype}, but Edgekiln reads {', '.join(FLOAT_BYTES)}; "
            "start from the unquantized checkpoint"
        )
    if not 0 < len(shape) <= _MAX_DIMENSIONS or not all(type(d) is int and 0 < d <= data_size for d in shape):
        raise CheckpointError(f"{path}: {name} has shape {str(shape)[:80]}, but needs a few positive dimensions")
    if math.prod(shape) * FLOAT_BYTES[dtype] != stop - start:
        raise CheckpointError(f"{path}: {name} says {shape} {dtype} but holds {stop - start} bytes; fetch it again")
    if not 0 <= start <= stop <= data_size:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {data_start + stop}, "
            f"but the file has {data_start + data_size}; fetch it again"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + start, stop - start)


def read_entries(path: Path) -> tuple[dict[str, object], int, int]:
    """Return the tensor entries of a header as they are, the position of the data and its length.

    Names are unique and their number is bounded; nothing else about an entry is checked.

    Raises:
        CheckpointError: The file is no regular one, or its header is truncated, too long or no table of tensors.
    """
    header, data_start, data_size = _read_header(path)
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a safetensors header that is no table of tensors; fetch it again")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} lists {len(header)} tensors, more than the {MAX_TENSORS} that Edgekiln reads")
    header.pop("__metadata__", None)
    return header, data_start, data_size


def read_index(path: Path) -> Mapping[str, TensorInfo]:
    """Return what one safetensors file holds, in the order of its data.

    Raises:
        CheckpointError: The file is truncated, malformed, or its tensors overlap or leave gaps.
    """
    entries, data_start, data_size = read_entries(path)
    tensors = [_parse_entry(path, name, entry, data_start, data_size) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.name))
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise CheckpointError(
                f"{path}: {tensor.name} begins at byte {tensor.offset} where {position} was expected: "
                "tensors overlap or leave a gap; fetch the file again"
            )
        position += tensor.nbytes
    if position != data_start + data_size:
        raise CheckpointError(f"{path} has {data_start + data_size - position} bytes behind its last tensor")
    return MappingProxyType({tensor.name: tensor for tensor in tensors})


def widen(raw: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    """Return `raw`, as `TensorReader.raw_rows` gives it, as float32 without loss.

    Args:
        raw: uint16 for BF16 (the upper half of a float32), else float16 or float32.
        dtype: `BF16`, `F16` or `F32`.
    """
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32)


_RAW_DTYPE: Mapping[str, np.dtype[np.generic]] = MappingProxyType(
    {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
)


class TensorReader:
    """Reads rows of tensors from any number of shards; safe to share between threads.

    Use as a context manager: it keeps the files open between reads.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path], _ = open_regular(path)
            return self._files[path]

    def _read_into(self, descriptor: int, view: memoryview, offset: int) -> int:
        """Read some bytes at `offset` and return how many; 0 at the end of the file."""
        if hasattr(os, "preadv"):
            return int(os.preadv(descriptor, [view], offset))
        with self._lock:  # Windows has no positional read: one reader at a time
            os.lseek(descriptor, offset, os.SEEK_SET)
            piece = os.read(descriptor, len(view))
        view[: len(piece)] = piece
        return len(piece)

    def _pread(self, path: Path, length: int, offset: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        descriptor = self._descriptor(path)
        done = 0
        while done < length:
            try:
                count = self._read_into(descriptor, view[done:], offset + done)
            except OSError as error:
                raise read_fault(path, error) from None
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read; build again when nothing writes to it")
            done += count
        return data

    def raw_rows(self, tensor: TensorInfo, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows [start, stop) as stored: uint16 for BF16, else float16 or float32; shape [rows, columns]."""
        row_bytes = tensor.columns * FLOAT_BYTES[tensor.dtype]
        data = self._pread(tensor.path, (stop - start) * row_bytes, tensor.offset + start * row_bytes)
        return np.frombuffer(data, _RAW_DTYPE[tensor.dtype]).reshape(stop - start, tensor.columns)

    def rows(self, tensor: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop) as float32, shape [stop - start, columns]."""
        return widen(self.raw_rows(tensor, start, stop), tensor.dtype)
