"""Mixtures of experts in every format: what the runtimes compute is what Transformers does with the file's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from artifacts import gguf_file, llama_logits, onnx_logits, stored_rows, transformers_logits
from checkpoints import change_weights, make_checkpoint, write_safetensors
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import CheckpointError, StepError, UnsupportedError, UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan
from edgekiln.exporters.onnx import Onnx
from edgekiln.grids import QuantizedRows
from edgekiln.pipelines.export import export
from edgekiln.quantizers import quantize
from edgekiln.scheme import Scheme

TOKENS = [(7 * number * number + 3 * number) % 4000 for number in range(48)]
#: Family and what config.json says beside the usual six experts of which two compute.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, normalized, one of six": ("qwen2_moe", {"norm_topk_prob": True, "num_experts_per_tok": 1}),
    "qwen2_moe, every other layer": ("qwen2_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, all of twelve": ("qwen3_moe", {"num_experts": 12, "num_experts_per_tok": 12}),
    "qwen3_moe, not normalized, two dense": ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [0, 2]}),
    "qwen3_moe, a window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}),
    "qwen2_moe, windows": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "qwen3_moe as transformers 5 writes it": ("qwen3_moe", {"num_experts": ..., "num_local_experts": 6}),
}
IN_GGUF = ("qwen2_moe", "qwen3_moe", "qwen3_moe, all of twelve", "qwen3_moe as transformers 5 writes it")


def make(directory: Path, name: str, **options: Any) -> Checkpoint:
    family, config = MODELS[name]
    make_checkpoint(directory, family, num_layers=3, config=config, **options)
    return open_checkpoint(str(directory))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_computes_what_transformers_does(tmp_path: Path, name: str, tied: bool) -> None:
    checkpoint = make(tmp_path / "c", name, tied=tied, shards=3)
    export(checkpoint, "onnx", Scheme("fp16"), tmp_path / "o")
    expected = transformers_logits(checkpoint.directory, TOKENS)
    found = onnx_logits(tmp_path / "o", checkpoint.config, TOKENS)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", IN_GGUF)
def test_llama_cpp_computes_what_transformers_does(tmp_path: Path, name: str, tied: bool) -> None:
    checkpoint = make(tmp_path / "c", name, tied=tied, shards=2)
    export(checkpoint, "gguf", Scheme("fp16"), tmp_path / "o")
    expected = transformers_logits(checkpoint.directory, TOKENS)
    found = llama_logits(gguf_file(tmp_path / "o"), TOKENS)
    assert np.abs(found - expected).max() < 0.01 * expected.std()


def rebuilt(checkpoint: Checkpoint, plan: ExportPlan, directory: Path) -> Path:
    """Write a checkpoint of the values that the quantizer says it stores, and return its directory."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for tensor in plan.tensors:
        for source in tensor.sources:
            rows = stored_rows(checkpoint, source, tensor.storage)
            tensors[source] = ("F32", checkpoint.tensors[source].shape, rows.astype("<f4").tobytes())
    shutil.copytree(checkpoint.directory, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


#: With what accuracy level experts are computed in float32, and how far int8 activations may be off.
QUANTIZED = {
    "int4": (Scheme("int4", accuracy_level=0), 1e-4),
    "int4 asymmetric, groups of 64": (Scheme("int4", group_size=64, symmetric=False, accuracy_level=0), 1e-4),
    "int4 computed in int8": (Scheme("int4"), 0.1),
    "int8": (Scheme("int8", accuracy_level=0), 0.1),
    "int8 asymmetric": (Scheme("int8", symmetric=False, accuracy_level=0), 0.1),
    "nf4": (Scheme("nf4", accuracy_level=0), 0.1),
    "int4, experts of one layer at int8": (
        Scheme("int4", accuracy_level=0, overrides=(("model.layers.1.mlp.experts.*", "int8"), ("*.q_proj", "int4"))),
        0.1,
    ),
    "int4, fp16 experts": (Scheme("int4", accuracy_level=0, overrides=(("*.mlp.experts.*", "fp16"),)), 1e-4),
}


@pytest.mark.parametrize("case", QUANTIZED)
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe, not normalized, two dense"])
def test_onnx_runtime_computes_with_the_weights_that_the_quantizer_said(tmp_path: Path, name: str, case: str) -> None:
    scheme, limit = QUANTIZED[case]
    overrides = tuple(pair for pair in scheme.overrides if pair[0] != "*.q_proj")  # fused with others in qwen2
    checkpoint = make(tmp_path / "c", name, tied=False)
    scheme = Scheme(**{**vars(scheme), "overrides": overrides})
    plan = EXPORTERS["onnx"].plan(checkpoint, scheme)
    export(checkpoint, "onnx", scheme, tmp_path / "o")
    expected = transformers_logits(rebuilt(checkpoint, plan, tmp_path / "r"), TOKENS)
    found = onnx_logits(tmp_path / "o", checkpoint.config, TOKENS)
    # A token whose second and third expert are nearly alike may go to the other one: the middle of all tokens counts.
    error = np.abs(found - expected).max(axis=1) / expected.std()
    assert np.median(error) < limit


def test_what_is_not_quantized_as_asked_is_told(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen2_moe")
    notes = {tensor.name: tensor.note for tensor in EXPORTERS["onnx"].plan(checkpoint, Scheme("nf4")).tensors}
    assert notes["model.layers.0.mlp.gate.weight"] == "it decides which experts compute, and is small"
    assert "int4 g64 sym instead" in str(notes["model.layers.0.mlp.experts.down_proj.weight"])
    assert notes["model.layers.0.mlp.shared_expert.down_proj.weight"] is None


def operators(directory: Path) -> list[str]:
    onnx.checker.check_model(directory / "model.onnx")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("precision", "operator"), [("int4", "QMoE"), ("int8", "QMoE"), ("nf4", "QMoE"), ("fp16", "MoE")]
)
def test_experts_are_one_operator_of_the_runtime(tmp_path: Path, precision: str, operator: str) -> None:
    checkpoint = make(tmp_path / "c", "qwen2_moe, every other layer")
    export(checkpoint, "onnx", Scheme(precision), tmp_path / "o")
    found = operators(tmp_path / "o")
    assert (found.count(operator), found.count("QMoE") + found.count("MoE")) == (1, 1)


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_bytes_depend_neither_on_threads_nor_on_chunks(tmp_path: Path, form: str) -> None:
    checkpoint = make(tmp_path / "c", "qwen3_moe", tied=False)
    kind = type(EXPORTERS[form])
    plan = EXPORTERS[form].plan(checkpoint, Scheme("int4"))
    found = set()
    for number, exporter in enumerate((kind(), kind(1, 300), kind(3, 5000), kind(5, 1))):
        directory = tmp_path / str(number)
        directory.mkdir()
        exporter.write(checkpoint, plan, directory, quantize)
        found.add(tuple(path.read_bytes() for path in sorted(directory.iterdir())))
    assert len(found) == 1


def test_gates_and_up_projections_alternate_and_each_expert_is_quantized_by_itself(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen3_moe")
    plan = next(t for t in EXPORTERS["onnx"].plan(checkpoint, Scheme("int4")).tensors if "gate_up" in t.name)
    assert plan.shape == (6, 256, 256)
    seen: list[NDArray[np.float32]] = []

    def watch(rows: NDArray[np.float32], grid: Any) -> QuantizedRows:
        if rows.shape[-1] == 256 and grid == plan.storage:
            seen.append(rows.copy())
        return quantize(rows, grid)

    (tmp_path / "o").mkdir()
    Onnx(threads=1).write(checkpoint, EXPORTERS["onnx"].plan(checkpoint, Scheme("int4")), tmp_path / "o", watch)
    with checkpoint.reader() as reader:
        for part, first in (("gate", 0), ("up", 1)):
            info = checkpoint.tensors[f"model.layers.0.mlp.experts.3.{part}_proj.weight"]
            rows = reader.rows(info, 0, info.rows)
            assert any(block.shape == (256, 256) and np.array_equal(block[first::2], rows) for block in seen)


def test_a_weight_that_cannot_be_stored_is_told_by_its_expert(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen3_moe")
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    change_weights(tmp_path / "c", name, {300: b"\xc0\x7f", 4000: b"\x80\x7f"})
    for form in ("onnx", "gguf"):
        with pytest.raises(StepError, match=rf"^{name} holds 1 NaN and 1 infinite weights"):
            export(checkpoint, form, Scheme("int4"), tmp_path / form)
    change_weights(tmp_path / "c", name, {300: b"\x80\x7e", 4000: b"\x00\x00"})
    for form in ("onnx", "gguf"):
        with pytest.raises(StepError, match=rf"^{name} holds 1 weights beyond ±65504"):
            export(checkpoint, form, Scheme("fp16"), tmp_path / f"{form} fp16")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2_moe, normalized, one of six", "has norm_topk_prob true, but llama.cpp's qwen2moe computes false"),
        ("qwen2_moe, every other layer", r"no experts in 2 of its 3 layers .*, but llama.cpp's qwen2moe has them in"),
        ("qwen3_moe, not normalized, two dense", r"no experts in 2 of its 3 layers"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        EXPORTERS["gguf"].plan(make(tmp_path / "c", name), Scheme("int4"))


def test_what_onnx_runtime_has_no_operator_for_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "c", "qwen3_moe")
    with pytest.raises(UnsupportedError, match="has experts, which Edgekiln exports for ONNX Runtime's CPU provider"):
        EXPORTERS["onnx"].plan(checkpoint, Scheme("int4"), Device("webgpu"))
    mixed = Scheme("int4", overrides=(("*.mlp.experts.*.down_proj", "int8"),))
    with pytest.raises(UsageError, match=r"one precision for both; let an override match all of them"):
        EXPORTERS["onnx"].plan(checkpoint, mixed)
    one = Scheme("int4", overrides=(("model.layers.0.mlp.experts.0.*", "int8"),))
    for form in ("onnx", "gguf"):
        with pytest.raises(UsageError, match=r"and others are one tensor in the artifact"):
            EXPORTERS[form].plan(checkpoint, one)


#: What config.json must not say of experts.
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "more than there are": ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but num_experts only 6"),
    "a layer beyond the last": ({"mlp_only_layers": [3]}, "mlp_only_layers must be a list of layers from 0 to 2"),
    "no list": ({"mlp_only_layers": "all"}, "mlp_only_layers must be a list of layers"),
    "no step": ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0, but must be positive"),
    "too many": ({"num_experts": 4096}, "num_experts is 4096, but must be a positive integer up to 1024"),
    "too many in all": ({"num_experts": 1024, "num_hidden_layers": 48}, "at most 32768 experts are read in all"),
    "negative": ({"moe_intermediate_size": -1}, "moe_intermediate_size is -1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_configuration_is_told(tmp_path: Path, case: str) -> None:
    changes, message = MALFORMED[case]
    make_checkpoint(tmp_path / "c", "qwen3_moe", num_layers=3)
    document = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(document | changes))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "c"))


def test_a_model_all_of_whose_layers_are_dense_has_no_experts(tmp_path: Path) -> None:
    config = {"mlp_only_layers": [0, 1]}
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", "qwen3_moe", num_layers=2, config=config)))
    assert checkpoint.config.experts is None
    export(checkpoint, "onnx", Scheme("fp16"), tmp_path / "o")
    expected = transformers_logits(checkpoint.directory, TOKENS)
    assert np.abs(onnx_logits(tmp_path / "o", checkpoint.config, TOKENS) - expected).max() < 1e-4 * expected.std()
