"""Dividing an artifact's tensors among files of a bounded size, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from edgekiln.exporters.base import TensorPlan


def divide(tensors: Sequence[TensorPlan], most: int | None) -> tuple[tuple[TensorPlan, ...], ...]:
    """Return the tensors of each file: a new one begins where the next tensor would go beyond `most` bytes.

    That is llama.cpp's rule. A tensor that is larger than that alone has a file of its own.

    Args:
        tensors: In the order of their data.
        most: Bytes of tensor data that a file may have; None for one file.
    """
    files: list[list[TensorPlan]] = [[]]
    size = 0
    for tensor in tensors:
        if most is not None and files[-1] and size + tensor.nbytes > most:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return tuple(map(tuple, files))


def numbered(stem: str, ending: str, count: int) -> tuple[str, ...]:
    """Return the names of `count` files as llama.cpp has them: `model-00001-of-00003.gguf`; a single one unnumbered."""
    if count == 1:
        return (f"{stem}{ending}",)
    return tuple(f"{stem}-{number:05d}-of-{count:05d}{ending}" for number in range(1, count + 1))
