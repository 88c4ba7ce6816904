"""The weights of a GGUF model, dequantized by ggml's own functions, whoever made the file.

A split model is read whole: llama.cpp names its files `<prefix>-00001-of-00003.gguf` and finds the others beside the
first (llama_split_path in llama.cpp's src/llama.cpp).
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import ArtifactError
from edgekiln.ggml_library import load_library
from edgekiln.validators.gguf_read import GgufTensor, read_header
from edgekiln.validators.weights import (
    Rounding,
    Use,
    Weight,
    bfloat16_to_float32,
    read_at,
    round_to_bfloat16,
    round_to_float16,
    unchanged,
)

#: llama.cpp's SPLIT_MAX; the number in `split.count` has 16 bits.
_MAX_PARTS: Final = 65535
_FIRST_PART: Final = re.compile(r"(.+)-00001-of-(\d{5})\.gguf", re.DOTALL)
_PLAIN: Final[dict[str, tuple[str, Rounding]]] = {
    "F64": ("<f8", unchanged),
    "F32": ("<f4", unchanged),
    "F16": ("<f2", round_to_float16),
    "BF16": ("<u2", round_to_bfloat16),
}
#: Weights that share a scale (and a minimum): sub-blocks of the K-quants, whole blocks of the rest.
_SUB_BLOCKS: Final = {"Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16, "IQ4_XS": 32}
_ROLES: Final[dict[str, Use]] = {"token_embd.weight": "embedding", "output.weight": "head"}


def split_paths(path: Path, count: object) -> tuple[Path, ...]:
    """Return the files of a model: one, or all parts of a split one.

    Args:
        path: The file that a runtime is given: of a split model the first.
        count: What its metadata says under `split.count`; None where it says nothing.

    Raises:
        ArtifactError: The number of parts is impossible, the name is not that of the first part, or one is missing.
    """
    if count in {None, 0, 1}:
        return (path,)
    if type(count) is not int or not 0 < count <= _MAX_PARTS:
        raise ArtifactError(f"split.count of {path.name} is {count!r}, which is no number of files")
    named = _FIRST_PART.fullmatch(path.name)
    if named is None or int(named[2]) != count:
        raise ArtifactError(
            f"{path.name} is the first of {count} files, which llama.cpp finds only when it is named "
            f"<prefix>-00001-of-{count:05d}.gguf; give it that name"
        )
    parts = [path.with_name(f"{named[1]}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ArtifactError(f"{missing[0]} is missing, one of the {count} files of {path.name}; put it beside it")
    return tuple(parts)


def gguf_weights(path: Path) -> tuple[Weight, ...]:
    """Return the weights of a GGUF model in the order of its files, without reading one.

    Raises:
        ArtifactError: A file is no sound GGUF file, or a part is missing.
    """
    first = read_header(path)
    paths = split_paths(path, first.metadata.get("split.count"))
    found: dict[str, Weight] = {}
    for part in paths:
        header = first if part == path else read_header(part)
        for tensor in header.tensors:
            if tensor.name in found:
                raise ArtifactError(f"{path.name} has two tensors named {tensor.name}")
            found[tensor.name] = _weight(part, tensor)
    return tuple(found.values())


def _weight(path: Path, tensor: GgufTensor) -> Weight:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(tensor.type_id)
    shape = tuple(extent for extent in tensor.shape if extent > 1) or (1,)
    if len(shape) > 2:
        shape = (int(np.prod(shape[:-1])), shape[-1])
    columns = shape[-1]
    use: Use = "vector" if len(shape) == 1 else _ROLES.get(tensor.name, "matrix")
    row_bytes = tensor.nbytes // (shape[0] if len(shape) > 1 else 1)
    decode: Callable[[NDArray[np.uint8], int], NDArray[np.float32]] = functools.partial(_plain, "<f4")
    rounding: Rounding = unchanged
    problem, group = None, 1
    if kind.name in _PLAIN:
        layout, rounding = _PLAIN[kind.name]
        decode = functools.partial(_plain, layout)
    elif (function := _to_float(tensor.type_id)) is not None:
        decode = functools.partial(_dequantized, function, row_bytes)
        rounding = functools.partial(_requantized, tensor.type_id, function, row_bytes)
        group = _SUB_BLOCKS.get(kind.name, int(GGML_QUANT_SIZES[kind][0]))
    else:
        problem = f"{kind.name} is no type of weights"

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        first, last = (start, stop) if len(shape) > 1 else (0, 1)
        data = read_at(path, [(tensor.offset + first * row_bytes, (last - first) * row_bytes)])
        return decode(np.frombuffer(data, np.uint8), columns)

    parts = (((path.name, tensor.offset), tensor.nbytes),)
    return Weight(tensor.name, shape, kind.name.lower(), use, parts, rows, rounding, group, problem)


def _plain(layout: str, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    raw = data.view(layout)
    values = bfloat16_to_float32(raw) if layout == "<u2" else raw.astype(np.float32, copy=False)
    return values.reshape(-1, columns)


@functools.cache
def _to_float(type_id: int) -> Callable[[int, int, int], None] | None:
    """Return ggml's function (blocks, values, number of weights) of a type; None where it has none."""
    library = load_library()
    name = library.ggml_type_name(type_id)
    found: Any = getattr(library, f"dequantize_row_{name.decode()}", None) if name else None
    if found is None:
        return None
    found.restype, found.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function: Callable[[int, int, int], None] = found
    return function


def _dequantized(
    function: Callable[[int, int, int], None], row_bytes: int, data: NDArray[np.uint8], columns: int
) -> NDArray[np.float32]:
    values = np.empty((data.size // row_bytes, columns), np.float32)
    function(data.ctypes.data, values.ctypes.data, values.size)
    return values


def _requantized(
    type_id: int, function: Callable[[int, int, int], None], row_bytes: int, rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what ggml's quantizer makes of rows, all weights equally important."""
    library = load_library()
    count, columns = rows.shape
    source, blocks = np.ascontiguousarray(rows), np.empty(count * row_bytes, np.uint8)
    importance = np.ones(columns, np.float32) if library.ggml_quantize_requires_imatrix(type_id) else None
    library.ggml_quantize_init(type_id)
    library.ggml_quantize_chunk(
        type_id,
        source.ctypes.data,
        blocks.ctypes.data,
        0,
        count,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    return _dequantized(function, row_bytes, blocks, columns)
