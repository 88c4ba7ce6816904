"""The tokenizer check tells a wrong tokenizer from what runtimes are known for."""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from artifacts import artifact, gguf_file, swap_bytes
from edgekiln.checkpoint import embedded_directory
from edgekiln.validators.base import CheckResult
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer, render_chat
from edgekiln.validators.runtime_genai import GenaiRuntime
from edgekiln.validators.runtime_llama import LlamaRuntime
from edgekiln.validators.tokenizer import SAMPLES, check_tokenizer, compare_tokenizer

DIRECTORY = embedded_directory()
EXACT, RAW = load_tokenizer(DIRECTORY), load_tokenizer(DIRECTORY, normalize=False)


def outcomes(results: list[CheckResult]) -> dict[str, str]:
    return {result.check: result.outcome for result in results}


def test_the_same_tokenizer_passes() -> None:
    results = compare_tokenizer(DIRECTORY, lambda text: encode(EXACT, text), ["more"])
    assert outcomes(results) == {"tokenizer/ids": "pass"}
    assert f"{len(SAMPLES) + 1} texts" in results[0].detail


def test_skipping_nfc_is_a_known_divergence_with_its_inputs() -> None:
    results = compare_tokenizer(DIRECTORY, lambda text: encode(RAW, text), [])
    assert outcomes(results) == {"tokenizer/ids": "pass", "tokenizer/nfc": "known_divergence"}
    assert r"cafe\u0301" in results[1].detail


def test_another_error_on_a_text_that_is_not_nfc_fails() -> None:
    def wrong(text: str) -> list[int]:
        return encode(EXACT, text) if unicodedata.is_normalized("NFC", text) else [1, 2, 3]

    results = compare_tokenizer(DIRECTORY, wrong, [])
    assert outcomes(results) == {"tokenizer/ids": "fail"}


def test_text_that_ends_at_nul_is_told_apart() -> None:
    results = compare_tokenizer(DIRECTORY, lambda text: encode(EXACT, text.split("\0", maxsplit=1)[0]), [])
    assert outcomes(results) == {"tokenizer/ids": "pass", "tokenizer/nul": "known_divergence"}


def test_special_tokens_read_as_text_fail_and_are_shown() -> None:
    def plain(text: str) -> list[int]:
        return encode(EXACT, text.replace("<|im_end|>", "<|im_end |>"))

    (result,) = compare_tokenizer(DIRECTORY, plain, [])
    assert result.outcome == "fail"
    assert "<|im_" in result.detail


def test_the_chat_template_is_rendered_with_the_generation_prompt() -> None:
    text = render_chat(DIRECTORY, [{"role": "user", "content": "Hi"}])
    assert "<|im_start|>user\nHi<|im_end|>" in text
    assert "<|im_start|>assistant" in text


RUNTIMES = {"gguf": LlamaRuntime, "onnx": GenaiRuntime}
KNOWN = {"tokenizer/nfc", "tokenizer/nul", "tokenizer/dropped"}


def checked(container: str, directory: Path, checkpoint: Path = DIRECTORY) -> dict[str, CheckResult]:
    runtime = RUNTIMES[container]()
    runtime.load_tokenizer(gguf_file(directory) if container == "gguf" else directory)
    try:
        return {result.check: result for result in check_tokenizer(runtime, checkpoint, [])}
    finally:
        runtime.end()


@pytest.mark.parametrize("container", RUNTIMES)
def test_a_good_artifact_passes_but_for_what_its_runtime_is_known_for(container: str, tmp_path: Path) -> None:
    results = checked(container, artifact(container, "int8", tmp_path))
    for check in ("tokenizer/ids", "tokenizer/decode", "tokenizer/vocabulary", "tokenizer/eos"):
        assert results.pop(check).outcome == "pass"
    assert results.keys() <= KNOWN
    assert {result.outcome for result in results.values()} == {"known_divergence"}


class Scripted:
    """The checkpoint's own tokenizer, with one thing wrong."""

    def __init__(self, **wrong: object) -> None:
        self.wrong = wrong

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        return encode(EXACT, text if special else "")

    def detokenize_stream(self, ids: Sequence[int]) -> list[str | bytes]:
        if "detokenizer" in self.wrong:
            return [EXACT.decode([token], skip_special_tokens=True) for token in ids]
        if "quiet" in self.wrong:
            ids = [token for token in ids if token != self.wrong["quiet"]]
        return [EXACT.decode(list(ids), skip_special_tokens=True)]

    def end_tokens(self) -> frozenset[int]:
        return self.wrong.get("ends", frozenset({4072, 4073}))  # type: ignore[return-value]  # what the test says

    def vocabulary_size(self) -> int:
        return self.wrong.get("size", 4096)  # type: ignore[return-value]  # what the test says


def failed(**wrong: object) -> dict[str, CheckResult]:
    results = check_tokenizer(Scripted(**wrong), DIRECTORY, [])
    return {result.check: result for result in results if result.outcome == "fail"}


def test_nothing_wrong_fails_nothing() -> None:
    assert failed() == {}


def test_characters_that_fall_apart_in_a_stream_fail_decoding_alone() -> None:
    found = failed(detokenizer=True)
    assert found.keys() == {"tokenizer/decode"}
    assert {"script: tibetan", "emoji"} <= {finding.subject for finding in found["tokenizer/decode"].findings}


def test_a_vocabulary_that_disagrees_in_size_is_named() -> None:
    for size in (4000, 5000):
        (finding,) = failed(size=size)["tokenizer/vocabulary"].findings
        assert str(size) in finding.detail
        assert finding.severity == "error"


def test_a_token_without_its_text_is_found_unless_it_ends_a_turn_by_itself() -> None:
    token = encode(EXACT, "t")[0]
    assert "'' instead of 't'" in failed(quiet=token)["tokenizer/vocabulary"].detail
    assert "tokenizer/vocabulary" not in failed(quiet=token, ends=frozenset({4072, 4073, token}))


def test_each_missing_end_of_a_reply_is_named() -> None:
    (finding,) = failed(ends=frozenset({4073}))["tokenizer/eos"].findings
    assert (finding.id, finding.subject) == ("tokenizer/eos", "token 4072")
    assert "<|im_end|>" in finding.detail


def test_genai_config_without_the_end_of_turn_fails(tmp_path: Path) -> None:
    directory = artifact("onnx", "int8", tmp_path)
    path = directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = [4073]
    path.write_text(json.dumps(config))
    (finding,) = checked("onnx", directory)["tokenizer/eos"].findings
    assert finding.subject == "token 4072"


def test_truncated_merges_of_an_onnx_directory_fail_ids_and_not_decoding(tmp_path: Path) -> None:
    directory = artifact("onnx", "int8", tmp_path)
    path = directory / "tokenizer.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["model"]["merges"] = root["model"]["merges"][:100]
    path.write_text(json.dumps(root), encoding="utf-8")
    results = checked("onnx", directory)
    assert results["tokenizer/ids"].outcome == "fail"
    assert results["tokenizer/ids"].findings
    assert results["tokenizer/decode"].outcome == "pass"


def test_a_gguf_vocabulary_of_swapped_pieces_fails(tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "int8", tmp_path))
    data = path.read_bytes()
    first, second = (data.index(struct.pack("<Q", 4) + piece) for piece in (b"self", b"code"))
    swap_bytes(path, first, second, 12)
    results = checked("gguf", path.parent)
    assert results["tokenizer/vocabulary"].outcome == "fail"
    assert "2 of 4081 tokens" in results["tokenizer/vocabulary"].detail
