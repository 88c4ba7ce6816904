"""An artifact is told by its content, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgekiln.errors import ArtifactError, UnsupportedError
from edgekiln.validators.gguf_read import ArrayLength, read_header
from edgekiln.validators.kinds import identify


def write_gguf(path: Path, architecture: str = "qwen2", split: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("test.numbers", [1, 2, 3, 4])
    if split is not None:
        writer.add_key_value("split.no", split, gguf.GGUFValueType.UINT16)
    writer.add_tensor("first.weight", np.ones((4, 32), dtype=np.float32))
    writer.add_tensor("second.weight", np.ones((3, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_file_is_known_by_its_magic_alone(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "no-such-extension")
    kind = identify(path)
    assert (kind.format, kind.path, kind.root) == ("gguf", path, path)


def test_directory_with_one_gguf_beside_projector_and_continuation(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", architecture="clip")
    write_gguf(tmp_path / "b.gguf", split=1)
    (tmp_path / "manifest.json").write_text('{"format": "onnx"}')
    model = write_gguf(tmp_path / "c.bin", split=0)
    assert identify(tmp_path).path == model


def test_two_models_are_ambiguous(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(ArtifactError, match=r"2 GGUF models \(a.gguf, b.gguf\)"):
        identify(tmp_path)


def test_genai_and_foundry_directories(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    assert identify(tmp_path).format == "onnx"
    (tmp_path / "inference_model.json").write_text("{}")
    assert identify(tmp_path).format == "foundry-local"


def test_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no artifact"):
        identify(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGML but not GGUF")
    with pytest.raises(UnsupportedError, match="no artifact"):
        identify(tmp_path / "model.gguf")
    with pytest.raises(ArtifactError, match="does not exist"):
        identify(tmp_path / "missing")


def test_header_agrees_with_ggufs_reader(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    header = read_header(path)
    expected = [
        (t.name, tuple(map(int, reversed(t.shape))), t.data_offset, t.n_bytes) for t in gguf.GGUFReader(path).tensors
    ]
    assert [(t.name, t.shape, t.offset, t.nbytes) for t in header.tensors] == expected
    assert header.metadata["qwen2.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayLength(3)
    assert header.metadata["test.numbers"] == ArrayLength(4)


def test_every_truncation_of_the_header_is_one_clear_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    header_end = whole.index(b"second.weight") + 20
    short = tmp_path / "short.gguf"
    for length in range(header_end):
        short.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            read_header(short)


@pytest.mark.parametrize("at", [8, 16], ids=["tensor count", "metadata count"])
def test_absurd_counts_cost_nothing(tmp_path: Path, at: int) -> None:
    data = bytearray(write_gguf(tmp_path / "m.gguf").read_bytes())
    data[at : at + 8] = (2**62).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ArtifactError, match="claims 4611686018427387904 entries"):
        read_header(tmp_path / "m.gguf")


def test_an_empty_file_is_damaged_rather_than_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        identify(tmp_path / "a.gguf")
