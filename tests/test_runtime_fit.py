"""Runtime fit: what releases refuse is told from the artifact alone, and good artifacts raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from onnx import helper
from packaging.specifiers import SpecifierSet

from artifacts import artifact
from edgekiln.errors import UsageError
from edgekiln.validators import runtime_fit
from edgekiln.validators.base import CheckResult, Finding
from edgekiln.validators.kinds import identify
from edgekiln.validators.runtime_fit import RUNTIMES, check_fit, requirements
from edgekiln.validators.runtime_support import parse_support

_INSTALLED = "installed"


def _fit(path: Path, runtime: str, versions: str = _INSTALLED) -> CheckResult:
    return check_fit(identify(path), runtime, None if versions == _INSTALLED else SpecifierSet(versions))


def _errors(result: CheckResult) -> list[tuple[str, str]]:
    return [(finding.id, finding.subject) for finding in result.findings if finding.severity == "error"]


def _one(result: CheckResult, cause: str) -> Finding:
    (found,) = [finding for finding in result.findings if finding.id == cause]
    return found


def _tiny_gguf(path: Path, architecture: str = "qwen2", pre: str = "qwen2", *types: str) -> Path:
    """Write a file with one tensor of each type and no sound model around them."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    for name in types or ("F32",):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        nbytes = 256 // block * size
        writer.add_tensor_info(f"{name}.weight", [nbytes], np.dtype(np.uint8), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def _edit(directory: Path, change: Callable[[Any], object]) -> Path:
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return directory


def _change_graph(directory: Path, change: Callable[[Any], object]) -> Path:
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    change(model)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return directory


# --- no false alarms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "nf4"])
def test_our_onnx_directories_fit_what_is_installed(tmp_path: Path, precision: str) -> None:
    directory = artifact("onnx", precision, tmp_path)
    for runtime in ("onnxruntime-genai", "foundry-local"):
        result = _fit(directory, runtime)
        assert (result.outcome, result.findings) == ("pass", ()), result


@pytest.mark.parametrize("precision", ["fp16", "q8_0", "q4_k_m"])
def test_our_gguf_files_fit_what_is_installed(tmp_path: Path, precision: str) -> None:
    result = _fit(artifact("gguf", precision, tmp_path), "llama.cpp")
    assert (result.outcome, result.findings) == ("pass", ()), result


# --- GGUF ---------------------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused_and_nothing_else(tmp_path: Path) -> None:
    result = _fit(_tiny_gguf(tmp_path / "x.gguf", "nonsense"), "llama.cpp")
    assert result.outcome == "fail"
    assert _errors(result) == [("runtime/architecture", "general.architecture")]
    assert "no release" in _one(result, "runtime/architecture").fix


def test_the_lowest_admitted_release_decides_and_the_fix_names_the_first_that_loads_it(tmp_path: Path) -> None:
    path = _tiny_gguf(tmp_path / "x.gguf", "qwen3")
    assert _fit(path, "llama.cpp", ">=0.3.9").outcome == "pass"
    refused = _fit(path, "llama.cpp", ">=0.3.8")
    assert refused.outcome == "fail"
    assert _one(refused, "runtime/architecture").fix == "require llama-cpp-python >= 0.3.9"


@pytest.mark.parametrize(("kind", "since"), [("MXFP4", "0.3.15"), ("NVFP4", "0.3.17")])
def test_a_tensor_type_is_refused_by_releases_before_it(tmp_path: Path, kind: str, since: str) -> None:
    path = _tiny_gguf(tmp_path / "x.gguf", "qwen2", "qwen2", "F32", kind)
    finding = _one(_fit(path, "llama.cpp", ">=0.3.0"), "runtime/tensor_type")
    assert (finding.severity, finding.subject) == ("error", f"{kind}.weight")
    assert finding.fix == f"require llama-cpp-python >= {since}"
    assert _fit(path, "llama.cpp", f">={since}").outcome == "pass"


def test_a_pre_tokenizer_that_is_unknown_is_refused(tmp_path: Path) -> None:
    result = _fit(_tiny_gguf(tmp_path / "x.gguf", "qwen2", "nonsense"), "llama.cpp")
    assert _errors(result) == [("runtime/tokenizer", "tokenizer.ggml.pre")]


@pytest.mark.parametrize("number", [1, 4, 3 << 24])
def test_other_versions_of_gguf_are_refused(tmp_path: Path, number: int) -> None:
    path = _tiny_gguf(tmp_path / "x.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = number.to_bytes(4, "little")
    path.write_bytes(data)
    assert _errors(_fit(path, "llama.cpp")) == [("runtime/gguf_version", "x.gguf")]


def test_what_only_later_releases_refuse_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(
        """
schema: edgekiln.runtime-support/1
sources: {here: {title: a test, url: "https://example.org/", says: nothing}}
runtimes:
  llama-cpp-python:
    title: Dropping
    reads: gguf
    releases: [1.0, 1.1]
    lists:
      - {what: architecture, complete: true, source: here, rows: [{since: 1.0, gone_in: 1.1, names: [qwen2]}]}
"""
    )
    parsed = parse_support(table)
    monkeypatch.setattr(runtime_fit, "runtime_support", lambda: parsed)
    path = _tiny_gguf(tmp_path / "x.gguf")
    finding = _one(_fit(path, "llama.cpp", ">=1.0"), "runtime/architecture")
    assert finding.severity == "warning"
    assert finding.fix == "require llama-cpp-python < 1.1"
    assert _one(_fit(path, "llama.cpp", ">=1.1"), "runtime/architecture").severity == "error"


def test_where_nobody_has_looked_a_note_says_so_and_nothing_fails(tmp_path: Path) -> None:
    result = _fit(_tiny_gguf(tmp_path / "x.gguf", "nonsense"), "llama.cpp", ">=7")
    assert result.outcome == "pass"
    assert {finding.severity for finding in result.findings} == {"note"}
    assert "not known" in _one(result, "runtime/architecture").detail


# --- ONNX ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return artifact("onnx", "int4", tmp_path)


def test_an_opset_that_is_too_new_is_refused(directory: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.opset_import:
            entry.version = 99 if not entry.domain else entry.version

    assert _errors(_fit(_change_graph(directory, change), "onnxruntime-genai")) == [("runtime/opset", "model.onnx")]


def test_an_ir_version_that_is_too_new_is_refused(directory: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = 99

    assert _errors(_fit(_change_graph(directory, change), "foundry-local")) == [("runtime/ir_version", "model.onnx")]


def _renamed(operator: str, domain: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
        node.op_type, node.domain, node.name = operator, domain, "changed"

    return change


@pytest.mark.parametrize("domain", ["com.microsoft", "com.example"])
def test_an_operator_that_no_release_has_is_refused_with_the_node_that_uses_it(directory: Path, domain: str) -> None:
    result = _fit(_change_graph(directory, _renamed("MatMulFancy", domain)), "onnxruntime-genai")
    assert _errors(result) == [("runtime/operator", "changed")]


def test_operators_that_the_model_brings_along_are_its_own_affair(directory: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _renamed("MatMulFancy", "com.example")(model)
        body = [helper.make_node("Identity", ["a"], ["b"])]
        model.functions.append(helper.make_function("com.example", "MatMulFancy", ["a"], ["b"], body, []))

    assert not _errors(_fit(_change_graph(directory, change), "onnxruntime-genai"))


def test_a_library_of_custom_operators_may_have_any(directory: Path) -> None:
    _change_graph(directory, _renamed("MatMulFancy", "com.example"))
    _edit(directory, lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="own.so"))
    assert not _errors(_fit(directory, "onnxruntime-genai"))


def test_an_attribute_that_the_release_lacks_is_refused(directory: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
        node.attribute.append(helper.make_attribute("nonsense", 1))

    result = _fit(_change_graph(directory, change), "onnxruntime-genai")
    assert [cause for cause, _ in _errors(result)] == ["runtime/operator"]
    assert "nonsense of MatMulNBits" in result.detail


def test_more_inputs_than_the_operator_takes_are_refused(directory: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
        node.input.extend([node.input[0]] * 9)

    assert [cause for cause, _ in _errors(_fit(_change_graph(directory, change), "onnxruntime-genai"))] == [
        "runtime/operator"
    ]


def test_int8_weights_need_the_release_that_brought_eight_bits(tmp_path: Path) -> None:
    result = _fit(artifact("onnx", "int8", tmp_path), "onnxruntime-web", ">=1.21.1,<1.22")
    details = [finding.detail for finding in result.findings if finding.id == "runtime/operator"]
    assert any("MatMulNBits with 8 bits" in detail for detail in details), result


def test_a_model_type_that_is_unknown_is_refused_only_where_it_is_known_to_be(directory: Path) -> None:
    qwen3 = _fit(directory, "onnxruntime-genai", ">=0.7.1")
    assert ("runtime/model_type", "model.type") in _errors(qwen3)
    assert _one(qwen3, "runtime/model_type").fix == "require onnxruntime-genai >= 0.8.3"
    _edit(directory, lambda config: config["model"].update(type="nonsense"))
    assert _one(_fit(directory, "onnxruntime-genai"), "runtime/model_type").severity == "note"


def test_a_key_that_came_later_is_refused_by_the_release_before(directory: Path) -> None:
    _edit(directory, lambda config: config["model"]["decoder"].update(state_groups=[]))
    found = _one(_fit(directory, "onnxruntime-genai", "==0.15.2"), "runtime/config_key")
    assert (found.severity, found.subject) == ("error", "model.decoder.state_groups")
    assert found.fix == "require onnxruntime-genai >= 0.16.0"
    assert _fit(directory, "onnxruntime-genai", ">=0.16").outcome == "pass"


def test_foundry_local_is_judged_by_the_pair_that_it_pins(directory: Path) -> None:
    _edit(directory, lambda config: config["model"]["decoder"].update(state_groups=[]))
    found = _one(_fit(directory, "foundry-local", ">=1.0"), "runtime/config_key")
    assert "onnxruntime 1.24.4" in found.detail
    assert found.fix == "require foundry-local-sdk >= 2.1.0"


def test_foundry_local_beside_another_pair_is_a_warning(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_fit, "version", lambda name: "1.30.0" if name == "onnxruntime" else version(name))
    found = _one(_fit(directory, "foundry-local"), "runtime/pinned_pair")
    assert (found.severity, found.subject) == ("warning", "onnxruntime")
    assert "1.30.0 is installed" in found.detail


def test_a_release_without_a_known_pair_is_a_note(directory: Path) -> None:
    result = _fit(directory, "foundry-local", "==0.5.1")
    assert result.outcome == "pass"
    assert _one(result, "runtime/pinned_pair").severity == "note"


def test_kernels_are_looked_for_on_the_cpu_alone(directory: Path) -> None:
    _change_graph(directory, _renamed("MatMulNBitsMlp", "com.microsoft"))
    kind = identify(directory)
    on_cpu = [f.detail for f in check_fit(kind, "onnxruntime-genai", None).findings if "CPU kernel" in f.detail]
    elsewhere = check_fit(kind, "onnxruntime-genai", None, provider="cuda").findings
    assert len(on_cpu) == 1
    assert not [finding for finding in elsewhere if "CPU kernel" in finding.detail]


# --- the rest -----------------------------------------------------------------------------------------------------


def test_a_runtime_that_is_not_installed_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(runtime_fit, "version", missing)
    assert _fit(_tiny_gguf(tmp_path / "x.gguf"), "llama.cpp").outcome == "not_measured"


def test_an_artifact_that_cannot_be_read_is_left_to_the_checks_of_its_structure(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"\xff" * 64)
    assert _fit(directory, "onnxruntime-genai").outcome == "not_measured"


def test_a_runtime_must_read_the_kind_of_artifact(tmp_path: Path) -> None:
    path = _tiny_gguf(tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="reads onnx"):
        _fit(path, "foundry-local")
    with pytest.raises(UsageError, match=r"llama\.cpp"):
        _fit(path, "llama.cp")


def test_every_runtime_of_the_targets_is_judged() -> None:
    from edgekiln.pipelines.targets import RUNTIMES as NAMED

    assert set(RUNTIMES) == set(NAMED)


def test_requirements_name_the_lowest_release_of_each_runtime_with_its_source(tmp_path: Path) -> None:
    path = _tiny_gguf(tmp_path / "x.gguf", "qwen3next", "qwen2", "F32", "MXFP4")
    found = {(entry.runtime, entry.what): entry for entry in requirements(identify(path))}
    architecture = "the architecture qwen3next"
    assert found["llama-cpp-python", architecture].since == "0.3.17"
    assert found["llama.cpp", architecture].since == "b7347"
    assert found["llama.cpp", architecture].not_in == "b6845"
    assert found["LM Studio's llama.cpp engine", architecture].since == "1.60.0"
    assert found["Ollama", architecture].since is None
    assert found["llama-cpp-python", "tensors of type MXFP4"].since == "0.3.15"
    assert all("https://" in entry.source for entry in found.values())


def test_requirements_of_onnx_name_the_opset_and_the_model_type(directory: Path) -> None:
    found = requirements(identify(directory))
    assert {"ONNX Runtime", "ONNX Runtime GenAI"} == {entry.runtime for entry in found}
    assert any(entry.what.startswith("opset") and entry.since for entry in found)
    assert any(entry.what == "the model type qwen3" and entry.since == "0.8.3" for entry in found)


def test_a_hostile_file_with_thousands_of_unknown_keys_gives_one_note(directory: Path) -> None:
    _edit(directory, lambda config: config["search"].update({f"key_{i}" + "x" * 500: i for i in range(3000)}))
    result = _fit(directory, "onnxruntime-genai")
    (finding,) = result.findings
    assert (finding.id, finding.severity) == ("runtime/config_key", "note")
    assert len(finding.detail) < 2000
