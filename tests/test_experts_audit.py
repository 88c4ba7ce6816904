"""What the validator says of artifacts with experts: nothing of sound ones, the cause of broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from gguf import GGUFReader

from artifacts import gguf_file, patch_gguf, swap_bytes
from checkpoints import make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.base import CheckResult
from edgekiln.validators.conservation import audit
from edgekiln.validators.kinds import identify
from edgekiln.validators.structure import check_structure

#: Family and what config.json says beside six experts, of which two compute.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, a dense layer": ("qwen3_moe", {"mlp_only_layers": [1], "norm_topk_prob": False}),
}
BUILDS = {
    "gguf fp16": ("gguf", Scheme("fp16")),
    "gguf q4_0": ("gguf", Scheme("q4_0")),
    "gguf q4_k_m": ("gguf", Scheme("q4_k_m")),
    "onnx fp16": ("onnx", Scheme("fp16")),
    "onnx int4": ("onnx", Scheme("int4")),
    "onnx int8 asymmetric": ("onnx", Scheme("int8", symmetric=False)),
    "onnx nf4": ("onnx", Scheme("nf4")),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("experts")
    return {
        name: open_checkpoint(str(make_checkpoint(folder / name, family, num_layers=3, tied=False, config=config)))
        for name, (family, config) in MODELS.items()
    }


def all_checks(checkpoint: Checkpoint, directory: Path) -> tuple[CheckResult, ...]:
    kind, family = identify(directory), checkpoint.family
    structure = check_structure(
        kind, checkpoint.config, architecture=family.gguf_architecture, genai_type=family.genai_type
    )
    return *structure.checks, *audit(kind, checkpoint).checks


def findings(checkpoint: Checkpoint, directory: Path) -> dict[str, str]:
    """Return everything that structure and audit find, by id, each with a subject."""
    checks = all_checks(checkpoint, directory)
    found = [finding for check in checks for finding in check.findings if finding.severity == "error"]
    assert bool(found) == any(check.outcome == "fail" for check in checks)
    return {finding.id: finding.subject for finding in found}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_sound_artifact_passes(models: dict[str, Checkpoint], tmp_path: Path, name: str, build: str) -> None:
    form, scheme = BUILDS[build]
    if (form, name) == ("gguf", "qwen3_moe, a dense layer"):
        return  # llama.cpp has none such
    export(models[name], form, scheme, tmp_path / "o")
    assert findings(models[name], tmp_path / "o") == {}
    report, experts = audit(identify(tmp_path / "o"), models[name]), models[name].config.experts
    assert report.conservation is not None
    assert experts is not None
    assert report.conservation.fused >= 6 * 3 * len(experts.layers)
    assert {part for layer in report.conservation.layers for part in layer.relative_errors} >= {
        "mlp.gate",
        "mlp.experts.gate_proj",
        "mlp.experts.down_proj",
    }


def test_two_experts_exchanged_in_gguf_are_told(models: dict[str, Checkpoint], tmp_path: Path) -> None:
    export(models["qwen3_moe"], "gguf", Scheme("q8_0"), tmp_path / "o")
    path = gguf_file(tmp_path / "o")
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_up_exps.weight")
    start, size = int(tensor.data_offset), int(tensor.n_bytes) // 6
    del tensor
    swap_bytes(path, start + size, start + 4 * size, size)
    assert findings(models["qwen3_moe"], tmp_path / "o") == {"conservation/swapped": "blk.1.ffn_up_exps.weight"}


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("expert_count", 5, "metadata/experts"),
        ("expert_used_count", 1, "metadata/experts"),
        ("expert_feed_forward_length", 64, "metadata/intermediate_size"),
        ("expert_shared_feed_forward_length", 64, "metadata/intermediate_size"),
    ],
)
def test_hyper_parameters_of_gguf_are_compared(
    models: dict[str, Checkpoint], tmp_path: Path, key: str, value: int, cause: str
) -> None:
    export(models["qwen2_moe"], "gguf", Scheme("q8_0"), tmp_path / "o")
    patch_gguf(gguf_file(tmp_path / "o"), f"qwen2moe.{key}", "<I", value)
    assert set(findings(models["qwen2_moe"], tmp_path / "o")) == {cause}


def test_experts_that_llama_cpp_weighs_otherwise_are_told(models: dict[str, Checkpoint], tmp_path: Path) -> None:
    export(models["qwen3_moe"], "gguf", Scheme("q8_0"), tmp_path / "o")
    config = {"norm_topk_prob": False}
    other = make_checkpoint(tmp_path / "c", "qwen3_moe", num_layers=3, tied=False, config=config)
    assert set(findings(open_checkpoint(str(other)), tmp_path / "o")) == {"metadata/experts"}


def change_graph(directory: Path, change: Any) -> None:
    path = directory / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def mixtures(graph: Any) -> list[Any]:
    return [node for node in graph.node if node.op_type in {"MoE", "QMoE"}]


def attribute(node: Any, name: str) -> Any:
    return next(entry for entry in node.attribute if entry.name == name)


def one_expert(graph: Any) -> None:
    attribute(mixtures(graph)[1], "k").i = 1


def two_halves(graph: Any) -> None:
    for node in mixtures(graph):
        attribute(node, "swiglu_fusion").i = 2


def exchanged(graph: Any) -> None:
    for index in (2, 3):
        names = [node.input[index] for node in mixtures(graph)[:2]]
        first, second = (next(tensor for tensor in graph.initializer if tensor.name == name) for name in names)
        first.name, second.name = second.name, first.name


def other_activation(graph: Any) -> None:
    attribute(mixtures(graph)[0], "activation_alpha").f = 1.702


def not_undone(graph: Any) -> None:
    """Leave the weights of the chosen experts at a sum of 1."""
    total = next(node for node in graph.node if node.op_type == "ReduceSum" and "experts" in node.name)
    product = next(node for node in graph.node if node.op_type == "Mul" and total.output[0] in node.input)
    product.op_type = "Identity"
    del product.input[1]


GRAPHS = {
    "another number for each token": (one_expert, {"metadata/experts"}),
    "halves instead of turns": (two_halves, {"conservation/altered"}),
    "the experts of another layer": (exchanged, {"conservation/swapped"}),
    "another activation": (other_activation, {"metadata/experts"}),
    "weights that add up to one": (not_undone, {"metadata/experts"}),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_what_the_graph_computes_is_compared(models: dict[str, Checkpoint], tmp_path: Path, case: str) -> None:
    change, causes = GRAPHS[case]
    export(models["qwen2_moe"], "onnx", Scheme("int8"), tmp_path / "o")
    change_graph(tmp_path / "o", change)
    found = set(findings(models["qwen2_moe"], tmp_path / "o"))
    assert found & causes
    assert {name.split("/")[0] for name in found} == {cause.split("/")[0] for cause in causes}


def test_a_dense_model_has_no_mixtures_and_a_mixture_has_some(models: dict[str, Checkpoint], tmp_path: Path) -> None:
    checkpoint = models["qwen3_moe, a dense layer"]
    export(checkpoint, "onnx", Scheme("int4"), tmp_path / "o")
    all_sparse = {"norm_topk_prob": False}
    other = make_checkpoint(tmp_path / "c", "qwen3_moe", num_layers=3, tied=False, config=all_sparse)
    assert "metadata/experts" in findings(open_checkpoint(str(other)), tmp_path / "o")
    assert EXPORTERS["onnx"].plan(checkpoint, Scheme("int4")).notes == ()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_one_expert_is_as_good_as_many(tmp_path: Path, precision: str) -> None:
    config = {"num_experts": 1, "num_experts_per_tok": 1}
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", "qwen3_moe", num_layers=1, config=config)))
    export(checkpoint, "onnx", Scheme(precision), tmp_path / "o")
    assert findings(checkpoint, tmp_path / "o") == {}


def many_bits(graph: Any) -> None:
    attribute(mixtures(graph)[0], "expert_weight_bits").i = 1 << 62


def no_outputs(graph: Any) -> None:
    del mixtures(graph)[0].output[:]


def infinitely_many(graph: Any) -> None:
    found = attribute(mixtures(graph)[0], "k")
    found.type, found.f = onnx.AttributeProto.FLOAT, float("inf")


@pytest.mark.parametrize("change", [many_bits, no_outputs, infinitely_many])
def test_impossible_nodes_are_told_and_nothing_breaks(
    models: dict[str, Checkpoint], tmp_path: Path, change: Any
) -> None:
    export(models["qwen2_moe"], "onnx", Scheme("int8"), tmp_path / "o")
    change_graph(tmp_path / "o", change)
    outcomes = {check.outcome for check in all_checks(models["qwen2_moe"], tmp_path / "o")}
    assert outcomes - {"pass"}
