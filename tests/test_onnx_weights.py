"""A weight is read as ONNX Runtime's operator reads it, for every layout."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekiln.errors import ArtifactError
from edgekiln.validators.onnx_grids import round_groups
from edgekiln.validators.onnx_weights import onnx_weights

N, K = 24, 64
RNG = np.random.default_rng(0)


def build(nodes, initializers, inputs, elements=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", elements, None)],
        [
            t if isinstance(t, TensorProto) else numpy_helper.from_array(v, n)
            for n, v in initializers.items()
            for t in [v]
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(model, folder: Path, *, external: bool = False) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=external, location="model.data", size_threshold=0)
    return path


def executed(path: Path, feed: dict) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0], np.float32)


def product(path: Path, columns: int = K, dtype=np.float32) -> np.ndarray:
    """Return the matrix that a product multiplies with, [N, K], by giving it the identity."""
    return executed(path, {"x": np.eye(columns, dtype=dtype)}).T


def same(path: Path, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    (weight,) = onnx_weights(path.parent, path)
    assert weight.unreadable is None
    assert weight.shape == expected.shape
    for step in (1, 5, len(expected)):
        starts = range(0, len(expected), step)
        rows = np.concatenate([weight.rows(at, min(len(expected), at + step)) for at in starts])
        np.testing.assert_allclose(rows, expected, rtol=tolerance, atol=tolerance)


def x(columns=K, elements=TensorProto.FLOAT):
    return [helper.make_tensor_value_info("x", elements, [columns, columns])]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("zero_points", ["none", "packed", "float"])
@pytest.mark.parametrize(
    ("bits", "block", "columns"), [(4, 32, 64), (8, 32, 64), (4, 16, 48), (4, 32, 80), (2, 32, 96)]
)
def test_matmul_nbits(bits, block, columns, zero_points, external, tmp_path):
    if (bits, zero_points) == (8, "float"):
        zero_points = "packed"  # ONNX Runtime refuses the other on a CPU
    groups = -(-columns // block)
    codes = RNG.integers(0, 256, (N, groups, block * bits // 8), np.uint8)
    parts = {"w": codes, "s": RNG.uniform(0.1, 1, (N, groups)).astype(np.float32)}
    if zero_points == "packed":
        parts["z"] = RNG.integers(0, 256, (N, -(-groups * bits // 8)), np.uint8)
    elif zero_points == "float":
        parts["z"] = RNG.uniform(0, 2**bits, (N, groups)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=columns, N=N, bits=bits, block_size=block
    )
    path = save(build([node], parts, x(columns)), tmp_path, external=external)
    same(path, product(path, columns), 1e-4)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("columns", "block"), [(64, 64), (96, 64)])
def test_matmul_bnb4(kind, columns, block, tmp_path):
    parts = {
        "w": RNG.integers(0, 256, N * columns // 2, np.uint8),
        "s": RNG.uniform(0.1, 1, N * columns // block).astype(np.float32),
    }
    attributes = {"K": columns, "N": N, "block_size": block, "quant_type": kind}
    node = helper.make_node("MatMulBnb4", ["x", *parts], ["y"], domain="com.microsoft", **attributes)
    path = save(build([node], parts, x(columns)), tmp_path)
    same(path, product(path, columns))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("kind", ["uint8 4", "uint8 8", "uint4", "int4"])
def test_gather_block_quantized(kind, zero_points, tmp_path):
    bits = 8 if kind == "uint8 8" else 4
    scales = RNG.uniform(0.1, 1, (N, K // 16)).astype(np.float32)
    if kind.startswith("uint8"):
        codes = RNG.integers(0, 256, (N, K * bits // 8), np.uint8)
        zeros = RNG.integers(0, 256, (N, K // 16 * bits // 8), np.uint8)
    else:
        dtype = ml_dtypes.uint4 if kind == "uint4" else ml_dtypes.int4
        low = 0 if kind == "uint4" else -8
        codes = RNG.integers(low, low + 16, (N, K)).astype(dtype)
        zeros = RNG.integers(low, low + 16, (N, K // 16)).astype(dtype)
    parts = {"w": codes, "s": scales} | ({"z": zeros} if zero_points else {})
    names = ["w", "ids", "s", *(["z"] if zero_points else [])]
    attributes = {"block_size": 16} | ({"bits": bits} if kind.startswith("uint8") else {})
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain="com.microsoft", **attributes)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [N])
    path = save(build([node], parts, [ids]), tmp_path)
    same(path, executed(path, {"ids": np.arange(N)}))
    (weight,) = onnx_weights(tmp_path, path)
    assert (weight.use, weight.type) == ("embedding", f"int{bits}")


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


FLOAT_GRAPHS = {
    "[K, N]": ([("MatMul", ["x", "w"], {})], (K, N)),
    "[N, K] behind Transpose": ([("Transpose", ["w"], {"perm": [1, 0]}), ("MatMul", ["x", "t0"], {})], (N, K)),
    "Gemm": ([("Gemm", ["x", "w"], {"transB": 1})], (N, K)),
    "Identity, Transpose": (
        [("Identity", ["w"], {}), ("Transpose", ["t0"], {"perm": [1, 0]}), ("MatMul", ["x", "t1"], {})],
        (N, K),
    ),
}


@pytest.mark.parametrize(("chain", "shape"), FLOAT_GRAPHS.values(), ids=FLOAT_GRAPHS)
@pytest.mark.parametrize("external", [False, True])
def test_plain_numbers_behind_what_hands_them_on(chain, shape, external, tmp_path):
    nodes = [
        helper.make_node(op, inputs, ["y" if index == len(chain) - 1 else f"t{index}"], **attributes)
        for index, (op, inputs, attributes) in enumerate(chain)
    ]
    path = save(build(nodes, {"w": weights(*shape)}, x()), tmp_path, external=external)
    same(path, product(path))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_behind_a_cast(dtype, tmp_path):
    nodes = [
        helper.make_node("Cast", ["w"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    path = save(build(nodes, {"w": weights(K, N).astype(dtype)}, x()), tmp_path)
    same(path, product(path))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("scales", ["one", "by row", "by column", "blocks along rows", "blocks along columns"])
def test_dequantize_linear(scales, dtype, turned, tmp_path):
    height, width = (N, K) if turned else (K, N)
    attributes, shape = {
        "one": ({}, ()),
        "by row": ({"axis": 0}, (height,)),
        "by column": ({"axis": 1}, (width,)),
        "blocks along rows": ({"axis": 0, "block_size": 8}, (height // 8, width)),
        "blocks along columns": ({"axis": 1, "block_size": 8}, (height, width // 8)),
    }[scales]
    small = 4 if "4" in np.dtype(dtype).name else 8
    low = 0 if "uint" in np.dtype(dtype).name else -(1 << (small - 1))
    draw = lambda *size: RNG.integers(low, low + (1 << small), size).astype(dtype)  # noqa: E731
    parts = {
        "w": draw(height, width),
        "s": RNG.uniform(0.1, 1, shape).astype(np.float32),
        "z": np.asarray(draw(*shape)),
    }
    nodes = [helper.make_node("DequantizeLinear", list(parts), ["d"], **attributes)]
    nodes += [helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0])] if turned else []
    nodes += [helper.make_node("MatMul", ["x", "t" if turned else "d"], ["y"])]
    path = save(build(nodes, parts, x()), tmp_path)
    same(path, product(path), 1e-4)


def test_group_indices_reorder_the_scales(tmp_path):
    codes = RNG.integers(0, 256, (N, 2, 16), np.uint8)
    scales = RNG.uniform(0.1, 1, (N, 2)).astype(np.float32)
    index = RNG.permutation(K).astype(np.int32) // 32
    parts = {"w": codes, "s": scales, "g": index}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "", "g"], ["y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=32
    )
    path = save(build([node], parts, x()), tmp_path)
    low_high = np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, K).astype(np.float32) - 8
    same(path, low_high * scales[:, index])


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_rounding_is_that_of_onnx_runtimes_quantizer(bits, symmetric):
    from onnxruntime.capi import _pybind_state as kernels

    values = weights(N, K)
    codes = np.zeros((N, 2, 32 * bits // 8), np.uint8)
    scales, zeros = np.zeros(N * 2, np.float32), np.zeros(N * 2 * bits // 8, np.uint8)
    kernel = kernels.quantize_matmul_4bits if bits == 4 else kernels.quantize_matmul_8bits
    kernel(codes, np.ascontiguousarray(values.T), scales, zeros, 32, N, K, symmetric)
    ours = round_groups(values.reshape(N, 2, 32), bits, symmetric=symmetric, half=False)
    offset = 1 << (bits - 1)
    if not symmetric:
        offset = (np.stack([zeros & 15, zeros >> 4], -1) if bits == 4 else zeros).reshape(N, 2, 1).astype(np.float32)
    unpacked = np.stack([codes & 15, codes >> 4], -1).reshape(N, 2, 32) if bits == 4 else codes
    theirs = (unpacked.astype(np.float32) - offset) * scales.reshape(N, 2, 1)
    step = np.abs(scales).max()
    assert np.abs(ours - theirs).max() <= 1.01 * step  # ties may go either way
    assert np.linalg.norm(ours - values.reshape(ours.shape)) == pytest.approx(
        np.linalg.norm(theirs - values.reshape(ours.shape)), rel=0.02
    )


def quantized(codes, scales, **attributes):
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    return build([node], {"w": codes, "s": scales}, x())


HOSTILE = {
    "too few codes": (np.zeros((N, 2, 8), np.uint8), {"K": K, "N": N, "bits": 4, "block_size": 32}),
    "huge": (np.zeros((N, 2, 16), np.uint8), {"K": 1 << 60, "N": 1 << 60, "bits": 4, "block_size": 32}),
    "no block": (np.zeros((N, 2, 16), np.uint8), {"K": K, "N": N}),
    "negative": (np.zeros((N, 2, 16), np.uint8), {"K": -K, "N": N, "block_size": 32}),
}


@pytest.mark.parametrize(("codes", "attributes"), HOSTILE.values(), ids=HOSTILE)
def test_a_lying_operator_is_an_error(codes, attributes, tmp_path):
    path = save(quantized(codes, np.ones((N, 2), np.float32), **attributes), tmp_path)
    with pytest.raises(ArtifactError):
        onnx_weights(tmp_path, path)


def test_too_few_scales_are_an_error_when_they_are_read(tmp_path):
    model = quantized(np.zeros((N, 2, 16), np.uint8), np.ones((1, 2), np.float32), K=K, N=N, bits=4, block_size=32)
    (weight,) = onnx_weights(tmp_path, save(model, tmp_path))
    with pytest.raises(ArtifactError, match="fewer than its operator reads"):
        weight.rows(0, N)


def test_unknown_bits_are_told_and_not_read(tmp_path):
    model = quantized(np.zeros((N, 2, 12), np.uint8), np.ones((N, 2), np.float32), K=K, N=N, bits=3, block_size=32)
    (weight,) = onnx_weights(tmp_path, save(model, tmp_path))
    assert "3 bits" in (weight.unreadable or "")


def test_data_outside_the_artifact_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(K * N * 4))
    folder = tmp_path / "artifact"
    folder.mkdir()
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights(K, N)}, x())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="outside"):
        onnx_weights(folder, folder / "m.onnx")


def test_every_truncation_is_an_error_or_read(tmp_path):
    model = quantized(np.zeros((4, 1, 16), np.uint8), np.ones((4, 1), np.float32), K=32, N=4, bits=4, block_size=32)
    whole = save(model, tmp_path).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "short.onnx").write_bytes(whole[:length])
        try:
            for weight in onnx_weights(tmp_path, tmp_path / "short.onnx"):
                weight.rows(0, weight.shape[0])
        except ArtifactError:
            continue
