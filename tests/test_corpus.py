"""The corpus and its windows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgekiln.checkpoint import embedded_directory
from edgekiln.errors import UsageError
from edgekiln.validators.corpus import BUILT_IN, choose_evenly, make_windows, read_corpus, read_prompts
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_built_in_corpus_is_what_it_says() -> None:
    corpus = read_corpus()
    assert corpus.name == "built-in"
    assert corpus.sha256 == hashlib.sha256(BUILT_IN.read_bytes()).hexdigest()
    sections = [document.section for document in corpus.documents]
    assert len(sections) == len(set(sections)) >= 12
    tokenizer = load_tokenizer(embedded_directory())
    windows = make_windows(corpus, lambda text: encode(tokenizer, text), window=256, windows=8)
    assert [len(window.ids) for window in windows] == [256] * 8
    assert {"english", "python", "chinese", "mathematics", "chat"} <= {window.section for window in windows}
    few = make_windows(corpus, lambda text: encode(tokenizer, text), window=256, windows=4)
    assert [window.section for window in few] == ["english", "python", "mathematics", "chinese"]
    assert len(read_prompts()) == 8


def test_windows_of_plain_text_are_consecutive_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijk")
    corpus = read_corpus(path)
    windows = make_windows(corpus, letters, window=4, windows=8)
    assert ["".join(map(chr, window.ids)) for window in windows] == ["abcd", "efgh"]
    assert (corpus.name, corpus.sha256) == ("a.txt", hashlib.sha256(b"abcdefghijk").hexdigest())


def test_a_document_gives_its_first_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"section": "x", "text": "abcdefgh"}), "", json.dumps({"text": "ij\u2028"}, ensure_ascii=False)]
    path.write_text("\n".join(lines), encoding="utf-8")
    windows = make_windows(read_corpus(path), letters, window=4, windows=8)
    assert [(window.section, len(window.ids)) for window in windows] == [("x", 4), ("text", 3)]


def test_windows_are_chosen_evenly() -> None:
    assert choose_evenly(15, 8) == [0, 1, 3, 5, 7, 9, 11, 13]
    assert choose_evenly(3, 8) == [0, 1, 2]
    assert choose_evenly(1000, 4) == [0, 250, 500, 750]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2 needs a 'text'"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.jsonl", b"[" * 200_000, "line 1 is no JSON"),
        ("a.txt", b"abc\xff", "not UTF-8 at byte 3"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read_corpus(tmp_path / name)


def test_missing_and_too_short(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_corpus(tmp_path / "missing.txt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="two tokens"):
        make_windows(read_corpus(tmp_path / "a.txt"), letters, window=4, windows=2)
