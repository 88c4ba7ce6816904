"""From the checkpoint to the file in row chunks: workers read and make chunks ahead, one thread writes them in order.

This is the one way in which all exporters move weights. A worker holds one chunk in float32 and what it becomes, a few
chunks wait to be written, and nothing else of a tensor is ever in memory, however large it is. Reading, quantizing and
converting release the interpreter's lock, so the workers keep as many cores busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import StepError
from edgekiln.exporters.base import Quantize, TensorPlan
from edgekiln.grids import QuantizedRows
from edgekiln.host import logical_cores
from edgekiln.safetensors import TensorInfo, TensorReader, widen
from edgekiln.tensor_files import Bytes, TensorFiles
from edgekiln.tensors import NO_DEFECTS, SAFETENSORS_NAME, Defects, convert_rows, count_defects

_T = TypeVar("_T", bound=np.generic)
#: Weights of one chunk, rounded to whole rows: 4 MB of float32.
CHUNK_WEIGHTS: Final = 1 << 20
#: Each worker holds about 8 MB; this bounds the memory of an export on a machine of many processors.
_MAX_WORKERS: Final = 16


@dataclass(frozen=True)
class Piece:
    """Rows of the checkpoint, and the tensor of the artifact that they go into.

    Attributes:
        tensor: Of the artifact.
        sources: Tensors of the checkpoint; of several, each gives a row in turn.
        start: The first row of each.
        stop: Behind the last one.
    """

    tensor: TensorPlan
    sources: tuple[TensorInfo, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Chunk:
    """Rows as they go into the file.

    Attributes:
        parts: The bytes for each extent of the tensor, in the order of its layout; empty if they cannot be stored.
        defects: Weights that cannot be stored, of each source; empty for none.
    """

    parts: tuple[Bytes, ...]
    defects: tuple[Defects, ...] = ()


#: Brings quantized rows into the form of the file, one item for each extent of the tensor; nothing is rounded.
Pack: TypeAlias = Callable[[QuantizedRows], tuple[Bytes, ...]]


def worker_count(threads: int | None) -> int:
    """Return how many workers there are: as asked, else one for each core that this process may use, within bounds."""
    return threads or min(logical_cores(), _MAX_WORKERS)


def write_tensors(
    files: TensorFiles,
    checkpoint: Checkpoint,
    tensors: Iterable[TensorPlan],
    quantize: Quantize,
    pack: Pack,
    *,
    threads: int | None = None,
    chunk_weights: int = CHUNK_WEIGHTS,
) -> None:
    """Write the tensors that are not done yet, from their rows in the checkpoint.

    Args:
        files: Where they go.
        checkpoint: Where they come from.
        tensors: In the order of writing; each has sources.
        quantize: Brings rows onto a grid.
        pack: Brings quantized rows into the form of the file.
        threads: Workers; None leaves it to this machine. The files are the same for any number.
        chunk_weights: Weights of one chunk; the files are the same for any number.

    Raises:
        StepError: A weight is NaN or infinite, or overflows the type of its tensor.
    """
    due = [tensor for tensor in tensors if not files.is_done(tensor.name)]
    with checkpoint.reader() as reader:

        def make(piece: Piece) -> Chunk:
            return _make_chunk(reader, piece, quantize, pack)

        with closing(_in_order(make, _pieces(checkpoint, due, chunk_weights), worker_count(threads))) as made:
            for tensor, chunks in groupby(made, key=lambda item: item[0].tensor):
                _write_tensor(files, tensor, chunks)


def _pieces(checkpoint: Checkpoint, tensors: Iterable[TensorPlan], chunk_weights: int) -> Iterator[Piece]:
    for tensor in tensors:
        infos = [checkpoint.tensors[source] for source in tensor.sources]
        for first in range(0, len(infos), tensor.in_turn):
            together = tuple(infos[first : first + tensor.in_turn])
            rows, step = together[0].rows, max(1, chunk_weights // (together[0].columns * tensor.in_turn))
            for start in range(0, rows, step):
                yield Piece(tensor, together, start, min(start + step, rows))


def _in_order(
    make: Callable[[Piece], Chunk], pieces: Iterator[Piece], threads: int
) -> Generator[tuple[Piece, Chunk], None, None]:
    """Yield pieces and their chunks in order, a few of them being made ahead."""
    ahead: deque[tuple[Piece, Future[Chunk]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="export")
    try:
        for piece in pieces:
            ahead.append((piece, pool.submit(make, piece)))
            if len(ahead) > threads + 2:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_chunk(reader: TensorReader, piece: Piece, quantize: Quantize, pack: Pack) -> Chunk:
    """Read rows and bring them into the form of the file."""
    storage = piece.tensor.storage
    raws = [reader.raw_rows(source, piece.start, piece.stop) for source in piece.sources]
    dtypes = [source.dtype for source in piece.sources]
    defects = tuple(map(count_defects, raws, dtypes))
    if any(defects):
        return Chunk((), defects)
    through = storage if isinstance(storage, str) else piece.tensor.through
    if through is not None:
        raws = [convert_rows(raw, dtype, through) for raw, dtype in zip(raws, dtypes, strict=True)]
        dtypes = [SAFETENSORS_NAME[through]] * len(raws)
        defects = tuple(Defects(overflowed=count_defects(raw, dtypes[0]).infinite) for raw in raws)
        if any(defects):
            return Chunk((), defects)
    if isinstance(storage, str):
        return Chunk((little_endian(_in_turn(raws)),))
    try:
        quantized = quantize(_in_turn([widen(raw, dtype) for raw, dtype in zip(raws, dtypes, strict=True)]), storage)
    except StepError as error:
        raise StepError(f"{' and '.join(source.name for source in piece.sources)}: {error}") from None
    if quantized.grid != storage:
        raise StepError(f"{piece.tensor.name} was to be {storage.name}, but its quantizer returned another grid")
    return Chunk(pack(quantized))


def _in_turn(rows: list[NDArray[_T]]) -> NDArray[_T]:
    """Return the rows of arrays of one shape, one of each in turn."""
    return rows[0] if len(rows) == 1 else np.stack(rows, axis=1).reshape(-1, rows[0].shape[-1])


def little_endian(values: NDArray[np.generic]) -> memoryview:
    """Return the bytes of an array in the order that files have."""
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def _write_tensor(files: TensorFiles, tensor: TensorPlan, chunks: Iterator[tuple[Piece, Chunk]]) -> None:
    """Write the chunks of one tensor in their order.

    Raises:
        StepError: Some of its weights cannot be stored; all of them are counted before.
    """
    defects = dict.fromkeys(tensor.sources, NO_DEFECTS)
    for piece, chunk in chunks:
        for source, found in zip(piece.sources, chunk.defects, strict=False):
            defects[source.name] += found
        if not any(defects.values()):
            for part, data in enumerate(chunk.parts):
                files.write(tensor.name, data, part)
    for name, found in defects.items():
        found.require_none(name, tensor.storage if isinstance(tensor.storage, str) else tensor.through or "float32")
    files.complete(tensor.name)
