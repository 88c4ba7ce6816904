"""A tokenizer is checked beside other work as it is alone, and what is wrong with it is said before all else."""

import json
import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

from edgekiln import text_check
from edgekiln.checkpoint import embedded_directory, open_checkpoint
from edgekiln.errors import CheckpointError, ChildError, UsageError
from edgekiln.pipelines.export import export
from edgekiln.process import Limits
from edgekiln.scheme import Scheme
from edgekiln.text_check import check_text, text_checked

SIZE = open_checkpoint("tiny-qwen3").config.vocab_size


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(text_check, "_APART_BYTES", 0)


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(embedded_directory(), tmp_path / "checkpoint")


def cut_tokenizer(directory):
    path = directory / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-20])


def add_token(directory):
    path = directory / "tokenizer.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["added_tokens"].append({**root["added_tokens"][-1], "id": SIZE + 5, "content": "<|beyond|>"})
    path.write_text(json.dumps(root), encoding="utf-8")


def remove_vocabulary(directory):
    path = directory / "tokenizer.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["model"]["vocab"] = []
    path.write_text(json.dumps(root), encoding="utf-8")


def open_block(directory):
    (directory / "chat_template.jinja").write_text("{% if x %}", encoding="utf-8")


def remove_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


FAULTS = {
    "cut": (cut_tokenizer, "is not valid JSON"),
    "a token beyond": (add_token, "1 tokens beyond the vocabulary"),
    "no vocabulary": (remove_vocabulary, "no tokenizer that Hugging Face's library reads"),
    "template": (open_block, "the chat template cannot be used, line 1"),
    "missing": (remove_tokenizer, "has no tokenizer.json"),
}


def children():
    return psutil.Process(os.getpid()).children(recursive=True)


@pytest.mark.parametrize(("damage", "words"), FAULTS.values(), ids=FAULTS)
@pytest.mark.usefixtures("apart")
def test_a_process_finds_the_same_fault(directory, damage, words):
    damage(directory)
    with pytest.raises(CheckpointError, match=words) as alone:
        check_text(directory, SIZE)
    with pytest.raises(CheckpointError) as beside, text_checked(directory, SIZE):
        pass
    assert str(beside.value) == str(alone.value)
    assert children() == []


@pytest.mark.usefixtures("apart")
def test_a_process_names_files_as_they_were_given(directory, monkeypatch):
    cut_tokenizer(directory)
    monkeypatch.chdir(directory.parent)
    given = Path(directory.name)
    with pytest.raises(CheckpointError, match=r"^checkpoint.tokenizer\.json is not valid"), text_checked(given, SIZE):
        pass


@pytest.mark.usefixtures("apart")
def test_the_block_runs_meanwhile(directory):
    with text_checked(directory, SIZE):
        assert len(children()) == 1
    assert children() == []


def test_a_small_tokenizer_needs_no_process(directory):
    with text_checked(directory, SIZE):
        assert children() == []


@pytest.mark.usefixtures("apart")
def test_a_fault_of_the_text_is_said_before_the_error_of_the_block(directory):
    with pytest.raises(UsageError, match="mine"), text_checked(directory, SIZE):
        raise UsageError("mine")
    cut_tokenizer(directory)
    with pytest.raises(CheckpointError, match="is not valid JSON"), text_checked(directory, SIZE):
        raise UsageError("mine")


@pytest.mark.usefixtures("apart")
def test_whoever_interrupts_the_block_does_not_wait(directory):
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), text_checked(directory, SIZE):
        (process,) = children()
        process.suspend()  # it would never end by itself
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 20
    assert children() == []


@pytest.mark.usefixtures("apart")
def test_a_tokenizer_that_takes_too_long_ends_the_check(directory, monkeypatch):
    monkeypatch.setattr(text_check, "_LIMITS", Limits(seconds=0.2))
    with pytest.raises(ChildError, match="did not finish within 0.2 s"), text_checked(directory, SIZE):
        children()[0].suspend()
    assert children() == []


@pytest.mark.usefixtures("apart")
def test_an_export_of_it_leaves_nothing(directory, tmp_path):
    checkpoint = open_checkpoint(str(directory))
    add_token(directory)
    for format_name in ("gguf", "onnx"):
        with pytest.raises(CheckpointError, match="beyond the vocabulary"):
            export(checkpoint, format_name, Scheme("int4"), tmp_path / "out", with_text=True)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}
