"""The artifacts that mutants are made of: small random models, exported by our own exporters, once per test run."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from artifacts import scratch
from checkpoints import encode, make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme

#: Family and scheme by name.
BASES: Final = MappingProxyType(
    {
        "int4": ("qwen3", Scheme("int4")),
        "asymmetric": ("qwen3", Scheme("int4", symmetric=False)),
        "fp16": ("qwen3", Scheme("fp16")),
        "qwen2": ("qwen2", Scheme("int4")),
    }
)
#: How far another training step lies from this one, as a share of each weight's size.
_STEP: Final = 0.1


@functools.cache
def checkpoint(model_type: str, step: int = 0) -> Checkpoint:
    """Return a small random checkpoint with a head of its own; each step has other weights, near the first's."""
    directory = scratch() / f"{model_type}-step-{step}"
    make_checkpoint(directory, model_type, num_layers=3, tied=False)
    if step:
        _train(directory / "model.safetensors", step)
    return open_checkpoint(str(directory))


def _train(path: Path, step: int) -> None:
    """Move every matrix a little."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(step)
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__" or len(entry["shape"]) != 2:
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        values = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        moved = values + np.float32(_STEP * values.std()) * rng.standard_normal(values.shape, dtype=np.float32)
        data[begin:end] = encode(moved, "BF16")
    path.write_bytes(data)


@functools.cache
def base(name: str, container: str, step: int = 0) -> Path:
    """Return an artifact, not to be changed."""
    model_type, scheme = BASES[name]
    out = scratch() / f"{name}-{container}-{step}"
    export(checkpoint(model_type, step), container, scheme, out)
    return out


def copy_of(name: str, container: str, into: Path) -> Path:
    """Return a copy of an artifact, free to be broken."""
    return Path(shutil.copytree(base(name, container), into / container))
