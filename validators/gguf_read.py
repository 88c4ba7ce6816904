"""Bounded reading of a GGUF file's header: metadata and where each tensor lies, without a byte of its data.

The format is that of ggml's docs/gguf.md, versions 2 and 3. A file is hostile input: counts and lengths are
checked against the size of the file before anything is taken from it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from edgekiln.errors import ArtifactError

_MAGIC: Final = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS: Final = MappingProxyType(
    {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
)
_FLOATS: Final = frozenset({6, 12})
_MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
#: ggml refuses longer keys; it bounds what one entry can cost.
_MAX_KEY_BYTES: Final = 65535
#: A chat template, the longest string of a sound file, has a few kilobytes.
_MAX_STRING_BYTES: Final = 16 << 20
_MAX_NESTING: Final = 4
#: No vocabulary has more tokens or merges; a count below it that the file cannot hold is likelier cut off than a lie.
_PLAUSIBLE_COUNT: Final = 1 << 24


class TruncatedError(ArtifactError):
    """A file ends before its header does."""


@dataclass(frozen=True)
class ArrayLength:
    """An array of the metadata, of which only the length is kept, and what its elements are."""

    length: int
    elements: str = field(default="values", compare=False)


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies.

    Attributes:
        name: Name in the file.
        shape: Row-major: [rows, columns].
        type_id: `GGMLQuantizationType`.
        offset: Position of the first byte in the file.
        nbytes: Length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        metadata: Scalars and strings by key; arrays as `ArrayLength`.
        tensors: All tensors, in the file's order.
        file_size: Bytes.
        data_start: Position of the first byte behind the header, aligned, where the first tensor must begin.
    """

    metadata: Mapping[str, object]
    tensors: tuple[GgufTensor, ...]
    file_size: int
    data_start: int


def is_gguf(path: Path) -> bool:
    """Tell whether a file begins with GGUF's magic."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


class _Cursor:
    """Reads little-endian values, never more than the file has."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if 0 <= count <= self.size - self.file.tell() else b""
        if len(data) != count:
            raise TruncatedError(f"{self.path} is truncated: its header goes beyond its {self.size} bytes")
        return data

    def scalar(self, layout: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def count(self, smallest: int) -> int:
        """Read a 64-bit count of things that have at least `smallest` bytes each."""
        value = int(self.scalar("<Q"))
        if value * smallest > self.size:
            fault = TruncatedError if value <= _PLAUSIBLE_COUNT else ArtifactError
            raise fault(f"{self.path} claims {value} entries, more than its {self.size} bytes can hold")
        return value

    def text(self, limit: int) -> str:
        length = int(self.scalar("<Q"))
        if length > limit:
            raise ArtifactError(f"{self.path} has a string of {length} bytes in its header, where {limit} are allowed")
        return self.take(length).decode("utf-8", errors="replace")

    def skip(self, count: int) -> None:
        if not 0 <= count <= self.size - self.file.tell():
            raise TruncatedError(f"{self.path} is truncated: its header goes beyond its {self.size} bytes")
        self.file.seek(count, 1)

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings; a vocabulary has hundreds of thousands, so this is one plain loop."""
        read, seek, at = self.file.read, self.file.seek, self.file.tell()
        for _ in range(count):
            length = read(8)
            at += 8 + int.from_bytes(length, "little")
            if len(length) < 8 or at > self.size:
                raise TruncatedError(f"{self.path} is truncated: its header goes beyond its {self.size} bytes")
            seek(at)


def _array(cursor: _Cursor, depth: int) -> ArrayLength:
    element = int(cursor.scalar("<I"))
    if element in _SCALARS:
        size = struct.calcsize(_SCALARS[element])
        length = cursor.count(size)
        cursor.skip(length * size)
        return ArrayLength(length, "floats" if element in _FLOATS else "booleans" if element == 7 else "integers")
    length = cursor.count(8)
    if element == _STRING:
        cursor.skip_strings(length)
        return ArrayLength(length, "strings")
    for _ in range(length):
        _value(cursor, element, depth + 1)
    return ArrayLength(length, "arrays")


def _value(cursor: _Cursor, kind: int, depth: int = 0) -> object:
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text(_MAX_STRING_BYTES)
    if kind == _ARRAY and depth < _MAX_NESTING:
        return _array(cursor, depth)
    raise ArtifactError(f"{cursor.path} has a metadata value of unknown type {kind}")


def _tensor_bytes(path: Path, name: str, shape: tuple[int, ...], type_id: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
    except (ValueError, KeyError):
        raise ArtifactError(f"{path}: {name} has the unknown tensor type {type_id}") from None
    if shape[-1] % block:
        raise ArtifactError(f"{path}: {name} has rows of {shape[-1]}, which do not divide by its block of {block}")
    return math.prod(shape) // int(block) * int(size)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(_MAX_KEY_BYTES)
    dimensions = int(cursor.scalar("<I"))
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ArtifactError(f"{cursor.path}: {name} has {dimensions} dimensions, where 1 to 4 are allowed")
    extents = [int(cursor.scalar("<Q")) for _ in range(dimensions)]
    if not all(extents) or math.prod(extents) > 1 << 62:
        raise ArtifactError(f"{cursor.path}: {name} has the impossible shape {extents}")
    return name, tuple(reversed(extents)), int(cursor.scalar("<I")), int(cursor.scalar("<Q"))


def _tensors(cursor: _Cursor, count: int, metadata: Mapping[str, object]) -> tuple[tuple[GgufTensor, ...], int]:
    """Return the tensors, and where the data begins."""
    entries = [_tensor_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ArtifactError(f"{cursor.path} has general.alignment {alignment!r}, which must be a positive integer")
    start = -(-cursor.file.tell() // alignment) * alignment
    tensors = tuple(
        GgufTensor(name, shape, kind, start + offset, _tensor_bytes(cursor.path, name, shape, kind))
        for name, shape, kind, offset in entries
    )
    return tensors, start


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        ArtifactError: It is no GGUF file of version 2 or 3, truncated, or contradicts itself.
    """
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns, status.st_ino)


# Several checks of one task want it, and a large vocabulary takes 0.2 s. What tells one content of a file from another
# is part of the key; one split into more files than this is merely read again.
@functools.lru_cache(maxsize=8)
def _read(path: Path, size: int, mtime_ns: int, inode: int) -> GgufHeader:  # noqa: ARG001 - the key of the cache
    with path.open("rb") as file:
        cursor = _Cursor(path, file, size)
        if cursor.take(4) != _MAGIC:
            raise ArtifactError(f"{path} is no GGUF file")
        version = int(cursor.scalar("<I"))
        if version not in {2, 3}:
            raise ArtifactError(f"{path} has GGUF version {version}; 2 and 3 are known (big-endian files are not read)")
        tensor_count = cursor.count(24)
        metadata: dict[str, object] = {}
        for _ in range(cursor.count(13)):
            key = cursor.text(_MAX_KEY_BYTES)
            metadata[key] = _value(cursor, int(cursor.scalar("<I")))
        tensors, start = _tensors(cursor, tensor_count, metadata)
        return GgufHeader(MappingProxyType(metadata), tensors, size, start)
