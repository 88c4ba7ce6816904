"""Our one pass against llama.cpp's own two: its converter and then its quantizer, tensor by tensor and key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from checkpoints import make_checkpoint
from edgekiln.checkpoint import open_checkpoint
from edgekiln.exporters.gguf_mix import MIXES
from edgekiln.families import FAMILIES
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from foreign import converted, quantized, why_no_converter

pytestmark = pytest.mark.skipif(why_no_converter() is not None, reason=str(why_no_converter()))

#: Hidden sizes of 896, 1024 and 1536; tied and untied; with biases and without; in one file and in shards.
MODELS: dict[str, dict[str, Any]] = {
    "qwen2 896, untied, sharded": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_heads": 14,
        "tied": False,
        "shards": 3,
    },
    "qwen2 1536, tied": {"model_type": "qwen2", "hidden_size": 1536, "num_heads": 12, "num_layers": 1},
    "qwen3 1024, tied, sharded": {"hidden_size": 1024, "num_layers": 1, "shards": 2},
    "qwen3 1024, untied, yarn": {
        "hidden_size": 1024,
        "num_layers": 1,
        "tied": False,
        "config": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}},
    },
    "qwen2_moe 896, untied": {
        "model_type": "qwen2_moe",
        "hidden_size": 896,
        "num_heads": 14,
        "tied": False,
        "config": {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 320},
    },
    "qwen3_moe 1024, sharded, eight experts": {
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "num_layers": 2,
        "shards": 3,
        "config": {"num_experts": 8},
    },
}
#: Keys of which the two tools say different things, and why ours does.
OURS_ALONE = {
    "general.quantization_version": "llama.cpp's converter leaves it out of files that are not quantized",
    "tokenizer.ggml.add_bos_token": "no Qwen begins with one, and a file that says so depends on no default",
    "attention.key_length": "llama.cpp's default is the same where the converter leaves it out",
    "attention.value_length": "llama.cpp's default is the same where the converter leaves it out",
}
DIFFERENT: dict[str, str] = {
    "general.name": "ours does not come from the name of a folder, so that equal checkpoints give equal files",
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def without_architecture(key: str) -> str:
    return key.split(".", 1)[1] if key.split(".", 1)[0] in {f.gguf_architecture for f in FAMILIES.values()} else key


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint", intermediate_size=640, **request.param)


@pytest.mark.parametrize("precision", ["fp16", "q4_0", "q8_0", "q4_k_m"])
def test_the_file_is_that_of_llama_cpps_two_steps(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    scheme = Scheme(precision, gguf_source="source" if precision == "fp16" else "f16")
    export(open_checkpoint(str(checkpoint)), "gguf", scheme, tmp_path / "ours")
    (mine,) = (tmp_path / "ours").glob("*.gguf")
    source = converted(checkpoint)
    theirs = source if precision == "fp16" else quantized(source, MIXES[precision].label)
    (keys, tensors), (expected_keys, expected) = read(mine), read(theirs)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert tensors[name].tensor_type == tensor.tensor_type, name
        # The converter writes a matrix of one row as one, the quantizer as a vector, and llama.cpp reads both.
        assert np.trim_zeros(tensors[name].shape - 1).tolist() == np.trim_zeros(tensor.shape - 1).tolist(), name
        assert tensors[name].data.tobytes() == tensor.data.tobytes(), name
    ours = {without_architecture(key) for key in keys.keys() - expected_keys.keys()}
    theirs_alone = {without_architecture(key) for key in expected_keys.keys() - keys.keys()}
    differing = {
        without_architecture(key) for key in keys.keys() & expected_keys.keys() if keys[key] != expected_keys[key]
    }
    if "yarn" in str(open_checkpoint(str(checkpoint)).config.raw.get("rope_scaling")):
        differing.discard("context_length")  # ours goes as far as YaRN takes it
    assert (ours - OURS_ALONE.keys(), theirs_alone, differing - DIFFERENT.keys()) == (set(), set(), set())
