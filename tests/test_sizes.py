"""Predicted sizes against artifacts that were written, of every format, precision and family."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import UnsupportedError
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.gguf import _headers, shards
from edgekiln.exporters.gguf_metadata import rounded_count
from edgekiln.exporters.gguf_mix import BLOCKS, MIXES
from edgekiln.exporters.gguf_names import gguf_name
from edgekiln.exporters.gguf_size import header_sizes
from edgekiln.exporters.onnx_layout import layout, place
from edgekiln.exporters.onnx_size import graph_size
from edgekiln.families import FAMILIES, expected_tensors
from edgekiln.model_config import Experts
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme


def written(checkpoint: Checkpoint, format_name: str, scheme: Scheme, device: Device, out: Path) -> int:
    """Return the bytes of a real artifact."""
    export(checkpoint, format_name, scheme, out, device)
    return sum(path.stat().st_size for path in out.iterdir())


def predicted(checkpoint: Checkpoint, format_name: str, scheme: Scheme, device: Device) -> int:
    exporter = EXPORTERS[format_name]
    return exporter.size(checkpoint, exporter.plan(checkpoint, scheme, device))


CPU = Device()
#: Of each, what is written; models differ in family, layers, tying, precision of the source and position of shards.
CASES = {
    "onnx int4": ("onnx", Scheme("int4"), CPU),
    "onnx int4 asymmetric": ("onnx", Scheme("int4", 64, symmetric=False, head_precision="int8"), CPU),
    "onnx int8": ("onnx", Scheme("int8"), CPU),
    "onnx nf4": ("onnx", Scheme("nf4"), CPU),
    "onnx fp16": ("onnx", Scheme("fp16"), CPU),
    "onnx int4 for webgpu": ("onnx", Scheme("int4"), Device("webgpu", 256)),
    "onnx int4 for directml": ("onnx", Scheme("int4"), Device("dml")),
    "foundry-local int4": ("foundry-local", Scheme("int4"), Device("cpu", 400)),
    **{f"gguf {name}": ("gguf", Scheme(name), CPU) for name in ("fp16", "q8_0", "q4_0", "q5_1", "q6_k")},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "qwen2", "qwen2", tied=False, num_layers=11, dtype="F32", hidden_size=256)
    make_checkpoint(folder / "qwen3", "qwen3", shards=2, num_layers=3)
    make_checkpoint(folder / "qwen2_moe", "qwen2_moe", num_layers=11, tied=False)
    dense = {"mlp_only_layers": [1], "norm_topk_prob": False}
    make_checkpoint(folder / "some dense layers", "qwen3_moe", num_layers=4, config=dense)
    make_checkpoint(folder / "qwen3_moe", "qwen3_moe", num_layers=3)
    return {
        "qwen2_moe": open_checkpoint(str(folder / "qwen2_moe")),
        "qwen3_moe": open_checkpoint(str(folder / "qwen3_moe")),
        "some dense layers": open_checkpoint(str(folder / "some dense layers")),
        "tiny": open_checkpoint("tiny-qwen3"),
        "qwen2": open_checkpoint(str(folder / "qwen2")),
        "qwen3": open_checkpoint(str(folder / "qwen3")),
    }


@pytest.mark.parametrize("model", ["tiny", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "some dense layers"])
@pytest.mark.parametrize("case", CASES)
def test_a_predicted_size_is_that_of_the_artifact(
    models: dict[str, Checkpoint], tmp_path: Path, model: str, case: str
) -> None:
    format_name, scheme, device = CASES[case]
    experts = models[model].config.experts
    if experts is not None and (
        device.execution_provider != "cpu" or (format_name, model) == ("gguf", "some dense layers")
    ):
        with pytest.raises(UnsupportedError):
            predicted(models[model], format_name, scheme, device)
        return
    actual = written(models[model], format_name, scheme, device, tmp_path / "out")
    found = predicted(models[model], format_name, scheme, device)
    # What is not known to the byte are the graph's file and the names of the quantizer's libraries in the manifest.
    assert abs(found - actual) <= (200 if format_name == "gguf" else 0.001 * actual)


def assert_headers_have_the_predicted_bytes(checkpoint: Checkpoint, scheme: Scheme) -> None:
    plan = EXPORTERS["gguf"].plan(checkpoint, scheme)
    written = {name: len(header) for name, header in _headers(checkpoint, plan).items()}
    assert header_sizes(checkpoint, shards(plan)) == written


@pytest.mark.parametrize("precision", sorted(MIXES))
def test_the_header_of_every_gguf_mix_has_the_predicted_bytes(models: dict[str, Checkpoint], precision: str) -> None:
    for name, checkpoint in models.items():
        if name == "some dense layers":
            continue  # llama.cpp has none such
        assert_headers_have_the_predicted_bytes(checkpoint, Scheme(precision))
        assert_headers_have_the_predicted_bytes(checkpoint, Scheme(precision, split_max_size=1_000_000))


def test_metadata_that_a_checkpoint_may_have_is_counted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", config={"_name_or_path": "org/Größer-0.5B", "pad_token_id": 7})
    generation = {"eos_token_id": [4072, 11, 12], "top_k": 20, "top_p": 0.8, "min_p": 0.1, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps({**generation, "repetition_penalty": 1.1}))
    (folder / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    checkpoint = open_checkpoint(str(folder))
    assert_headers_have_the_predicted_bytes(checkpoint, Scheme("int4"))


def graph_bytes(checkpoint: Checkpoint, scheme: Scheme, provider: str, folder: Path) -> int:
    """Return the bytes of model.onnx, which needs no weights."""
    from edgekiln.exporters.onnx_task import write_graph

    plan = EXPORTERS["onnx"].plan(checkpoint, scheme, Device(provider))
    write_graph(checkpoint, plan, place(plan.tensors), folder, folder)
    return (folder / "model.onnx").stat().st_size


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("provider", ["cpu", "cuda", "dml"])
@pytest.mark.parametrize("scheme", [Scheme("int4"), Scheme("int4", symmetric=False), Scheme("nf4"), Scheme("fp16")])
def test_the_graph_is_predicted_to_a_hundredth(tmp_path: Path, family: str, provider: str, scheme: Scheme) -> None:
    exporter, device = EXPORTERS["onnx"], Device(provider)
    if exporter.unsupported(scheme, device):
        return  # DirectML has no NF4
    checkpoint = open_checkpoint(
        str(make_checkpoint(tmp_path / "c", family, num_layers=2, hidden_size=128, head_dim=32, num_heads=4))
    )
    if checkpoint.config.experts and provider != "cpu":
        return
    plan = exporter.plan(checkpoint, scheme, device)
    written = graph_bytes(checkpoint, scheme, provider, tmp_path)
    assert graph_size(checkpoint, plan, layout(place(plan.tensors))) == pytest.approx(written, rel=0.015)


def test_names_of_layers_with_two_digits_are_longer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "c", "qwen2", num_layers=64, hidden_size=64)))
    plan = EXPORTERS["onnx"].plan(checkpoint, Scheme("int4"))
    written = graph_bytes(checkpoint, Scheme("int4"), "cpu", tmp_path)
    assert graph_size(checkpoint, plan, layout(place(plan.tensors))) == pytest.approx(written, rel=0.009)


@pytest.mark.parametrize("most", [None, 1_000_000])
def test_each_data_file_ends_with_its_last_initializer(tmp_path: Path, most: int | None) -> None:
    checkpoint, scheme = open_checkpoint("tiny-qwen3"), Scheme("int8", split_max_size=most)
    plan = EXPORTERS["onnx"].plan(checkpoint, scheme)
    export(checkpoint, "onnx", scheme, tmp_path / "out")
    assert layout(place(plan.tensors, most=most)).sizes == {
        path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.data")
    }


def test_block_sizes_and_names_are_those_of_the_gguf_package() -> None:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]] for name in BLOCKS} == dict(BLOCKS)
    config = open_checkpoint("tiny-qwen3").config
    for family in FAMILIES.values():
        architecture = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == family.gguf_architecture)
        names = get_tensor_name_map(architecture, config.num_layers)
        usual, layers = family.reading.experts, tuple(range(config.num_layers))
        experts = Experts(2, 1, 32, True, layers, usual.shared_intermediate_size) if usual else None
        own = replace(config, model_type=family.model_type, tie_word_embeddings=False, experts=experts)
        for source in expected_tensors(own):
            merged = re.sub(r"experts\.\d+", "experts", source)  # the converter asks for all of a layer at once
            assert gguf_name(family, source) == names.get_name(merged, try_suffixes=(".weight", ".bias"))
        for other in ("model.layers.0.mlp.experts", "lm_head", "model.layers.x.mlp.up_proj.weight", "visual.a.weight"):
            assert gguf_name(family, other) is None


WEIGHTS = (0, 1, 999, 45_678, 999_999, 1_000_001, 5_800_000, 494_032_768, 999_600_000, 10**9 + 1, 2 * 10**12)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_number_of_weights_is_named_as_the_gguf_package_does(weights: int) -> None:
    from gguf.utility import size_label as theirs

    assert rounded_count(weights) == theirs(weights, weights, 0, 0)


def test_predicting_imports_no_framework() -> None:
    program = (
        "import sys\nfrom edgekiln.checkpoint import open_checkpoint\nfrom edgekiln.exporters import EXPORTERS\n"
        "from edgekiln.scheme import Scheme\n"
        "checkpoint = open_checkpoint('tiny-qwen3', with_text=False)\n"
        "for exporter in EXPORTERS.values():\n"
        "    assert exporter.size(checkpoint, exporter.plan(checkpoint, Scheme('int4'))) > 3e6\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'onnx', 'onnx_ir', 'mobius', 'llama_cpp', 'gguf',"
        " 'tokenizers', 'jinja2', 'foundry_local_sdk'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
