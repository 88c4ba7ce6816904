import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import CheckpointError
from edgekiln.safetensors import MAX_HEADER_BYTES, TensorReader, read_index, widen


def write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(start, stop, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": shape or [(stop - start) // 4], "data_offsets": [start, stop]}


def test_rows_read_in_chunks_equal_the_whole(tmp_path):
    values = np.random.default_rng(0).standard_normal((37, 8)).astype("<f4")
    path = write(tmp_path / "a.safetensors", {"w": entry(0, values.nbytes, [37, 8])}, values.tobytes())
    info = read_index(path)["w"]
    with TensorReader() as reader:
        for step in (1, 8, 24, 1000):
            parts = [reader.rows(info, start, min(start + step, 37)) for start in range(0, 37, step)]
            np.testing.assert_array_equal(np.concatenate(parts), values)
        np.testing.assert_array_equal(reader.rows(info, 3, 5), values[3:5])


def test_a_vector_is_one_row(tmp_path):
    values = np.arange(5, dtype="<f4")
    info = read_index(write(tmp_path / "a.safetensors", {"b": entry(0, 20)}, values.tobytes()))["b"]
    assert (info.rows, info.columns) == (1, 5)
    with TensorReader() as reader:
        np.testing.assert_array_equal(reader.rows(info, 0, 1)[0], values)


@given(st.integers(0, 0xFFFF))
def test_bf16_is_the_upper_half_of_float32(bits):
    (value,) = widen(np.array([bits], np.uint16), "BF16")
    assert value.view(np.uint32) == bits << 16


def test_metadata_is_no_tensor(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "w": entry(0, 4)}
    assert list(read_index(write(tmp_path / "a.safetensors", header, bytes(4)))) == ["w"]


BAD = {
    "empty file": (b"", "truncated"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_broken_prefix_is_refused(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_index(path)


def test_a_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match=str(MAX_HEADER_BYTES)):
        read_index(path)


HEADERS = {
    "no JSON": (b"{nonsense", b"", "unreadable"),
    "no UTF-8": (b'{"\xff": 1}', b"", "unreadable"),
    "a list": ([1], b"", "no table of tensors"),
    "entry is no object": ({"w": 3}, b"", "malformed"),
    "offsets missing": ({"w": {"dtype": "F32", "shape": [1]}}, b"", "malformed"),
    "dtype unknown": ({"w": entry(0, 4, [4], "I8")}, bytes(4), "dtype I8"),
    "shape empty": ({"w": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4), "shape"),
    "negative dimension": ({"w": entry(0, 4, [-1])}, bytes(4), "positive dimensions"),
    "too many dimensions": ({"w": entry(0, 4, [1] * 1000)}, bytes(4), "positive dimensions"),
    "endless number": (b'{"w": ' + b"9" * 5000 + b"}", b"", "unreadable"),
    "shape against bytes": ({"w": entry(0, 8, [3])}, bytes(8), "holds 8 bytes"),
    "truncated data": ({"w": entry(0, 8)}, bytes(4), "truncated"),
    "overlap": ({"v": entry(0, 8), "w": entry(4, 12)}, bytes(12), "overlap or leave a gap"),
    "gap": ({"v": entry(0, 4), "w": entry(8, 12)}, bytes(12), "overlap or leave a gap"),
    "rest": ({"v": entry(0, 4)}, bytes(12), "8 bytes behind"),
    "deep nesting": (b"[" * 100_000, b"", "unreadable"),
}


@pytest.mark.parametrize(("header", "data", "message"), HEADERS.values(), ids=HEADERS)
def test_a_lying_header_is_refused(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message):
        read_index(write(tmp_path / "a.safetensors", header, data))


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path = write(tmp_path / "a.safetensors", {"w": entry(0, 4096)}, bytes(4096))
    info = read_index(path)["w"]
    os.truncate(path, path.stat().st_size - 100)
    with TensorReader() as reader, pytest.raises(CheckpointError, match="became shorter"):
        reader.rows(info, 0, 1)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content)
    try:
        read_index(path)
    except CheckpointError as error:
        assert str(path) in str(error)
