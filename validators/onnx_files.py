"""Where an ONNX decoder's tensors lie: bounded, inside the artifact, and each as long as its shape needs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.validators.faults import FaultError, shown

#: A part of a data file: its path with links followed, the first byte, the number of bytes.
Region: TypeAlias = tuple[Path, int, int]
#: No file system of ours takes a longer path; 255 bytes is what most take for a name.
_MAX_PATH: Final = 1024
#: Far more than any operator takes; it bounds the arithmetic on a hostile shape.
_MAX_DIMENSIONS: Final = 64
_MAX_ELEMENTS: Final = 1 << 62
#: An offset or length as ONNX writes it: 19 digits hold any 64-bit number.
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)


def decoder_path(directory: Path, genai: Mapping[str, Any]) -> Path:
    """Return the decoder's graph, which must lie inside the directory.

    Raises:
        ArtifactError: It does not, or is missing.
    """
    decoder = genai.get("model", {}).get("decoder", {}) if isinstance(genai.get("model"), dict) else {}
    name = decoder.get("filename", "model.onnx") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or _inside(directory, directory, name) is None:
        detail = f"genai_config.json names the decoder {shown(name)}, which is no file inside the directory"
        raise FaultError("files/outside", "model.decoder.filename", detail)
    if not (directory / name).is_file():
        raise FaultError("files/missing", name, f"{name} is missing, though genai_config.json names it as the decoder")
    return directory / name


def _inside(root: Path, folder: Path, name: str) -> Path | None:
    """Return what `name` in `folder` is, links followed, or None where that leaves `root` or is no path at all."""
    if not 0 < len(name) <= _MAX_PATH or Path(name).is_absolute():
        return None
    try:
        resolved = (folder / name).resolve()
        return resolved if resolved.is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        return None


def _initializers(graph: Any) -> Iterator[Any]:
    """Yield the initializers of a graph and of every graph in its nodes' attributes, and their external tensors."""
    from onnx import TensorProto

    pending = [graph]
    while pending:
        current = pending.pop()
        yield from current.initializer
        for node in current.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += list(attribute.graphs)
                constants = (attribute.t, *attribute.tensors)
                yield from (tensor for tensor in constants if tensor.data_location == TensorProto.EXTERNAL)


def tensor_nbytes(tensor: Any) -> int:
    """Return the bytes that a tensor's type and shape need.

    Raises:
        ArtifactError: The type is unknown, or the shape impossible.
    """
    from onnx import TensorProto, helper

    if len(tensor.dims) > _MAX_DIMENSIONS:
        detail = f"{tensor.name} has {len(tensor.dims)} dimensions, where {_MAX_DIMENSIONS} are allowed"
        raise FaultError("onnx/data", tensor.name, detail)
    elements = math.prod(tensor.dims)
    if any(extent < 0 for extent in tensor.dims) or elements > _MAX_ELEMENTS:
        raise FaultError("onnx/data", tensor.name, f"{tensor.name} has the impossible shape {list(tensor.dims)}")
    sub_byte = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}
    try:
        bits = sub_byte.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, TypeError, ValueError):
        detail = f"{tensor.name} has the unknown data type {tensor.data_type}"
        raise FaultError("onnx/data", tensor.name, detail) from None
    return int(-(-elements * bits // 8))


def _number(tensor: Any, key: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        detail = f"{tensor.name} has the {key} {text[:40]!r}, which is no number of bytes"
        raise FaultError("onnx/data", tensor.name, detail)
    return int(text)


def external_region(root: Path, folder: Path, tensor: Any, nbytes: int) -> Region:
    """Return where a tensor of `nbytes` bytes lies.

    Args:
        root: The artifact, which data files must not leave.
        folder: Of the model file; data files are named relative to it.
        tensor: A TensorProto with external data.
        nbytes: What its type and shape need.

    Raises:
        ArtifactError: That is outside the artifact or its file, or of another length.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(value, str) for value in fields.values()):  # protobuf gives text that is not UTF-8 as bytes
        raise FaultError("onnx/data", tensor.name, f"{tensor.name} lies in a file whose name is not UTF-8")
    location = fields.get("location", "")
    offset = _number(tensor, "offset", fields.get("offset", "0"))
    length = _number(tensor, "length", fields.get("length", str(nbytes)))
    path = _inside(root, folder, location)
    if path is None:
        detail = f"{tensor.name} points to {location[:200]!r}, outside the artifact's directory"
        raise FaultError("files/outside", tensor.name, detail)
    if not path.is_file():
        raise FaultError("files/missing", location, f"{location} is missing, though {tensor.name} lies in it")
    size = path.stat().st_size
    if length != nbytes or offset + length > size:
        detail = (
            f"{tensor.name} needs {nbytes} bytes at byte {offset} of {location}, "
            f"which has {size} bytes (the graph says {length})"
        )
        raise FaultError("onnx/data" if length != nbytes else "files/truncated", tensor.name, detail)
    return path, offset, length


def external_regions(root: Path, folder: Path, model: Any) -> tuple[dict[Region, str], int]:
    """Return the regions of data files that tensors lie in, and the bytes of the tensors inside the graph.

    Raises:
        ArtifactError: A region is outside the artifact, its file, or of another length than its tensor.
    """
    from onnx import TensorProto

    regions: dict[Region, str] = {}
    inline = 0
    for tensor in _initializers(model.graph):
        nbytes = tensor_nbytes(tensor)
        if tensor.data_location != TensorProto.EXTERNAL:
            inline += nbytes
        else:
            regions[external_region(root, folder, tensor, nbytes)] = tensor.name
    return regions, inline


def check_overlap(regions: Mapping[Region, str]) -> None:
    """Refuse tensors that share a part, but not all, of their bytes.

    Raises:
        ArtifactError: Two do.
    """
    ordered = sorted(regions)
    for (file, start, length), after in itertools.pairwise(ordered):
        if file == after[0] and start + length > after[1]:
            names = regions[file, start, length], regions[after]
            raise FaultError("onnx/overlap", names[0], f"{names[0]} and {names[1]} overlap in {file.name}")


def read_rows(root: Path, folder: Path, tensor: Any, rows: Sequence[int]) -> NDArray[np.float64] | None:
    """Return some rows of a matrix of floating-point numbers, float64 [rows, columns]; None where it is none.

    Args:
        root: The artifact, which data files must not leave.
        folder: Of the model file.
        tensor: A TensorProto of two dimensions.
        rows: Positions in its first dimension.

    Raises:
        ArtifactError: Its data lie where they must not.
        ValueError: What it has inside the graph does not fit its shape.
    """
    from onnx import TensorProto, helper, numpy_helper

    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    if tensor.data_type not in floats or len(tensor.dims) != 2:
        return None
    nbytes = tensor_nbytes(tensor)
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor)[list(rows)], np.float64)
    path, offset, _ = external_region(root, folder, tensor, nbytes)
    dtype, columns = helper.tensor_dtype_to_np_dtype(tensor.data_type), int(tensor.dims[1])
    width = dtype.itemsize * columns
    with path.open("rb") as file:
        parts = []
        for row in rows:
            file.seek(offset + row * width)
            parts.append(file.read(width))
    return np.frombuffer(b"".join(parts), dtype).reshape(len(rows), columns).astype(np.float64)
