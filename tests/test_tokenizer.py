"""The tokenizer check tells a wrong tokenizer from what runtimes are known for."""

from __future__ import annotations

import unicodedata

from edgekiln.checkpoint import embedded_directory
from edgekiln.validators.base import CheckResult
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer, render_chat
from edgekiln.validators.tokenizer import SAMPLES, compare_tokenizer

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
