"""A graph is read without its data, each weight counts once, and a hostile one is an error."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from artifacts import artifact
from checkpoints import make_checkpoint
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.pipelines.export import export
from edgekiln.scheme import Scheme
from edgekiln.validators.onnx_read import read_graph


@pytest.mark.parametrize(
    ("precision", "symmetric", "expected"),
    [
        ("fp16", True, {"float16"}),
        ("int8", True, {"int8 g32 sym"}),
        ("int4", False, {"int4 g32 asym"}),
        ("nf4", True, {"nf4 g64", "int8 g32 sym"}),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_the_checkpoint_counts_once_with_its_type(tmp_path, precision, symmetric, expected, tied):
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "in", num_layers=1, tied=tied)))
    manifest = export(checkpoint, "onnx", Scheme(precision, symmetric=symmetric), tmp_path / "out")
    graph = read_graph(tmp_path / "out", tmp_path / "out" / "model.onnx")
    weights = [tensor for tensor in graph.tensors if tensor.role != "constant"]
    assert sum(tensor.weights for tensor in weights if not tensor.shared) == checkpoint.weight_count
    assert {tensor.type for tensor in weights if tensor.role in {"matrix", "embedding"}} == expected
    assert [tensor.shape for tensor in weights if tensor.role == "embedding"] == [(4096, 256)]
    inline = sum(t.nbytes for t in graph.tensors if t.role == "constant" and t.nbytes < 64)  # shapes of Reshape
    assert sum(tensor.nbytes for tensor in graph.tensors) - inline == manifest.weights_bytes
    assert graph.problem is None


def test_missing_data_are_a_problem_and_the_rest_is_told(tmp_path):
    directory = artifact("onnx", "int4", tmp_path)
    whole = read_graph(directory, directory / "model.onnx")
    (directory / "model.onnx.data").unlink()
    graph = read_graph(directory, directory / "model.onnx")
    assert "model.onnx.data is missing" in (graph.problem or "")
    assert (graph.tensors, graph.operators) == (whole.tensors, whole.operators)


def save(path: Path, *, dims: list[int] | None = None, node: onnx.NodeProto | None = None) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[2, 2] if dims is None else dims, raw_data=b"1234")
    graph = helper.make_graph([node] if node else [], "g", [], [], [tensor])
    onnx.save(helper.make_model(graph), path)
    return path


def quantized(**attributes: int) -> onnx.NodeProto:
    return helper.make_node("MatMulNBits", ["x", "w"], ["y"], domain="com.microsoft", **attributes)


HOSTILE = {
    "impossible shape": ({"dims": [-5, 3]}, "impossible shape"),
    "huge shape": ({"dims": [1 << 62, 1 << 62]}, "impossible shape"),
    "huge matrix": ({"node": quantized(K=1 << 60, N=1 << 60)}, "impossible shape"),
    "no matrix": ({"node": quantized()}, "impossible shape"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_graph_is_an_error(tmp_path, change, message):
    path = save(tmp_path / "m.onnx", **change)
    with pytest.raises(ArtifactError, match=message):
        read_graph(tmp_path, path)


def test_what_is_no_graph_is_an_error(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"", b"no protobuf", bytes(range(256)) * 9):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="no ONNX model"):
            read_graph(tmp_path, path)
    with path.open("wb") as file:
        file.truncate(257 << 20)
    with pytest.raises(ArtifactError, match="are allowed"):
        read_graph(tmp_path, path)


def test_every_truncation_is_an_error_or_read(tmp_path):
    whole = save(tmp_path / "m.onnx", node=quantized(K=32, N=4, bits=4, block_size=32)).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "short.onnx").write_bytes(whole[:length])
        try:
            read_graph(tmp_path, tmp_path / "short.onnx")
        except ArtifactError:
            continue


def test_data_outside_the_artifact_are_a_problem(tmp_path):
    (tmp_path / "secret").write_bytes(b"1234")
    directory = tmp_path / "artifact"
    directory.mkdir()
    path = save(directory / "m.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    assert "outside the artifact" in (read_graph(directory, path).problem or "")


def test_embeddings_looked_up_in_the_heads_codes_are_tied(tmp_path):
    codes = TensorProto(name="head", data_type=TensorProto.UINT8, dims=[4, 1, 16], raw_data=bytes(64))
    scales = TensorProto(name="scales", data_type=TensorProto.FLOAT, dims=[4, 1], raw_data=bytes(16))
    shape = TensorProto(name="shape", data_type=TensorProto.INT64, dims=[2], raw_data=bytes(16))
    attributes = {"bits": 4, "block_size": 32}
    nodes = [
        helper.make_node("Reshape", ["head", "shape"], ["flat"]),
        helper.make_node(
            "GatherBlockQuantized", ["flat", "ids", "scales"], ["x"], domain="com.microsoft", **attributes
        ),
        helper.make_node(
            "MatMulNBits", ["x", "head", "scales"], ["y"], domain="com.microsoft", K=32, N=4, **attributes
        ),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], [codes, scales, shape])), path)
    head, embedding, constant = read_graph(tmp_path, path).tensors
    assert (head.role, head.shape, head.type, head.nbytes) == ("matrix", (4, 32), "int4 g32 sym", 80)
    assert (embedding.role, embedding.shape, embedding.nbytes, embedding.shared) == ("embedding", (4, 32), 0, True)
    assert constant.role == "constant"
