"""Small random checkpoints for tests, written without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.checkpoint import embedded_directory
from edgekiln.families import READINGS, expected_tensors
from edgekiln.model_config import parse_config

#: The vocabulary of the embedded checkpoint, whose tokenizer every checkpoint here gets.
VOCAB_SIZE = 4096
_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
#: Six experts, two for each token; weighed as llama.cpp does it.
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
_MORE: dict[str, dict[str, Any]] = {
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 192, "norm_topk_prob": False},
    "qwen3_moe": _EXPERTS | {"norm_topk_prob": True},
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return float32 values as a safetensors file stores them in `dtype`; BF16 is rounded towards zero."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write (dtype, shape, data) by name; the format is eight bytes of length, a JSON header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            file.write(data)


def random_weights(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return weights of a size that keeps activations near 1: norms about 1, biases and matrices about 0."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return np.float32(1) + np.float32(0.1) * noise
    if name.endswith(".bias"):
        return np.float32(0.1) * noise
    return noise * np.float32(1.0 if "embed" in name else shape[-1] ** -0.5)


def make_checkpoint(
    directory: Path,
    model_type: str = "qwen3",
    *,
    hidden_size: int = 256,
    intermediate_size: int = 512,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    tied: bool = True,
    dtype: str = "BF16",
    seed: int = 0,
    shards: int = 1,
    scale: float = 1.0,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint with the tokenizer of the embedded one, and return its directory.

    Args:
        directory: Is created.
        model_type: `qwen2` (biases, no norms of queries and keys), `qwen3`, or `qwen2_moe` and `qwen3_moe`, which have
            six small experts, two for each token; `config` changes that.
        hidden_size: Rows of most matrices.
        intermediate_size: Rows of the down projection.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key-value heads.
        head_dim: Written to config.json for qwen3 and qwen3_moe; for the others it must be `hidden_size / num_heads`.
        tied: The head shares the embeddings.
        dtype: `BF16`, `F16` or `F32`, of all tensors.
        seed: Equal seeds give equal bytes.
        shards: Number of safetensors files.
        scale: What all weights are multiplied with.
        config: More keys of config.json, or other values for those above.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        shutil.copyfile(embedded_directory() / name, directory / name)
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 4073,
        "eos_token_id": 4072,
    }
    if model_type in {"qwen3", "qwen3_moe"}:
        values["head_dim"] = head_dim
    values |= _MORE.get(model_type, {})
    values = {key: value for key, value in (values | (config or {})).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values))
    rng = np.random.default_rng(seed)
    tensors = {
        name: (dtype, shape, encode(np.float32(scale) * random_weights(name, shape, rng), dtype))
        for name, shape in expected_tensors(parse_config(directory, READINGS)).items()
    }
    _write_shards(directory, tensors, shards)
    return directory


def _write_shards(directory: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], shards: int) -> None:
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = names[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(directory / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def change_weights(directory: Path, name: str, change: dict[int, bytes]) -> None:
    """Overwrite single elements of a tensor of a one-file checkpoint, by position in the flattened tensor."""
    path = directory / "model.safetensors"
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length + json.loads(file.read(length))[name]["data_offsets"][0]
        for position, data in change.items():
            file.seek(start + position * len(data))
            file.write(data)
