"""The bytes before a GGUF file's tensor data.

The format is in ggml's docs/gguf.md: magic, version, counts, key-value pairs, tensor infos, all little-endian. The
keys and their types come from `gguf.GGUFWriter`; packing is done here because its own packs element by element,
which takes seconds for a vocabulary of 150,000 tokens.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekiln.errors import StepError

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file.

    Attributes:
        name: Its name in GGUF.
        shape: Row-major; the file has the dimensions reversed.
        ggml_type: Its name in `gguf.GGMLQuantizationType`.
        nbytes: Length of its data.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: str
    nbytes: int


def place(tensors: Sequence[TensorEntry], align: int) -> list[int]:
    """Return the offset of every tensor from the first one, and that of the end: multiples of the alignment."""
    lengths = (tensor.nbytes + -tensor.nbytes % align for tensor in tensors)
    return list(itertools.accumulate(lengths, initial=0))


def pack_header(writer: GGUFWriter, tensors: Sequence[TensorEntry]) -> bytes:
    """Return everything before the data, padded to where the data begins.

    Args:
        writer: Holds the key-value pairs; it is not asked to write.
        tensors: In the order of their data, each of which begins at a multiple of the alignment.
    """
    from gguf import GGUF_MAGIC, GGUF_VERSION

    pairs, align = writer.kv_data[0], writer.data_alignment
    parts = [struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), len(pairs))]
    for key, pair in pairs.items():
        parts.append(_string(key))
        parts.extend(_value(key, pair.value, int(pair.type)))
    parts.extend(_infos(tensors, align))
    header = b"".join(parts)
    return header + bytes(-len(header) % align)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _strings(texts: Sequence[str]) -> bytes:
    """Return many strings, each behind its length; a vocabulary with its merges has 300,000."""
    data = list(map(str.encode, texts))
    lengths = map(struct.Struct("<Q").pack, map(len, data))
    return b"".join(itertools.chain.from_iterable(zip(lengths, data, strict=True)))


def _value(key: str, value: object, kind: int) -> Iterable[bytes]:
    """Yield a value with the number of its type before it."""
    from gguf import GGUFValueType as Kind

    yield struct.pack("<I", kind)
    scalars = {Kind.UINT16: "<H", Kind.UINT32: "<I", Kind.INT32: "<i", Kind.FLOAT32: "<f", Kind.BOOL: "<?"}
    if kind in scalars:
        yield struct.pack(scalars[Kind(kind)], value)
    elif isinstance(value, str):
        yield _string(value)
    elif isinstance(value, Sequence) and set(map(type, value)) <= {str}:
        yield struct.pack("<IQ", Kind.STRING, len(value))
        yield _strings(value)
    elif isinstance(value, Sequence) and set(map(type, value)) <= {int}:
        yield struct.pack("<IQ", Kind.INT32, len(value))
        yield np.asarray(value, dtype="<i4").tobytes()
    else:
        raise StepError(f"the metadata key {key} has a value that GGUF export cannot pack: {type(value).__name__}")


def _infos(tensors: Sequence[TensorEntry], align: int) -> Iterable[bytes]:
    """Yield the tensor infos, offsets counted from the first tensor."""
    from gguf import GGMLQuantizationType

    for tensor, offset in zip(tensors, place(tensors, align), strict=False):
        dimensions = tensor.shape[::-1]
        yield _string(tensor.name)
        yield struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        yield struct.pack("<IQ", GGMLQuantizationType[tensor.ggml_type], offset)
