import json
import shutil

import numpy as np
import pytest

from checkpoints import make_checkpoint
from edgekiln.checkpoint import EMBEDDED, embedded_directory, open_checkpoint, open_resolved
from edgekiln.errors import CheckpointError, MachineError, UnsupportedError, UsageError


def edit_json(path, **changes):
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "checkpoint"
    make_checkpoint(path, "qwen2", hidden_size=64, tied=False)
    return path


def test_the_embedded_checkpoint_opens_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint(EMBEDDED, offline=True)
    assert checkpoint.weight_count == 5_771_264
    assert checkpoint.config.eos_token_ids == (4072, 4073)
    assert "<|im_start|>" in (checkpoint.chat_template or "")


def test_a_local_directory_wins_over_the_embedded_name(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / EMBEDDED, "qwen2", hidden_size=64)
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint(EMBEDDED).config.model_type == "qwen2"


def test_shards_hold_what_the_single_file_holds(tmp_path):
    make_checkpoint(tmp_path / "one", "qwen3", hidden_size=64, seed=3)
    make_checkpoint(tmp_path / "many", "qwen3", hidden_size=64, seed=3, shards=3)
    one, many = open_checkpoint(str(tmp_path / "one")), open_checkpoint(str(tmp_path / "many"))
    assert list(one.tensors) == list(many.tensors)
    assert len({info.path for info in many.tensors.values()}) == 3
    with one.reader() as reader:
        for name in one.tensors:
            left, right = one.tensors[name], many.tensors[name]
            np.testing.assert_array_equal(reader.rows(left, 0, left.rows), reader.rows(right, 0, right.rows))


def test_the_identity_is_that_of_the_bytes_not_of_the_place(tmp_path, directory):
    shutil.copytree(directory, tmp_path / "elsewhere")
    same = open_checkpoint(str(tmp_path / "elsewhere"))
    assert same.identity == open_checkpoint(str(directory)).identity
    edit_json(tmp_path / "elsewhere" / "config.json", rope_theta=5.0)
    assert open_checkpoint(str(tmp_path / "elsewhere")).identity != same.identity


def test_an_identity_that_is_known_is_not_taken_again(directory):
    known = open_resolved(str(directory), directory, None, identity="1" * 64)
    assert known.identity == "1" * 64
    assert known == open_checkpoint(str(directory))


def test_a_stored_copy_of_a_tied_head_is_the_embedding(directory):
    edit_json(directory / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight" not in open_checkpoint(str(directory)).tensors


def remove(*names):
    return lambda directory: [(directory / name).unlink() for name in names]


def pickled(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def index_to(name):
    def change(directory):
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return change


def config(**changes):
    return lambda directory: edit_json(directory / "config.json", **changes)


BAD = {
    "no config.json": (remove("config.json"), "config.json does not exist"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json"),
    "no weights": (remove("model.safetensors"), "neither model.safetensors nor"),
    "pickle only": (pickled, "pickled weights only"),
    "truncated shard": (truncated, "is truncated"),
    "index outside": (index_to("../x.safetensors"), "must be a .safetensors file beside it"),
    "index to a pickle": (index_to("x.bin"), "must be a .safetensors file beside it"),
    "missing shard": (index_to("x.safetensors"), "is missing"),
    "missing tensors": (config(num_hidden_layers=99), "lacks .* tensors of a qwen2"),
    "extra tensors": (config(num_hidden_layers=1), "has .* tensors that a qwen2 has not"),
    "shape against config": (config(intermediate_size=7), "has shape .* but config.json makes it"),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_damage_is_one_sentence(directory, damage, message):
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(directory))
    assert str(directory) in str(caught.value)


def test_another_architecture_is_unsupported_and_names_the_choices(directory):
    edit_json(directory / "config.json", model_type="llama")
    with pytest.raises(UnsupportedError, match="qwen2, qwen2_moe, qwen3, qwen3_moe"):
        open_checkpoint(str(directory))


@pytest.mark.parametrize("source", ["./nowhere", "nowhere", "/nowhere/at/all", "a/b/c", "hf://nowhere"])
def test_what_is_neither_directory_nor_hub_id_is_a_usage_error(source):
    with pytest.raises(UsageError, match="no Hub id"):
        open_checkpoint(source, offline=True)


def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(embedded_directory(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


@pytest.mark.parametrize("source", ["org/tiny", "hf://org/tiny", "org/tiny@main"])
def test_a_hub_id_opens_from_the_cache_offline_and_records_its_commit(tmp_path, monkeypatch, source):
    commit = hub_cache(tmp_path, monkeypatch)
    checkpoint = open_checkpoint(source, offline=True)
    assert checkpoint.revision == commit
    assert checkpoint.identity == open_checkpoint(EMBEDDED).identity


@pytest.mark.parametrize("offline", ["flag", "environment"])
def test_a_hub_id_that_is_not_cached_fails_offline_without_a_connection(tmp_path, monkeypatch, offline):
    hub_cache(tmp_path, monkeypatch)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected while offline"))
    if offline == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match="not in the local Hub cache"):
        open_checkpoint("org/other", offline=offline == "flag")
