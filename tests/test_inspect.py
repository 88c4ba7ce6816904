"""Inspection tells the same facts of a checkpoint and of everything made of it, from the files alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from artifacts import artifact, gguf_file
from checkpoints import make_checkpoint
from edgekiln.checkpoint import open_checkpoint
from edgekiln.cli import cli
from edgekiln.errors import ArtifactError, CheckpointError, ExitCode, UnsupportedError, UsageError
from edgekiln.pipelines.export import export
from edgekiln.pipelines.inspect import inspect
from edgekiln.pipelines.inspect_text import inspection_text
from edgekiln.pipelines.inspection import Inspection
from edgekiln.pipelines.schemas import json_schema
from edgekiln.scheme import Scheme

#: What a checkpoint and all that is made of it have in common.
SHARED = {"family", "parameters", "embedding_parameters", "context_length", "layers", "heads", "kv_heads", "head_dim"}
SHARED |= {"hidden_size", "vocab_size", "tied"}


@pytest.mark.parametrize(("model_type", "tied"), [("qwen2", True), ("qwen3", False)])
def test_checkpoint_and_artifacts_tell_the_same(tmp_path, model_type, tied):
    source = make_checkpoint(tmp_path / "in", model_type, tied=tied, shards=2)
    checkpoint = open_checkpoint(str(source))
    expected = inspect(str(source)).inspection.model
    assert expected.parameters == checkpoint.weight_count
    assert expected.embedding_parameters == 4096 * 256 * (1 if tied else 2)
    assert (expected.intermediate_size, expected.rope_theta, expected.layers) == (512, 10000.0, 2)
    for format_name, precision in (("gguf", "q4_0"), ("onnx", "int4"), ("onnx", "nf4")):
        out = tmp_path / f"{format_name}-{precision}"
        manifest = export(checkpoint, format_name, Scheme(precision), out)
        found = inspect(str(out))
        assert found.error is None
        made = found.inspection
        assert made.model.model_dump(include=SHARED) == expected.model_dump(include=SHARED)
        # 512: the shapes that Reshape takes lie in the graph
        assert sum(entry.bytes for entry in made.types) == pytest.approx(manifest.weights_bytes, abs=512)
        assert sum(entry.weights for entry in made.types) == checkpoint.weight_count
        assert sum(entry.share for entry in made.types) == pytest.approx(1)


def test_the_embedded_checkpoint_and_what_can_be_made_of_it():
    found = inspect("tiny-qwen3")
    made = {(entry.format, entry.precision): entry for entry in found.inspection.makes}
    assert found.error is None
    assert made["gguf", "q4_0"].container_type == "Q4_0"
    assert "IQ4_NL" in (made["gguf", "nf4"].reason or "")
    template = found.inspection.template
    assert template is not None
    assert (template.tools, template.thinking, template.fault) == (True, "switch", None)
    tokenizer = found.inspection.tokenizer
    assert tokenizer is not None
    assert (tokenizer.pre_tokenizer, tokenizer.eos_ids) == ("qwen2", (4072, 4073))
    assert [(entry.type, entry.bits_per_weight) for entry in found.inspection.types] == [("BF16", 16.0)]
    assert found.inspection.identity is None
    assert inspect("tiny-qwen3", hashed=True).inspection.identity == open_checkpoint("tiny-qwen3").identity


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_unsupported_family_is_described_all_the_same(tmp_path):
    source = make_checkpoint(tmp_path / "in")
    change_config(source, model_type="llama")
    found = inspect(str(source), tensors=True)
    assert isinstance(found.error, UnsupportedError)
    model = found.inspection.model
    assert (model.family, model.layers, model.parameters) == ("llama", 2, open_weights(source))
    assert found.inspection.makes == ()
    assert "llama" in found.inspection.problems[-1]
    assert found.inspection.tensors
    assert "llama" in inspection_text(found.inspection)


def open_weights(source: Path) -> int:
    change_config(source, model_type="qwen3")
    return open_checkpoint(str(source)).weight_count


def test_a_damaged_shard_is_a_problem_and_the_others_are_told(tmp_path):
    source = make_checkpoint(tmp_path / "in", shards=2)
    shard = source / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    found = inspect(str(source))
    assert isinstance(found.error, CheckpointError)
    assert found.inspection.model.hidden_size == 256
    assert found.inspection.types[0].tensors > 5
    assert any("truncated" in problem for problem in found.inspection.problems)


def test_a_quantized_checkpoint_shows_its_types(tmp_path):
    from safetensors.numpy import save_file

    source = make_checkpoint(tmp_path / "in")
    save_file(
        {"a.qweight": np.zeros((8, 4), np.int32), "a.scales": np.zeros((2, 4), np.float16)},
        source / "model.safetensors",
    )
    found = inspect(str(source))
    assert found.error is not None
    assert {(entry.type, entry.bytes) for entry in found.inspection.types} == {("I32", 128), ("F16", 16)}


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_is_a_problem_and_does_not_hang(tmp_path):
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "x.safetensors")
    command = [sys.executable, "-m", "edgekiln", "inspect", "m"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert shown.returncode == ExitCode.USAGE
    assert "is no regular file" in shown.stdout


def test_no_other_reader_takes_a_header_beyond_the_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekiln.safetensors.MAX_HEADER_BYTES", 100)
    source = make_checkpoint(tmp_path / "in")  # its header is well-formed, but longer
    found = inspect(str(source), tensors=True).inspection
    assert found.tensors == ()
    assert any("has a header of" in problem for problem in found.problems)


def test_an_entry_that_contradicts_itself_is_left_out(tmp_path):
    source = make_checkpoint(tmp_path / "in")
    good = {"dtype": "I8", "shape": [2, 3], "data_offsets": [0, 6]}
    changes = (
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [1] * 50 + [6]},
        {"shape": [6.0]},
        {"shape": "6"},
        {"dtype": "I" + "9" * 9999},
        {"dtype": "F0", "shape": [1 << 62] * 8, "data_offsets": [0, 0]},
        {"dtype": "\x1b[2J"},
        {"data_offsets": [6, 12]},
        {"data_offsets": [0]},
    )
    bad = {str(number): good | change for number, change in enumerate(changes)}
    four_bits = {"dtype": "F4", "shape": [12], "data_offsets": [0, 6]}
    scalar = {"dtype": "BOOL", "shape": [], "data_offsets": [5, 6]}
    write_header(source / "model.safetensors", {"good": good, "four": four_bits, "scalar": scalar, **bad}, b"x" * 6)
    found = inspect(str(source), tensors=True).inspection
    assert [(tensor.name, tensor.type, tensor.bytes) for tensor in found.tensors or ()] == [
        ("good", "I8", 6),
        ("four", "F4", 6),
        ("scalar", "BOOL", 1),
    ]


def test_a_hub_id_is_resolved_once_and_the_command_tells_how_it_goes(tmp_path, monkeypatch, capsys):
    source, asked = make_checkpoint(tmp_path / "in"), []

    def fetch(name, *, offline, listener=None):
        asked.append(name)
        listener.say("fetching it")
        return source, "c" * 40

    monkeypatch.setattr("edgekiln.checkpoint.fetch_snapshot", fetch)
    cli.main(args=["inspect", "org/name", "--json"], standalone_mode=False)
    shown = capsys.readouterr()
    assert asked == ["org/name"]
    assert shown.err.count("fetching it") == 1
    assert json.loads(shown.out)["revision"] == "c" * 40


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": 7, "num_hidden_layers": -1, "rope_theta": "x"}', ""])
def test_a_config_that_cannot_be_read_ends_in_a_description(tmp_path, content):
    source = make_checkpoint(tmp_path / "in")
    (source / "config.json").write_text(content)
    found = inspect(str(source))
    assert found.error is not None
    assert found.error.exit_code in {ExitCode.USAGE, ExitCode.UNSUPPORTED}
    assert found.inspection.model.layers is None
    assert found.inspection.types
    inspection_text(found.inspection)


def test_checksums_find_what_was_changed_or_removed(tmp_path):
    checkpoint = open_checkpoint("tiny-qwen3")
    out = tmp_path / "out"
    export(checkpoint, "onnx", Scheme("int4"), out)
    found = inspect(str(out), hashed=True)
    assert found.error is None
    assert {entry.checksum for entry in found.inspection.files} == {"ok", None}
    assert inspect(str(out)).inspection.files[0].sha256 is None
    (out / "tokenizer_config.json").write_text("{}")
    (out / "chat_template.jinja").unlink()
    (out / "extra").write_text("")
    found = inspect(str(out), hashed=True)
    states = {entry.path: entry.checksum for entry in found.inspection.files}
    assert (states["tokenizer_config.json"], states["extra"]) == ("differs", "not listed")
    assert isinstance(found.error, ArtifactError)
    assert len(found.inspection.problems) == 2
    assert "chat_template.jinja is missing" in found.inspection.problems[1]


def test_names_in_checksums_are_compared_and_never_opened(tmp_path):
    directory = artifact("gguf", "int4", tmp_path)
    (directory / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n{'0' * 64}  /dev/zero\nrubbish\n")
    problems = inspect(str(directory), hashed=True).inspection.problems
    assert sorted(problem.split()[0] for problem in problems) == ["../../etc/passwd", "/dev/zero"]


def test_a_manifest_decides_nothing(tmp_path):
    directory = artifact("gguf", "int4", tmp_path)
    (directory / "manifest.json").write_text('{"format": "onnx", "container_type": "NF4"}')
    found = inspect(str(directory))
    assert found.inspection.kind == "gguf"
    assert found.inspection.manifest is None
    assert "no manifest of Edgekiln's" in found.inspection.problems[0]
    assert {entry.type for entry in found.inspection.types} == {"Q4_0", "Q6_K", "F32"}


def test_gguf_metadata_show_what_arrays_hold(tmp_path):
    found = inspect(str(gguf_file(artifact("gguf", "int4", tmp_path))), tensors=True).inspection
    assert found.metadata["tokenizer.ggml.tokens"] == "[4096 strings]"
    assert found.metadata["tokenizer.ggml.token_type"] == "[4096 integers]"
    assert found.metadata["qwen3.attention.layer_norm_rms_epsilon"] == 1e-6
    assert str(found.metadata["tokenizer.chat_template"]).endswith("characters)")
    assert found.tensors is not None
    assert {(t.type, t.bytes) for t in found.tensors if t.name == "token_embd.weight"} == {("Q6_K", 860_160)}


def write_part(path: Path, number: int, count: int, architecture: str = "qwen2") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_key_value("split.no", number, gguf.GGUFValueType.UINT16)
    writer.add_key_value("split.count", count, gguf.GGUFValueType.UINT16)
    writer.add_tensor(f"blk.{number}.ffn_up.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_split_model_is_one_and_a_missing_part_is_named(tmp_path):
    parts = [write_part(tmp_path / f"m-{n + 1:05d}-of-00003.gguf", n, 3) for n in range(3)]
    for given in (parts[0], tmp_path):
        found = inspect(str(given))
        assert found.error is None
        assert (found.inspection.model.parameters, len(found.inspection.files)) == (3 * 128, 3)
    parts[1].unlink()
    found = inspect(str(parts[0]))
    assert "m-00002-of-00003.gguf" in found.inspection.problems[0]
    assert found.inspection.model.parameters == 2 * 128
    write_part(tmp_path / "renamed.gguf", 0, 65535)
    assert inspect(str(tmp_path / "renamed.gguf")).error is not None


def test_a_projector_is_told_as_one(tmp_path):
    path = write_part(tmp_path / "mmproj.gguf", 0, 1, "clip")
    assert "--mmproj" in inspect(str(path)).inspection.loaders[0].needs


def test_a_file_cannot_control_the_terminal(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_name("\x1b[2J\u202eevil")
    writer.add_key_value("a\nb", "x\x07" * 5000, gguf.GGUFValueType.STRING)
    writer.add_tensor("bad\x1b]0;title", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = inspection_text(inspect(str(tmp_path / "m.gguf"), tensors=True).inspection)
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "\u202e" not in text
    assert len(text) < 4000


def broken(directory: Path, **change: object) -> Path:
    path = directory / "genai_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return directory


def test_what_is_wrong_with_an_onnx_artifact_comes_after_what_could_be_read(tmp_path):
    directory = artifact("onnx", "int4", tmp_path)
    (directory / "model.onnx.data").unlink()
    (directory / "chat_template.jinja").write_text("{% for")
    (directory / "tokenizer.json").write_text("{")
    found = inspect(str(directory))
    assert isinstance(found.error, ArtifactError)
    assert found.inspection.model.layers == 6
    text = " ".join(found.inspection.problems)
    assert "model.onnx.data is missing" in text
    assert "chat_template.jinja is broken" in text
    assert "tokenizer.json" in text


@pytest.mark.parametrize(
    "model", [7, None, {"decoder": []}, {"decoder": {"filename": "../x"}}, {"decoder": {"num_hidden_layers": 1e999}}]
)
def test_a_genai_config_made_by_an_enemy_is_an_error_or_described(tmp_path, model):
    directory = broken(artifact("onnx", "int4", tmp_path), model=model)
    try:
        text = inspection_text(inspect(str(directory)).inspection)
    except ArtifactError:
        return
    assert text


def test_foundry_local_and_onnx_name_their_runtimes(tmp_path):
    found = inspect(str(artifact("foundry-local", "int4", tmp_path))).inspection
    assert [loader.runtime for loader in found.loaders] == ["Foundry Local", "ONNX Runtime GenAI"]
    assert "MatMulNBits" in found.loaders[1].needs
    assert found.onnx is not None
    assert found.onnx.operators["com.microsoft.GroupQueryAttention"] == 6


def test_what_is_neither(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        inspect("nowhere.gguf")
    with pytest.raises(ArtifactError, match="does not exist"):
        inspect(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="did you mean 'tiny-qwen3'"):
        inspect("tiny-qwen")
    with pytest.raises(UnsupportedError, match="no artifact"):
        inspect(str(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"rubbish")
    with pytest.raises(UnsupportedError, match="no artifact"):
        inspect(str(tmp_path / "x.bin"))


def test_the_json_is_of_its_schema(tmp_path):
    found = inspect(str(artifact("onnx", "int4", tmp_path)), tensors=True, hashed=True).inspection
    assert Inspection.model_validate_json(found.to_json()) == found
    assert json_schema("inspect")["$id"] == "urn:edgekiln:inspect:1"
    assert json.loads(found.to_json())["schema"] == "edgekiln.inspect/1"


def edgekiln(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekiln", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_shows_first_and_fails_then(tmp_path):
    source = make_checkpoint(tmp_path / "in")
    change_config(source, model_type="llama")
    shown = edgekiln("inspect", source, "--json", cwd=tmp_path)
    assert shown.returncode == 3
    assert json.loads(shown.stdout)["model"]["family"] == "llama"
    assert len(shown.stderr.splitlines()) == 1
    path = gguf_file(artifact("gguf", "int4", tmp_path))
    shutil.copyfile(path, tmp_path / "short.gguf")
    with (tmp_path / "short.gguf").open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    shown = edgekiln("inspect", "short.gguf", cwd=tmp_path)
    assert shown.returncode == 4
    assert "short.gguf is truncated" in shown.stderr
    assert "Q4_0" in shown.stdout


def test_inspection_needs_no_framework(tmp_path):
    directory = artifact("onnx", "int4", tmp_path)
    program = (
        "import sys\nfrom edgekiln.pipelines.inspect import inspect\n"
        f"inspect({str(directory)!r})\ninspect('tiny-qwen3')\n"
        "print(sorted(set(sys.modules) & {'torch', 'onnxruntime', 'transformers', 'mobius', 'llama_cpp'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
