"""What the weights lie in is told, an exception is a line, and too many are a failure."""

from __future__ import annotations

import pytest

from artifacts import artifact
from checkpoints import make_checkpoint
from edgekiln.checkpoint import open_checkpoint
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.conservation import audit
from edgekiln.validators.kinds import identify
from edgekiln.validators.precision import code_bits, meant_types


def check(path, checkpoint, asked=None):
    result = audit(identify(path), checkpoint, asked=asked, sample=0.02)
    return result.precision, result.checks[2]


@pytest.mark.parametrize(
    ("container", "precision", "most"),
    [
        ("gguf", "fp16", "f16"),
        ("gguf", "int4", "q4_0"),
        ("gguf", "int8", "q8_0"),
        ("gguf", "q4_k_m", "q4_k"),
        ("onnx", "fp16", "fp16"),
        ("onnx", "int4", "int4"),
        ("onnx", "nf4", "nf4"),
    ],
)
def test_what_was_asked_for_passes(container, precision, most, tmp_path):
    checkpoint = open_checkpoint("tiny-qwen3")
    path = artifact(container, precision, tmp_path)
    precision_found, result = check(path, checkpoint, precision)
    assert (result.outcome, precision_found.asked) == ("pass", precision)
    assert check(path, checkpoint)[0].asked == most
    matrices = sum(info.elements for info in checkpoint.tensors.values() if len(info.shape) > 1)
    assert sum(precision_found.weights_by_type.values()) == matrices


def test_bits_count_shared_bytes_once(tmp_path):
    checkpoint = open_checkpoint("tiny-qwen3")
    found, _ = check(artifact("onnx", "int8", tmp_path), checkpoint)
    assert found.bits_per_weight == pytest.approx(9.0, abs=0.1)  # 8 bits and a float32 scale for 32


@pytest.mark.parametrize(("built", "asked"), [("fp16", "int4"), ("int8", "int4"), ("int4", "int8"), ("fp16", "q4_k_m")])
@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_an_artifact_of_another_precision_fails(container, built, asked, tmp_path):
    if (container, asked) == ("onnx", "q4_k_m"):
        asked = "nf4"
    _, result = check(artifact(container, built, tmp_path), open_checkpoint("tiny-qwen3"), asked)
    assert result.outcome == "fail"
    assert {finding.id for finding in result.findings} <= {"precision/fallback", "precision/float"}
    assert result.detail


def test_a_float_embedding_is_a_warning(tmp_path):
    checkpoint = open_checkpoint("tiny-qwen3")
    scheme = Scheme("int8", embedding_precision="fp16", head_precision="int8")
    export(checkpoint, "onnx", scheme, tmp_path / "out")
    found, result = check(tmp_path / "out", checkpoint, "int8")
    assert result.outcome == "pass"
    assert [(f.id, f.severity) for f in result.findings] == [("precision/float", "warning")]
    assert [entry.name for entry in found.exceptions] == ["model.embed_tokens.weight"]


def test_rows_that_do_not_divide_fall_back_and_are_listed(tmp_path):
    shape = {"hidden_size": 96, "intermediate_size": 160, "num_heads": 3, "num_kv_heads": 3, "head_dim": 32}
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "in", num_layers=2, **shape)))
    export(checkpoint, "gguf", Scheme("q4_k_m"), tmp_path / "out")
    found, result = check(tmp_path / "out", checkpoint, "q4_k_m")
    assert result.outcome == "pass"
    assert {finding.id for finding in result.findings} == {"precision/fallback"}
    assert len(found.exceptions) == 2 * 7 + 1
    assert [e.weights for e in found.exceptions] == sorted((e.weights for e in found.exceptions), reverse=True)


def test_names_of_precisions():
    assert meant_types("q4_k_m") == ("q4_k",)
    assert "q4_0" in meant_types("int4")
    assert [code_bits(name) for name in ("q4_k", "int8", "f16", "fp32", "iq2_xxs", "nf4", "mxfp4")] == [
        4,
        8,
        16,
        32,
        2,
        4,
        4,
    ]
