"""Breaking finished artifacts on purpose, by swapping the bytes of tensors of the same shape and type."""

from __future__ import annotations

from pathlib import Path

import gguf
import onnx


def _swap(path: Path, regions: list[tuple[int, int, int]]) -> None:
    """Exchange the bytes of each (offset, offset, length)."""
    with path.open("r+b") as file:
        for left, right, length in regions:
            file.seek(left)
            one = file.read(length)
            file.seek(right)
            other = file.read(length)
            assert one != other
            file.seek(left)
            file.write(other)
            file.seek(right)
            file.write(one)


def _gguf_regions(path: Path, one: int, other: int) -> list[tuple[int, int, int]]:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    regions = []
    for name, left in tensors.items():
        right = tensors.get(name.replace(f"blk.{one}.", f"blk.{other}."))
        if name.startswith(f"blk.{one}.") and right is not None and left.tensor_type == right.tensor_type:
            regions.append((int(left.data_offset), int(right.data_offset), int(left.n_bytes)))
    return regions


def _onnx_regions(path: Path, one: int, other: int) -> list[tuple[int, int, int]]:
    places = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            places[tensor.name] = (int(fields["offset"]), int(fields["length"]))
    return [
        (offset, places[name.replace(f"layers.{one}.", f"layers.{other}.")][0], length)
        for name, (offset, length) in places.items()
        if f"layers.{one}." in name
    ]


def swap_layers(artifact: Path, one: int = 1, other: int = 4) -> None:
    """Exchange all weights of two layers in a GGUF or ONNX directory; everything else stays as it is."""
    ggufs = list(artifact.glob("*.gguf"))
    if ggufs:
        regions = _gguf_regions(ggufs[0], one, other)
        assert regions
        _swap(ggufs[0], regions)
    else:
        regions = _onnx_regions(artifact / "model.onnx", one, other)
        assert regions
        _swap(artifact / "model.onnx.data", regions)
