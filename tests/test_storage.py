"""What most weights are stored as, told from the artifact alone."""

import pytest

from checkpoints import make_checkpoint
from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.kinds import identify
from edgekiln.validators.storage import main_type, weights_by_type

CASES = [
    ("onnx", Scheme("fp16"), "fp16"),
    ("onnx", Scheme("int8"), "int8"),
    ("onnx", Scheme("int4", symmetric=False), "int4"),
    ("onnx", Scheme("nf4"), "nf4"),
    ("gguf", Scheme("fp16"), "f16"),
    ("gguf", Scheme("int4"), "q4_0"),
    ("gguf", Scheme("q4_k_m"), "q4_k"),
]


@pytest.mark.parametrize(("format_name", "scheme", "expected"), CASES, ids=[f"{f} {e}" for f, _, e in CASES])
def test_the_main_type_is_the_one_that_was_asked_for(format_name, scheme, expected, tmp_path):
    checkpoint = open_checkpoint(EMBEDDED)
    export(checkpoint, format_name, scheme, tmp_path / "out")
    counts = weights_by_type(identify(tmp_path / "out"))
    assert main_type(counts) == expected
    matrices = sum(info.elements for info in checkpoint.tensors.values() if len(info.shape) > 1)
    assert sum(counts.values()) == matrices


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_embeddings_count_whether_tied_or_not(precision, tmp_path):
    for tied in (True, False):
        checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / f"tied-{tied}", tied=tied)))
        scheme = Scheme(precision, embedding_precision=precision, head_precision=precision)
        export(checkpoint, "onnx", scheme, tmp_path / f"out-{tied}")
        counts = weights_by_type(identify(tmp_path / f"out-{tied}"))
        assert counts == {precision: sum(t.elements for t in checkpoint.tensors.values() if len(t.shape) > 1)}


def test_nothing_has_no_main_type():
    assert main_type({}) is None
