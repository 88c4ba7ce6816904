"""Structural checks on artifacts of ours, whole and broken in one place each."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import onnx
import pytest

from artifacts import artifact, gguf_file, patch_gguf
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.exporters.gguf import Gguf
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.base import CheckResult
from edgekiln.validators.faults import FIXES
from edgekiln.validators.kinds import identify
from edgekiln.validators.runtime_llama import LlamaRuntime
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
    assert [result.check for result in found.checks] == ["files", "onnx/checker", "onnx/metadata", "onnx/genai_config"]
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
        (("model", "eos_token_id"), 4073),
        (("search", "max_length"), 1 << 20),
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
        genai["model"]["context_length"] = genai["search"]["max_length"] = 512

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


def change_graph(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def set_external(tensor: onnx.TensorProto, **fields: str) -> None:
    for key, value in fields.items():
        for entry in list(tensor.external_data):
            if entry.key == key:
                tensor.external_data.remove(entry)
        tensor.external_data.add(key=key, value=value)


def externals(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.external_data]


def move_decoder(directory: Path) -> None:
    """Put the graph into a folder of its own, beside its data."""
    (directory / "decoder").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (directory / name).rename(directory / "decoder" / name)
    change_genai(directory, lambda genai: genai["model"]["decoder"].update(filename="decoder/model.onnx"))


def test_data_files_are_relative_to_the_graph_and_stay_in_the_artifact(onnx_dir: Path) -> None:
    weights_bytes = check(onnx_dir).weights_bytes
    move_decoder(onnx_dir)
    assert failures(onnx_dir) == []
    assert check(onnx_dir).weights_bytes == weights_bytes
    graph = onnx_dir / "decoder" / "model.onnx"
    (onnx_dir / "decoder" / "model.onnx.data").rename(onnx_dir / "weights")

    def relocate(location: str) -> Callable[[onnx.ModelProto], object]:
        return lambda model: [set_external(tensor, location=location) for tensor in externals(model)]

    change_graph(graph, relocate("../weights"))
    files = check(onnx_dir).checks[0]
    assert (files.check, files.outcome) == ("files", "pass")
    (onnx_dir / "weights").rename(onnx_dir.parent / "weights")
    change_graph(graph, relocate("../../weights"))
    assert "outside" in only_failure(onnx_dir).detail


def test_one_file_under_two_names_is_one_file(onnx_dir: Path) -> None:
    weights_bytes = check(onnx_dir).weights_bytes
    first = externals(onnx.load(onnx_dir / "model.onnx", load_external_data=False))[0]

    def double(model: onnx.ModelProto) -> None:
        copy = model.graph.initializer.add()
        copy.CopyFrom(externals(model)[0])
        copy.name = "copy"
        set_external(copy, location="./model.onnx.data")

    change_graph(onnx_dir / "model.onnx", double)
    found = check(onnx_dir)
    assert found.weights_bytes == weights_bytes

    def shorten(model: onnx.ModelProto) -> None:
        copy = next(tensor for tensor in model.graph.initializer if tensor.name == "copy")
        copy.dims[0] -= 1
        nbytes = next(int(e.value) for e in first.external_data if e.key == "length") // first.dims[0] * copy.dims[0]
        set_external(copy, length=str(nbytes))

    change_graph(onnx_dir / "model.onnx", shorten)
    assert "overlap" in check(onnx_dir).checks[0].detail


def _dims(*extents: int) -> Callable[[onnx.TensorProto], object]:
    def change(tensor: onnx.TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(extents)

    return change


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda tensor: setattr(tensor, "data_type", 999), "unknown data type 999"),
        (lambda tensor: setattr(tensor, "data_type", 0), "unknown data type 0"),
        (_dims(-1, -32), "impossible shape"),
        (_dims(*[1 << 62] * 60), "impossible shape"),
        (_dims(*[1] * 100_000), "100000 dimensions"),
        (lambda tensor: set_external(tensor, offset="-4"), "offset '-4'"),
        (lambda tensor: set_external(tensor, offset="1_0"), "offset '1_0'"),
        (lambda tensor: set_external(tensor, length="9" * 5000), "which is no number of bytes"),
        (lambda tensor: set_external(tensor, location="a\0b"), "outside"),
        (lambda tensor: set_external(tensor, location="x" * 5000), "outside"),
        (lambda tensor: set_external(tensor, location="."), "missing"),
        (lambda tensor: set_external(tensor, location=""), "outside"),
        (lambda tensor: set_external(tensor, location="/etc/passwd"), "outside"),
    ],
)
def test_hostile_tensors_are_failures_not_crashes(
    onnx_dir: Path, change: Callable[[onnx.TensorProto], object], detail: str
) -> None:
    change_graph(onnx_dir / "model.onnx", lambda model: change(externals(model)[0]))
    (result,) = failures(onnx_dir)
    assert result.check == "files"
    assert re.search(detail, result.detail), result.detail
    assert len(result.detail) < 2000


def test_external_constants_are_held_to_the_same_rules(onnx_dir: Path) -> None:
    def add(model: onnx.ModelProto) -> None:
        constant = onnx.helper.make_tensor("escaped", onnx.TensorProto.FLOAT, [1], [0.0])
        constant.ClearField("float_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        set_external(constant, location="../elsewhere")
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["escaped"], value=constant))

    change_graph(onnx_dir / "model.onnx", add)
    assert "escaped points to '../elsewhere'" in only_failure(onnx_dir).detail


def test_text_that_is_not_utf8_is_a_failure_not_a_crash(onnx_dir: Path) -> None:
    path = onnx_dir / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"model.onnx.data", b"model.onnx.\xff\xfe\xfd\xfc"))
    assert failures(onnx_dir)


def test_logits_without_a_shape_are_no_crash(onnx_dir: Path) -> None:
    def strip(model: onnx.ModelProto) -> None:
        output = next(value for value in model.graph.output if value.name == "logits")
        del output.type.tensor_type.shape.dim[:]

    change_graph(onnx_dir / "model.onnx", strip)
    assert {result.check for result in check(onnx_dir).checks} >= {"files", "onnx/metadata"}


def test_endless_numbers_in_json_are_a_failure(onnx_dir: Path) -> None:
    (onnx_dir / "genai_config.json").write_text('{"model": ' + "9" * 5000 + "}")
    assert failures(onnx_dir)


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """The files of a split model."""
    export(CHECKPOINT, "gguf", Scheme("int4", split_max_size=1_000_000), tmp_path / "split")
    return sorted((tmp_path / "split").glob("*.gguf"))


def test_a_split_model_is_checked_whole(split: list[Path]) -> None:
    found = check(split[0].parent)
    assert len(split) > 2
    assert {result.outcome for result in found.checks} == {"pass"}
    assert found.weights_bytes == Gguf().plan(CHECKPOINT, Scheme("int4")).weights_bytes


def ids(path: Path) -> set[str]:
    return {finding.id for result in failures(path) for finding in result.findings}


def edit_key(path: Path, key: str, layout: str, value: int) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(key.encode()) + len(key) + 4, value)
    path.write_bytes(data)


def test_parts_that_do_not_belong_together_are_told(split: list[Path]) -> None:
    edit_key(split[1], "split.no", "<H", 2)
    edit_key(split[2], "split.tensors.count", "<i", 7)
    (files,) = failures(split[0].parent)
    assert [finding.id for finding in files.findings] == ["files/split"] * 2
    assert f"split.no of {split[1].name} is 2, but must be 1" in files.detail
    assert f"split.tensors.count of {split[2].name} is 7" in files.detail


def test_a_missing_part_a_cut_part_and_a_repeated_part_are_told_apart(split: list[Path]) -> None:
    last, data = split[-1], split[-1].read_bytes()
    last.unlink()
    assert "is missing" in only_failure(split[0].parent).detail
    last.write_bytes(data[:-64])
    assert ids(split[0].parent) == {"files/truncated", "gguf/reader"}
    last.write_bytes(split[1].read_bytes())
    assert ids(split[0].parent) == {"files/split", "gguf/duplicate"}


@pytest.mark.parametrize("count", [0x7FFF, 0xFFFF])
def test_an_impossible_number_of_parts_fails(split: list[Path], count: int) -> None:
    edit_key(split[0], "split.count", "<H", count)
    assert [finding.id for finding in only_failure(split[0].parent).findings] == ["files/split"]


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


def finding_ids(path: Path) -> set[str]:
    """Return the ids of all errors; failed checks have some, others none, and each has its fix."""
    ids = set()
    for result in check(path).checks:
        wrong = {finding.id for finding in result.findings if finding.severity == "error"}
        assert bool(wrong) == (result.outcome == "fail")
        assert all(finding.fix == FIXES[finding.id] for finding in result.findings)
        ids |= wrong
    return ids


@pytest.mark.parametrize(
    ("key", "layout", "value", "cause"),
    [
        ("qwen3.block_count", "<I", 5, "layers"),
        ("qwen3.embedding_length", "<I", 255, "hidden_size"),
        ("qwen3.feed_forward_length", "<I", 769, "intermediate_size"),
        ("qwen3.attention.head_count", "<I", 8, "heads"),
        ("qwen3.attention.head_count_kv", "<I", 4, "heads"),
        ("qwen3.attention.value_length", "<I", 32, "head_dim"),
        ("qwen3.attention.layer_norm_rms_epsilon", "<f", 1e-5, "norm_epsilon"),
        ("qwen3.rope.freq_base", "<f", 1e6, "rope_base"),
        ("qwen3.context_length", "<I", 4096, "context"),
        ("tokenizer.ggml.eos_token_id", "<I", 17, "eos"),
    ],
)
def test_findings_name_the_hyper_parameter(gguf_dir: Path, key: str, layout: str, value: float, cause: str) -> None:
    patch_gguf(gguf_file(gguf_dir), key, layout, value)
    assert finding_ids(gguf_dir) == {f"metadata/{cause}"}
    (finding,) = only_failure(gguf_dir).findings
    assert finding.subject == key


def test_a_cut_file_and_a_lying_header_are_told_apart(gguf_dir: Path) -> None:
    path = gguf_file(gguf_dir)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert finding_ids(gguf_dir) == {"files/truncated", "gguf/reader"}
    path.write_bytes(whole[:1000])
    assert finding_ids(gguf_dir) == {"files/truncated"}
    path.write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])  # the number of tensors
    assert finding_ids(gguf_dir) == {"gguf/header"}


@pytest.mark.parametrize("offset", [0, 32, 1 << 20, 1 << 62])
def test_offsets_that_lie_are_found_as_llama_cpp_finds_them(gguf_dir: Path, offset: int) -> None:
    """A tensor over another, in a gap, or beyond the end: llama.cpp loads none of these files."""
    path = gguf_file(gguf_dir)
    data = path.read_bytes()
    name = b"blk.1.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4  # dimensions, extents, type
    path.write_bytes(data[:at] + offset.to_bytes(8, "little") + data[at + 8 :])
    assert "gguf/offsets" in finding_ids(gguf_dir)
    with pytest.raises(ArtifactError):
        LlamaRuntime().load_tokenizer(path)


def test_a_gap_before_the_last_tensor_is_a_lie_too(gguf_dir: Path) -> None:
    """Nothing overlaps and nothing is cut off, but ggml wants each tensor where the one before it ends."""
    path = gguf_file(gguf_dir)
    last = gguf.GGUFReader(path).tensors[-1]
    data = path.read_bytes()
    at = data.index(last.name.encode()) + len(last.name) + 4 + len(last.shape) * 8 + 4
    offset = int.from_bytes(data[at : at + 8], "little") + 32
    path.write_bytes(data[:at] + offset.to_bytes(8, "little") + data[at + 8 :] + bytes(32))
    assert finding_ids(gguf_dir) == {"gguf/offsets"}
    with pytest.raises(ArtifactError):
        LlamaRuntime().load_tokenizer(path)


@pytest.mark.parametrize(
    ("location", "cause"),
    [("../elsewhere", "files/outside"), ("nowhere", "files/missing"), ("model.onnx", "files/truncated")],
)
def test_findings_name_what_is_wrong_with_a_data_file(onnx_dir: Path, location: str, cause: str) -> None:
    change_graph(onnx_dir / "model.onnx", lambda model: set_external(externals(model)[0], location=location))
    assert finding_ids(onnx_dir) == {cause}


@pytest.mark.parametrize(
    ("where", "value", "cause"),
    [
        (("type",), "llama", "architecture"),
        (("vocab_size",), 4095, "vocabulary"),
        (("context_length",), 1 << 20, "context"),
        (("eos_token_id",), [4073], "eos"),
        (("eos_token_id",), ["4072"], "eos"),
        (("decoder", "head_size"), 32, "head_dim"),
        (("decoder", "num_hidden_layers"), 7, "layers"),
        (("decoder", "num_key_value_heads"), 4, "heads"),
    ],
)
def test_findings_name_the_key_of_genai_config(
    onnx_dir: Path, where: tuple[str, ...], value: object, cause: str
) -> None:
    def change(genai: dict[str, Any]) -> None:
        part = genai["model"]
        for key in where[:-1]:
            part = part[key]
        part[where[-1]] = value

    change_genai(onnx_dir, change)
    assert finding_ids(onnx_dir) == {f"metadata/{cause}"}


def test_a_second_end_of_text_that_is_missing_is_a_warning(onnx_dir: Path) -> None:
    change_genai(onnx_dir, lambda genai: genai["model"].update(eos_token_id=4072))
    (finding,) = [finding for result in check(onnx_dir).checks for finding in result.findings]
    assert (finding.id, finding.severity) == ("metadata/eos", "warning")


def test_one_decoder_of_ort_genai_under_two_names_is_a_note(onnx_dir: Path) -> None:
    change_genai(onnx_dir, lambda genai: genai["model"].update(type="qwen2"))
    (finding,) = [finding for result in check(onnx_dir).checks for finding in result.findings]
    assert (finding.id, finding.severity) == ("metadata/architecture", "note")


def set_attribute(model: onnx.ModelProto, operator: str, **values: float) -> None:
    for node in [node for node in model.graph.node if node.op_type == operator][:1]:
        for name, value in values.items():
            for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
                node.attribute.remove(attribute)
            node.attribute.append(onnx.helper.make_attribute(name, value))


@pytest.mark.parametrize(
    ("operator", "values", "cause"),
    [
        ("SkipSimplifiedLayerNormalization", {"epsilon": 1e-5}, "norm_epsilon"),
        ("RMSNormalization", {"epsilon": 1e-5}, "norm_epsilon"),
        ("GroupQueryAttention", {"num_heads": 8}, "heads"),
        ("GroupQueryAttention", {"kv_num_heads": 1}, "heads"),
        ("GroupQueryAttention", {"scale": 0.5}, "attention_scale"),
        ("GroupQueryAttention", {"local_window_size": 128}, "attention_window"),
        ("GroupQueryAttention", {"softcap": 50.0}, "softcap"),
        ("GroupQueryAttention", {"causal": 0}, "causal"),
        ("GroupQueryAttention", {"rotary_interleaved": 1}, "rope_layout"),
    ],
)
def test_findings_name_what_one_node_computes_otherwise(
    onnx_dir: Path, operator: str, values: dict[str, float], cause: str
) -> None:
    change_graph(onnx_dir / "model.onnx", lambda model: set_attribute(model, operator, **values))
    result = only_failure(onnx_dir)
    assert result.check == "onnx/metadata"
    assert {finding.id for finding in result.findings} == {f"metadata/{cause}"}


def test_tables_shorter_than_the_promised_context_are_found(onnx_dir: Path) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith(("cos_cache", "sin_cache")):
                tensor.dims[0] = 1024
                set_external(tensor, length=str(1024 * tensor.dims[1] * 4))

    change_graph(onnx_dir / "model.onnx", shorten)
    result = only_failure(onnx_dir)
    assert {finding.id for finding in result.findings} == {"metadata/context"}
    assert "has 1024 positions" in result.detail


def test_a_graph_too_large_to_be_read_is_refused(onnx_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekiln.validators.structure_onnx.MAX_GRAPH_BYTES", 1000)
    assert finding_ids(onnx_dir) == {"onnx/model"}


def test_findings_name_the_caches_of_a_graph(onnx_dir: Path) -> None:
    def reshape(axis: int, extent: int) -> Callable[[onnx.ModelProto], object]:
        def change(model: onnx.ModelProto) -> None:
            extents = next(value for value in model.graph.input if value.name == "past_key_values.2.key")
            extents.type.tensor_type.shape.dim[axis].dim_value = extent

        return change

    change_graph(onnx_dir / "model.onnx", reshape(3, 32))
    (finding,) = [found for result in failures(onnx_dir) for found in result.findings if "cached" in found.detail]
    assert (finding.id, finding.subject) == ("metadata/head_dim", "past_key_values.2.key")
    change_graph(onnx_dir / "model.onnx", reshape(3, 64))
    change_graph(onnx_dir / "model.onnx", reshape(1, 4))
    (finding,) = [found for result in failures(onnx_dir) for found in result.findings if "cached" in found.detail]
    assert (finding.id, finding.subject) == ("metadata/heads", "past_key_values.2.key")
