"""Structural checks on artifacts of ours, whole and broken in one place each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from artifacts import artifact, gguf_file, patch_gguf
from edgekiln.checkpoint import open_checkpoint
from edgekiln.validators.base import CheckResult
from edgekiln.validators.kinds import identify
from edgekiln.validators.structure import Structure, check_structure

CHECKPOINT = open_checkpoint("tiny-qwen3")


def check(path: Path) -> Structure:
    return check_structure(identify(path), CHECKPOINT.config, architecture="qwen3", genai_type="qwen3")


def failures(path: Path) -> list[CheckResult]:
    return [result for result in check(path).checks if result.outcome == "fail"]


def only_failure(path: Path) -> CheckResult:
    (result,) = failures(path)
    return result


@pytest.fixture
def gguf_dir(tmp_path: Path) -> Path:
    return artifact("gguf", "int8", tmp_path)


@pytest.fixture
def onnx_dir(tmp_path: Path) -> Path:
    return artifact("onnx", "int4", tmp_path)


def test_sound_artifacts_pass_every_check(gguf_dir: Path, onnx_dir: Path) -> None:
    found = check(gguf_dir)
    assert [result.check for result in found.checks] == ["files", "gguf/bounds", "gguf/reader", "gguf/metadata"]
    assert {result.outcome for result in found.checks} == {"pass"}
    found = check(onnx_dir)
    assert [result.check for result in found.checks] == ["files", "onnx/checker", "onnx/outputs", "onnx/genai_config"]
    assert {result.outcome for result in found.checks} == {"pass"}


def test_weights_bytes_come_from_the_artifact(gguf_dir: Path, onnx_dir: Path) -> None:
    matrices = sum(tensor.elements for tensor in CHECKPOINT.tensors.values() if len(tensor.shape) == 2)
    vectors = CHECKPOINT.weight_count - matrices
    assert check(gguf_dir).weights_bytes == matrices // 32 * 34 + vectors * 4
    data = (onnx_dir / "model.onnx.data").stat().st_size
    stored = check(onnx_dir).weights_bytes
    assert stored is not None
    assert 0.9 * data < stored < data + 2 * (onnx_dir / "model.onnx").stat().st_size


def test_names_and_manifests_decide_nothing(gguf_dir: Path, onnx_dir: Path) -> None:
    gguf_file(gguf_dir).rename(gguf_dir / "whatever.bin")
    (gguf_dir / "manifest.json").write_text("not even JSON")
    assert failures(gguf_dir) == []
    (onnx_dir / "model.onnx").rename(onnx_dir / "decoder.onnx")
    change_genai(onnx_dir, lambda genai: genai["model"]["decoder"].update(filename="decoder.onnx"))
    assert failures(onnx_dir) == []


@pytest.mark.parametrize(
    ("key", "layout", "value"),
    [
        ("qwen3.block_count", "<I", 5),
        ("qwen3.embedding_length", "<I", 255),
        ("qwen3.feed_forward_length", "<I", 769),
        ("qwen3.attention.head_count", "<I", 8),
        ("qwen3.attention.head_count_kv", "<I", 4),
        ("qwen3.attention.key_length", "<I", 32),
        ("qwen3.attention.layer_norm_rms_epsilon", "<f", 1e-5),
        ("qwen3.rope.freq_base", "<f", 1e6),
        ("qwen3.context_length", "<I", 4096),
        ("tokenizer.ggml.eos_token_id", "<I", 17),
    ],
)
def test_wrong_gguf_metadata_is_named(gguf_dir: Path, key: str, layout: str, value: float) -> None:
    patch_gguf(gguf_file(gguf_dir), key, layout, value)
    result = only_failure(gguf_dir)
    assert result.check == "gguf/metadata"
    assert key in result.detail


def test_a_truncated_gguf_fails_wherever_it_ends(gguf_dir: Path) -> None:
    path = gguf_file(gguf_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert [result.check for result in failures(gguf_dir)] == ["gguf/bounds", "gguf/reader"]
    path.write_bytes(whole[:1000])
    assert only_failure(gguf_dir).check == "gguf/header"


def change_genai(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "genai_config.json"
    genai = json.loads(path.read_text())
    change(genai)
    path.write_text(json.dumps(genai))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("model", "type"), "llama"),
        (("model", "vocab_size"), 4095),
        (("model", "context_length"), 1 << 20),
        (("model", "eos_token_id"), 4072),
        (("model", "decoder", "head_size"), 32),
        (("model", "decoder", "num_hidden_layers"), 7),
        (("model", "decoder", "num_key_value_heads"), 4),
        (("model", "decoder", "hidden_size"), 128),
    ],
)
def test_wrong_genai_config_is_named(onnx_dir: Path, where: tuple[str, ...], value: object) -> None:
    def change(genai: dict[str, Any]) -> None:
        for key in where[:-1]:
            genai = genai[key]
        genai[where[-1]] = value

    change_genai(onnx_dir, change)
    result = only_failure(onnx_dir)
    assert result.check == "onnx/genai_config"
    assert where[-1] in result.detail


def test_optional_keys_may_be_missing_and_the_context_may_be_shorter(onnx_dir: Path) -> None:
    def change(genai: dict[str, Any]) -> None:
        genai["model"]["decoder"].pop("hidden_size", None)
        genai["model"]["decoder"].pop("num_attention_heads", None)
        genai["model"]["context_length"] = 512

    change_genai(onnx_dir, change)
    assert failures(onnx_dir) == []


def test_missing_and_short_data_files(onnx_dir: Path) -> None:
    data = onnx_dir / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096])
    assert "bytes at byte" in only_failure(onnx_dir).detail
    data.unlink()
    assert "model.onnx.data is missing" in only_failure(onnx_dir).detail


def test_data_outside_the_directory_is_refused(onnx_dir: Path) -> None:
    (onnx_dir / "model.onnx.data").rename(onnx_dir.parent / "elsewhere")
    model = onnx.load(onnx_dir / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere"
    (onnx_dir / "model.onnx").write_bytes(model.SerializeToString())
    result = only_failure(onnx_dir)
    assert result.check == "files"
    assert "outside" in result.detail


def test_a_decoder_outside_the_directory_is_refused(onnx_dir: Path) -> None:
    change_genai(onnx_dir, lambda genai: genai["model"]["decoder"].update(filename="../model.onnx"))
    assert "no file inside" in only_failure(onnx_dir).detail


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 3}', '{"model": {"decoder": []}}'])
def test_hostile_genai_configs_are_failures_not_crashes(onnx_dir: Path, content: str) -> None:
    (onnx_dir / "genai_config.json").write_text(content)
    assert failures(onnx_dir)


def test_a_graph_that_is_no_onnx_model(onnx_dir: Path) -> None:
    (onnx_dir / "model.onnx").write_bytes(b"\x12\x34garbage" * 100)
    assert failures(onnx_dir)


def test_a_graph_that_breaks_onnxs_rules(onnx_dir: Path) -> None:
    model = onnx.load(onnx_dir / "model.onnx", load_external_data=False)
    model.graph.node[3].input[0] = "nothing_of_this_name"
    (onnx_dir / "model.onnx").write_bytes(model.SerializeToString())
    assert only_failure(onnx_dir).check == "onnx/checker"


def test_runtime_operators_in_onnxs_own_domain_are_no_error(onnx_dir: Path) -> None:
    """The onnxruntime-genai builder writes SimplifiedLayerNormalization so."""
    model = onnx.load(onnx_dir / "model.onnx", load_external_data=False)
    norm = next(node for node in model.graph.node if "Normalization" in node.op_type)
    norm.op_type, norm.domain = "SimplifiedLayerNormalization", ""
    (onnx_dir / "model.onnx").write_bytes(model.SerializeToString())
    assert failures(onnx_dir) == []
    norm.op_type = "NoSuchNormalization"
    (onnx_dir / "model.onnx").write_bytes(model.SerializeToString())
    assert only_failure(onnx_dir).check == "onnx/checker"


def test_foundry_local_contract(tmp_path: Path) -> None:
    directory = artifact("foundry-local", "int4", tmp_path)
    assert failures(directory) == []
    (directory / "download.tmp").touch()
    assert only_failure(directory).check == "foundry/inference_model"
    (directory / "download.tmp").unlink()
    (directory / "inference_model.json").write_text('{"Name": 7}')
    assert only_failure(directory).check == "foundry/inference_model"
