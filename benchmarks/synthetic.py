"""Checkpoints of a given size, with shapes like Qwen's and random weights, for measuring how costs grow."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgekiln.checkpoint import TOKENIZER_FILES
from edgekiln.families import READINGS, expected_tensors
from edgekiln.model_config import parse_config

#: By gigabytes of weights: hidden size, intermediate size, heads, key-value heads. Rows divide by 256 from 1 GB on.
SHAPES: Mapping[float, tuple[int, int, int, int]] = {
    0.5: (896, 4864, 14, 2),
    1.0: (1024, 4096, 16, 8),
    2.0: (1536, 8960, 12, 2),
    4.0: (2048, 11008, 16, 2),
    8.0: (3584, 18944, 28, 4),
}
#: The weights repeat after so many, since making all of them would take longer than exporting them.
_PATTERN = 1 << 26


def synthetic_checkpoint(size: float, tokenizer: Path, directory: Path) -> Path:
    """Write a Qwen2 checkpoint of about `size` gigabytes of bfloat16 weights.

    Args:
        size: Key of `SHAPES`.
        tokenizer: A checkpoint whose tokenizer and vocabulary size it gets.
        directory: Is created.
    """
    directory.mkdir(parents=True)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, directory / name)
    hidden, inner, heads, kv_heads = SHAPES[size]
    config: dict[str, Any] = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    config.pop("layer_types", None)  # one for each layer that the other had
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads}
    config |= {"num_key_value_heads": kv_heads, "tie_word_embeddings": True, "num_hidden_layers": 1}
    shapes = _shapes(directory, config)
    per_layer = sum(2 * int(np.prod(shape)) for name, shape in shapes.items() if ".layers." in name)
    rest = sum(2 * int(np.prod(shape)) for name, shape in shapes.items() if ".layers." not in name)
    config["num_hidden_layers"] = max(1, round((size * 1e9 - rest) / per_layer))
    _write(directory / "model.safetensors", _shapes(directory, config))
    return directory


def _shapes(directory: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return expected_tensors(parse_config(directory, READINGS))


def write_header(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Write the header of a safetensors file of bfloat16 tensors and return how many bytes are to follow."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(text)) + text)
    return position


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    noise = np.random.default_rng(0).standard_normal(_PATTERN, np.float32) * np.float32(0.02)
    pattern = (noise.view(np.uint32) >> np.uint32(16)).astype("<u2").data.cast("B")
    with path.open("wb") as file:
        position = write_header(file, shapes)
        while position:
            position -= file.write(pattern[: min(position, len(pattern))])


if __name__ == "__main__":
    synthetic_checkpoint(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
