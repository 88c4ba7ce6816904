"""Artifacts of the embedded checkpoint, made once per test run by our own exporters."""

from __future__ import annotations

import atexit
import functools
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.exporters import EXPORTERS
from edgekiln.grids import FloatDtype, Grid
from edgekiln.model_config import ModelConfig
from edgekiln.quantizers import quantize, quantizer_for
from edgekiln.safetensors import widen
from edgekiln.scheme import Scheme
from edgekiln.tensors import SAFETENSORS_NAME, convert_rows


@functools.cache
def scratch() -> Path:
    """Return a directory that goes when the test run ends; made when it is needed, since children import this too."""
    path = Path(tempfile.mkdtemp(prefix="edgekiln-test-artifacts-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def _made(container: str, precision: str) -> Path:
    checkpoint = open_checkpoint("tiny-qwen3")
    directory = scratch() / f"{container}-{precision}"
    directory.mkdir()
    exporter = EXPORTERS[container]
    exporter.write(checkpoint, exporter.plan(checkpoint, Scheme(precision)), directory, quantize)
    return directory


def artifact(container: str, precision: str, into: Path) -> Path:
    """Return a copy of an artifact directory in `into`, free to be broken."""
    made = _made(container, precision)
    return Path(shutil.copytree(made, into / made.name))


def gguf_file(directory: Path) -> Path:
    """Return the one GGUF file of an artifact directory."""
    (path,) = directory.glob("*.gguf")
    return path


def patch_gguf(path: Path, key: str, layout: str, value: float) -> None:
    """Overwrite a scalar of a GGUF file's metadata; `layout` is the struct format of its type."""
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key) + 4
    struct.pack_into(layout, data, at, value)
    path.write_bytes(data)


def swap_bytes(path: Path, first: int, second: int, count: int) -> None:
    """Exchange two regions of a file."""
    data = bytearray(path.read_bytes())
    data[first : first + count], data[second : second + count] = (
        data[second : second + count],
        data[first : first + count],
    )
    path.write_bytes(data)


def llama_logits(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return what llama.cpp predicts at each of up to 256 tokens, float32 [tokens, vocabulary]."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_gpu_layers=0, n_threads=2)
    try:
        model.eval(tokens)
        return model.scores[: len(tokens)].copy()
    finally:
        model.close()


def onnx_logits(directory: Path, config: ModelConfig, tokens: list[int]) -> NDArray[np.float32]:
    """Return what ONNX Runtime predicts at each token on the CPU, [tokens, vocabulary]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {entry.name: entry.type for entry in session.get_inputs()}
    dtype = np.float16 if inputs["past_key_values.0.key"] == "tensor(float16)" else np.float32
    past = np.zeros((1, config.num_kv_heads, 0, config.head_dim), dtype)
    feeds = {name: past for name in inputs if name.startswith("past")}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(len(tokens))[None]
    feeds |= {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return logits


def transformers_logits(directory: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return what Transformers predicts at each token in float32, [tokens, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def stored_rows(checkpoint: Checkpoint, source: str, storage: Grid | FloatDtype) -> NDArray[np.float32]:
    """Return what an artifact holds of a tensor of the checkpoint in this storage, as its quantizer says."""
    info = checkpoint.tensors[source]
    with checkpoint.reader() as reader:
        if not isinstance(storage, str):
            quantizer = quantizer_for(storage)
            return quantizer.dequantize(quantizer.quantize(reader.rows(info, 0, info.rows), storage))
        return widen(convert_rows(reader.raw_rows(info, 0, info.rows), info.dtype, storage), SAFETENSORS_NAME[storage])
