"""GGUF weights are read as gguf's own dequantization reads them, in any pieces, from one file or many."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest

from artifacts import artifact, gguf_file
from edgekiln.checkpoint import open_checkpoint
from edgekiln.errors import ArtifactError
from edgekiln.validators.conservation import audit
from edgekiln.validators.gguf_weights import gguf_weights
from edgekiln.validators.kinds import identify

TYPES = gguf.GGMLQuantizationType
#: Types whose bytes gguf can dequantize in Python, with random bytes for what it cannot quantize.
NAMES = [
    "F64", "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip


def write(path, tensors: dict[str, tuple[np.ndarray, TYPES]], **values: int):
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, value in values.items():
        writer.add_uint16(key.replace("_", "."), value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sample(name: str, rows: int = 6, columns: int = 512) -> tuple[np.ndarray, TYPES]:
    kind = TYPES[name]
    if name == "F64":
        return np.random.default_rng(0).standard_normal((rows, columns)), kind
    values = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind), kind
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.random.default_rng(1).integers(0, 256, (rows, columns // block, size), np.uint8)
        halves = np.full((rows, columns // block, 1), 0.01, np.float16).view(np.uint8)
        for at in {"Q2_K": (16, 18), "Q3_K": (108,), "Q6_K": (208,)}.get(name, (0, 2)):  # finite scales
            data[:, :, 2 * (at // 2) : 2 * (at // 2) + 2] = halves if at + 2 <= size else data[:, :, at : at + 2]
        if name == "Q2_K":
            data[:, :, 80:82] = data[:, :, 82:84] = halves
        return data.reshape(rows, -1), kind


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_gguf(name, tmp_path):
    data, kind = sample(name)
    (weight,) = gguf_weights(write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (data, kind)}))
    expected = data.astype(np.float32) if name == "F64" else gguf.quants.dequantize(data, kind)
    assert (weight.type, weight.shape) == (name.lower(), (6, 512))
    for step in (1, 4, 6):
        rows = np.concatenate([weight.rows(at, min(6, at + step)) for at in range(0, 6, step)])
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


#: ggml looks for the neighbours of each point of their grids first.
SLOW_TO_ROUND = ("IQ1_M", "IQ1_S", "IQ2_S")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW_TO_ROUND)) for n in NAMES if n != "F64"]
)
def test_rounding_gives_values_of_the_type(name, tmp_path):
    """What is on the grid stays there, or the error would not be the type's own."""
    (weight,) = gguf_weights(write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": sample(name)}))
    values = np.random.default_rng(3).standard_normal((4, 512)).astype(np.float32)
    once = weight.rounding(values)
    error = np.linalg.norm(once - values) / np.linalg.norm(values)
    bits = weight.bits_per_weight
    assert error < (0.9 if bits < 2.5 else 0.6 * 2 ** (2.5 - bits) + 2e-3 * (bits == 16)), error


def test_a_vector_is_one_row_whatever_is_asked_for(tmp_path):
    values = np.arange(7, dtype=np.float32)
    (weight,) = gguf_weights(write(tmp_path / "m.gguf", {"output_norm.weight": (values, TYPES.F32)}))
    assert (weight.use, weight.shape) == ("vector", (7,))
    np.testing.assert_array_equal(weight.rows(0, 1), values[None])


def split(path, parts: int):
    """Split a file as llama-gguf-split does: by tensors, the metadata in the first."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"m-{part:05d}-of-{parts:05d}.gguf") for part in range(1, parts + 1)]
    for number, target in enumerate(paths):
        own = {str(t.name): (t.data, t.tensor_type) for t in reader.tensors[number::parts]}
        write(target, own, split_no=number, split_count=parts)
    path.unlink()
    return paths


def test_a_split_model_is_read_whole(tmp_path):
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    whole = {weight.name: weight.rows(0, weight.shape[0]) for weight in gguf_weights(path)}
    paths = split(path, 3)
    found = gguf_weights(paths[0])
    assert {weight.name for weight in found} == set(whole)
    for weight in found:
        np.testing.assert_array_equal(weight.rows(0, weight.shape[0]), whole[weight.name])
    result = audit(identify(paths[0]), open_checkpoint("tiny-qwen3"))
    assert {check.outcome for check in result.checks} == {"pass"}
    paths[2].unlink()
    with pytest.raises(ArtifactError, match="is missing, one of the 3 files"):
        gguf_weights(paths[0])
    renamed = shutil.copy(paths[0], tmp_path / "other.gguf")
    with pytest.raises(ArtifactError, match="give it that name"):
        gguf_weights(renamed)


def test_a_file_that_ends_early_is_an_error_when_it_is_read(tmp_path):
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": sample("Q4_0")})
    (weight,) = gguf_weights(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 200)
    with pytest.raises(ArtifactError, match="ends before byte"):
        weight.rows(0, 6)


def test_integers_are_no_weights(tmp_path):
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (np.zeros((2, 32), np.int32), TYPES.I32)})
    (weight,) = gguf_weights(path)
    assert "I32" in (weight.unreadable or "")
