"""Ropes stretched by YaRN and sliding windows: every format computes them, and the checks tell when they are others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import gguf_file, llama_logits, onnx_logits, transformers_logits
from checkpoints import make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.errors import UnsupportedError
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.kinds import identify
from edgekiln.validators.layered import LayeredModel
from edgekiln.validators.structure import check_structure

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
#: A context of 64 tokens that YaRN makes 256, and a window of 24; 200 tokens show what either does.
CONFIGS: dict[str, dict[str, Any]] = {
    "yarn": {"max_position_embeddings": 64, "rope_scaling": YARN},
    "yarn, other betas": {
        "max_position_embeddings": 64,
        "rope_theta": ...,
        "rope_parameters": YARN | {"rope_theta": 1e6, "beta_fast": 16.0, "beta_slow": 2.0},
    },
    "a window in the last layers": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "a window by layer types": {
        "use_sliding_window": True,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
TOKENS = np.random.default_rng(0).integers(0, 4000, 200).tolist()
WINDOWS = [name for name in CONFIGS if "window" in name]
IN_GGUF = [name for name in CONFIGS if "betas" not in name]
YARNS = [name for name in CONFIGS if "yarn" in name]


@pytest.fixture(params=["qwen2", "qwen3"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(directory: Path, family: str, config: dict[str, Any]) -> Checkpoint:
    make_checkpoint(directory, family, hidden_size=128, num_heads=4, head_dim=32, num_layers=3, config=config)
    return open_checkpoint(str(directory))


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_runtime_computes_what_transformers_does(tmp_path: Path, family: str, name: str) -> None:
    checkpoint = make(tmp_path / "c", family, CONFIGS[name])
    export(checkpoint, "onnx", Scheme("fp16"), tmp_path / "o")
    expected, found = (
        transformers_logits(checkpoint.directory, TOKENS),
        onnx_logits(tmp_path / "o", checkpoint.config, TOKENS),
    )
    assert np.abs(found - expected).max() < 0.005 * expected.std()


@pytest.mark.parametrize("name", IN_GGUF)
def test_llama_cpp_computes_what_transformers_does_within_the_context_that_the_file_has(
    tmp_path: Path, family: str, name: str
) -> None:
    checkpoint = make(tmp_path / "c", family, CONFIGS[name])
    export(checkpoint, "gguf", Scheme("fp16"), tmp_path / "o")
    context = 24 if name in WINDOWS else 256
    tokens = TOKENS[:context]
    expected, found = (
        transformers_logits(checkpoint.directory, TOKENS)[:context],
        llama_logits(gguf_file(tmp_path / "o"), tokens),
    )
    assert np.abs(found - expected).max() < 0.02 * expected.std()
    assert len(EXPORTERS["gguf"].plan(checkpoint, Scheme("fp16")).notes) == (name in WINDOWS)
    beyond = llama_logits(gguf_file(tmp_path / "o"), TOKENS) - transformers_logits(checkpoint.directory, TOKENS)
    assert (np.abs(beyond).max() > expected.std()) == (name in WINDOWS)  # where the note matters


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_computes_what_transformers_does(tmp_path: Path, family: str, name: str) -> None:
    checkpoint = make(tmp_path / "c", family, CONFIGS[name])
    expected = transformers_logits(checkpoint.directory, TOKENS)
    with LayeredModel(checkpoint, threads=1, memory_bytes=1 << 30) as model:
        found = np.concatenate([logits.copy() for _, _, logits in model.logits([TOKENS])])
        assert np.abs(found - expected).max() < 0.001 * expected.std()  # weights rounded to fp16
        assert model.greedy([TOKENS], 1, ())[0] == [int(expected[-1].argmax())]
        # Token by token from a cache, as beyond the prompt.
        longer = model.greedy([TOKENS[:150]], 3, ())[0]
        whole = np.concatenate([x.copy() for _, _, x in model.logits([TOKENS[:150] + longer])])
        assert [int(row.argmax()) for row in whole[149:152]] == longer


def findings(checkpoint: Checkpoint, directory: Path) -> set[str]:
    family = checkpoint.family
    found = check_structure(
        identify(directory),
        checkpoint.config,
        architecture=family.gguf_architecture,
        genai_type=family.genai_type,
    )
    return {finding.id for result in found.checks if result.outcome == "fail" for finding in result.findings}


def test_betas_that_llama_cpp_would_not_read_are_refused_and_told(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen3", CONFIGS["yarn, other betas"])
    with pytest.raises(UnsupportedError, match="beta_fast 16 and beta_slow 2, but llama.cpp takes 32 and 1"):
        EXPORTERS["gguf"].plan(checkpoint, Scheme("int4"))
    usual = {"rope_parameters": YARN | {"rope_theta": 1e6}}
    plain = make(tmp_path / "d", "qwen3", CONFIGS[YARNS[1]] | usual)
    export(plain, "gguf", Scheme("int8"), tmp_path / "o")
    assert findings(checkpoint, tmp_path / "o") == {"metadata/rope_scaling"}


@pytest.mark.parametrize(
    ("form", "name"), [*(("gguf", name) for name in IN_GGUF), *(("onnx", name) for name in CONFIGS)]
)
def test_an_artifact_fits_its_own_checkpoint_and_no_other(tmp_path: Path, form: str, name: str) -> None:
    checkpoint = make(tmp_path / "c", "qwen3", CONFIGS[name])
    export(checkpoint, form, Scheme("int8"), tmp_path / "o")
    assert findings(checkpoint, tmp_path / "o") == set()
    changes: dict[str, Any] = {"max_position_embeddings": 512, "rope_scaling": None, "rope_parameters": None}
    changes |= {"use_sliding_window": False, "layer_types": None}
    told = findings(make(tmp_path / "plain", "qwen3", changes), tmp_path / "o")
    if name in YARNS:
        assert "metadata/rope_scaling" in told
    else:
        assert told == ({"metadata/attention_window"} if form == "onnx" else set())  # a shorter context is the same


def test_a_table_of_another_factor_and_a_window_in_another_layer_are_told(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen3", CONFIGS["yarn"])
    config = CONFIGS["yarn"] | {"rope_scaling": YARN | {"factor": 2.0}}
    other = make(tmp_path / "d", "qwen3", config)
    for form in ("gguf", "onnx"):
        export(other, form, Scheme("int8"), tmp_path / form)
        assert "metadata/rope_scaling" in findings(checkpoint, tmp_path / form)
    windowed = make(tmp_path / "w", "qwen3", CONFIGS[WINDOWS[1]])
    export(windowed, "onnx", Scheme("int8"), tmp_path / "windowed")
    path = tmp_path / "windowed" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    nodes = [node for node in graph.graph.node if node.op_type == "GroupQueryAttention"]
    (attribute,) = (entry for entry in nodes[2].attribute if entry.name == "local_window_size")
    attribute.i = 25
    onnx.save(graph, path)
    assert findings(windowed, tmp_path / "windowed") == {"metadata/attention_window"}
