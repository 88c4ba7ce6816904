"""Does the artifact's own tokenizer read, and write, text as the checkpoint's does?

llama.cpp and ORT GenAI skip the NFC normalization of Qwen's tokenizer. A text that is not in NFC is therefore
known to differ there; it is listed as such, but only if the ids are exactly those of the un-normalized text.
ORT GenAI takes a text as a C string, which ends at a NUL character, and its detokenizer leaves out NUL, U+FFFE and
U+FFFF; llama.cpp takes `</s>` for a control token whatever its type. All of that is told apart in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from edgekiln.errors import ArtifactError
from edgekiln.families import READINGS
from edgekiln.model_config import parse_config
from edgekiln.validators.base import CheckResult, Finding
from edgekiln.validators.hf_tokenizer import encode, load_tokenizer
from edgekiln.validators.tokenizer_samples import GROUPS, SAMPLES

_SHOWN: Final = 3
#: What ORT GenAI's detokenizer leaves out.
_DROPPED: Final = str.maketrans("", "", "\0\ufffe\uffff")
_LONGEST_PIECE: Final = 40
_FIX: Final = "export the artifact again with the tokenizer.json of the checkpoint"


class ArtifactTokenizer(Protocol):
    """What a runtime offers after `load_tokenizer`; all methods raise ArtifactError when it refuses."""

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; see `Runtime.tokenize`."""
        ...

    def detokenize_stream(self, ids: Sequence[int]) -> list[str | bytes]:
        """Return what each token adds to a reply, by the runtime's own detokenizer; control tokens add nothing."""
        ...

    def end_tokens(self) -> frozenset[int]:
        """Return the tokens with which the runtime ends a generation."""
        ...

    def vocabulary_size(self) -> int:
        """Return the number of tokens that the artifact declares."""
        ...


@dataclass(frozen=True)
class _Sample:
    group: str
    text: str


def _samples(texts: Sequence[str]) -> list[_Sample]:
    built_in = [_Sample(group, text) for group, members in GROUPS.items() for text in members]
    return built_in + [_Sample("corpus", text) for text in texts]


def _difference(expected: Sequence[object], actual: Sequence[object], text: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), min(len(expected), len(actual))
    )
    return f"{text[:40]!r}: at token {at} {list(actual[at : at + 3])} instead of {list(expected[at : at + 3])}"


def _by_group(wrong: Sequence[tuple[_Sample, str]], check: str, fix: str) -> tuple[Finding, ...]:
    """Return one finding per group of samples, since one cause touches many texts."""
    groups: dict[str, list[str]] = {}
    for sample, shown in wrong:
        groups.setdefault(sample.group, []).append(shown)
    return tuple(
        Finding(check, "error", group, f"{len(shown)} texts differ; first {shown[0]}", fix)
        for group, shown in groups.items()
    )


def _judged(check: str, wrong: Sequence[tuple[_Sample, str]], total: int, same: str, fix: str) -> CheckResult:
    if not wrong:
        return CheckResult(check, "pass", same)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    shown = "; ".join(text for _, text in wrong[:_SHOWN])
    detail = f"{len(wrong)} of {total} texts differ: {shown}{more}"
    return CheckResult(check, "fail", detail, _by_group(wrong, check, fix))


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(ascii(text[:_LONGEST_PIECE]) for text in texts)


def _known(check: str, texts: Sequence[str], detail: str) -> list[CheckResult]:
    return [CheckResult(check, "known_divergence", f"{detail}: {_listed(texts)}")] if texts else []


def _normalizes(tokenizer: Any, text: str) -> bool:
    """Whether the reference reads another text than it is given, by its own tables of Unicode."""
    normalizer = tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str(text) != text


def compare_tokenizer(directory: Path, tokenize: Callable[[str], list[int]], texts: Sequence[str]) -> list[CheckResult]:
    """Compare an artifact's tokenizer with the checkpoint's on the built-in samples and `texts`.

    Args:
        directory: The checkpoint, with tokenizer.json.
        tokenize: The artifact's own tokenizer, special tokens recognised.
        texts: Further texts, e.g. those of the corpus.

    Returns:
        The check `tokenizer/ids`, and `tokenizer/nfc` and `tokenizer/nul` where these known divergences showed.
    """
    return _compare_ids(load_tokenizer(directory), tokenize, texts)


def _unnormalized(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text as the reference has them without its normalizer."""
    normalizer, tokenizer.normalizer = tokenizer.normalizer, None
    try:
        return encode(tokenizer, text)
    finally:
        tokenizer.normalizer = normalizer


def _compare_ids(reference: Any, tokenize: Callable[[str], list[int]], texts: Sequence[str]) -> list[CheckResult]:
    wrong: list[tuple[_Sample, str]] = []
    divergent: list[str] = []
    cut: list[str] = []
    everything = _samples(texts)
    for sample in everything:
        text = sample.text
        actual, expected = tokenize(text), encode(reference, text)
        if actual == expected:
            continue
        read, ended, _ = text.partition("\0")
        if _normalizes(reference, text) and actual == _unnormalized(reference, text):
            divergent.append(text)
        elif ended and actual in (encode(reference, read), _unnormalized(reference, read)):
            cut.append(text)
        else:
            wrong.append((sample, _difference(expected, actual, text)))
    same = f"{len(everything) - len(divergent) - len(cut)} texts have the same ids as in Hugging Face's tokenizer"
    return [
        _judged("tokenizer/ids", wrong, len(everything), same, _FIX),
        *_known(
            "tokenizer/nfc",
            divergent,
            f"the runtime skips NFC normalization, so {len(divergent)} texts that are not NFC differ",
        ),
        *_known(
            "tokenizer/nul",
            cut,
            f"texts are C strings to the runtime: {len(cut)} of {len(everything)} end at their first NUL",
        ),
    ]


def _joined(pieces: Sequence[str | bytes]) -> str:
    """Return streamed pieces as one text; a character's bytes may be spread over tokens."""
    raw = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    return raw.decode("utf-8", errors="replace")


def _compare_decoding(
    reference: Any, stream: Callable[[Sequence[int]], list[str | bytes]], texts: Sequence[str]
) -> list[CheckResult]:
    """Stream the reference's ids of each text through the artifact's detokenizer, token by token."""
    wrong: list[tuple[_Sample, str]] = []
    dropped: list[str] = []
    everything = _samples(texts)
    for sample in everything:
        ids = encode(reference, sample.text)
        expected, actual = reference.decode(ids, skip_special_tokens=True), _joined(stream(ids))
        if actual == expected:
            continue
        if actual == expected.translate(_DROPPED):
            dropped.append(sample.text)
        else:
            at = next((i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b), len(actual))
            here, there = actual[at : at + 20], expected[at : at + 20]
            wrong.append((sample, f"{sample.text[:40]!r}: from character {at} {here!r} instead of {there!r}"))
    same = f"{len(everything) - len(dropped)} texts come back the same as from Hugging Face, token by token"
    return [
        _judged("tokenizer/decode", wrong, len(everything), same, _FIX),
        *_known(
            "tokenizer/dropped",
            dropped,
            f"the runtime's detokenizer leaves out NUL, U+FFFE and U+FFFF, which {len(dropped)} texts have",
        ),
    ]


def _size_findings(declared: int, tokens: int, rows: int) -> list[Finding]:
    subject, fix = "vocabulary", "export the artifact from one checkpoint, with the tokenizer that it was trained with"
    if declared < tokens:
        detail = f"the artifact declares {declared} tokens, but the checkpoint's tokenizer has {tokens}"
    elif declared > rows:
        detail = f"the artifact declares {declared} tokens, but the checkpoint has embeddings for {rows}"
    else:
        return []
    return [Finding("tokenizer/vocabulary", "error", subject, detail, fix)]


def _check_vocabulary(reference: Any, artifact: ArtifactTokenizer, rows: int) -> CheckResult:
    """Compare size and pieces of the vocabulary; a piece that is a part of a character cannot be compared alone."""
    check, declared = "tokenizer/vocabulary", artifact.vocabulary_size()
    tokens = max(reference.get_vocab(with_added_tokens=True).values()) + 1
    findings = _size_findings(declared, tokens, rows)
    both = min(tokens, declared)
    expected = reference.decode_batch([[token] for token in range(both)], skip_special_tokens=True)
    whole = [token for token in range(both) if "\ufffd" not in expected[token]]
    differ = []
    for token in whole:
        (piece,) = artifact.detokenize_stream([token])
        actual = piece if isinstance(piece, str) else piece.decode("utf-8", errors="replace")
        if actual != expected[token] and actual != expected[token].translate(_DROPPED):
            differ.append((token, actual))
    ends = artifact.end_tokens() if differ else frozenset()
    hidden = [token for token, actual in differ if not actual and token in ends]
    wrong = [(token, actual) for token, actual in differ if token not in hidden]
    if wrong:
        token, actual = wrong[0]
        detail = f"{len(wrong)} of {both} tokens have another text; first token {token}: {actual!r} instead of "
        findings.append(Finding(check, "error", "pieces", detail + repr(expected[token]), _FIX))
    if findings:
        return CheckResult(check, "fail", findings[0].detail, tuple(findings))
    detail = f"{len(whole)} of {tokens} tokens that are whole characters have the same text; {declared} are declared"
    if not hidden:
        return CheckResult(check, "pass", detail)
    known = f"the runtime takes {_listed([expected[token] for token in hidden])} for the end of a turn and shows none"
    return CheckResult(check, "known_divergence", f"{detail}; {known}")


def check_ends(ends: frozenset[int], required: Sequence[int], names: Callable[[int], str | None]) -> CheckResult:
    """Judge the tokens with which the artifact ends a generation.

    Args:
        ends: What the runtime made of the artifact.
        required: What the checkpoint's generation_config.json ends with.
        names: The text of a token.
    """
    check = "tokenizer/eos"
    fix = "set the end-of-turn tokens of the artifact (tokenizer.ggml.eos_token_id, eos_token_id in genai_config.json)"
    findings = tuple(
        Finding(
            check,
            "error",
            f"token {token}",
            f"generation does not stop at token {token} ({names(token)!r}), with which the checkpoint ends a reply",
            fix,
        )
        for token in required
        if token not in ends
    )
    shown = ", ".join(f"{token} ({names(token)!r})" for token in sorted(ends)) or "none"
    if findings:
        return CheckResult(check, "fail", f"{findings[0].detail}; it stops at {shown}", findings)
    if not required:
        return CheckResult(
            check, "not_measured", f"the checkpoint names no end of a reply; the artifact stops at {shown}"
        )
    return CheckResult(check, "pass", f"generation stops at {shown}, which holds all {len(required)} of the checkpoint")


def _refused(check: str, error: ArtifactError) -> CheckResult:
    finding = Finding(check, "error", "tokenizer", str(error), _FIX)
    return CheckResult(check, "fail", str(error), (finding,))


def check_tokenizer(artifact: ArtifactTokenizer, directory: Path, texts: Sequence[str]) -> list[CheckResult]:
    """Compare everything about an artifact's tokenizer with the checkpoint's.

    Args:
        artifact: The runtime, after `load_tokenizer`.
        directory: The checkpoint.
        texts: Texts beside the built-in samples, e.g. those of the corpus.

    Returns:
        The checks `tokenizer/ids`, `tokenizer/decode`, `tokenizer/vocabulary` and `tokenizer/eos`; and
        `tokenizer/nfc`, `tokenizer/nul` and `tokenizer/dropped` where these known divergences showed.

    Raises:
        CheckpointError: The checkpoint's own tokenizer or configuration cannot be read.
        UnsupportedError: The checkpoint is of a family that is not known.
    """
    reference = load_tokenizer(directory)
    config = parse_config(directory, READINGS)
    checks: tuple[tuple[str, Callable[[], list[CheckResult]]], ...] = (
        ("tokenizer/vocabulary", lambda: [_check_vocabulary(reference, artifact, config.vocab_size)]),
        ("tokenizer/ids", lambda: _compare_ids(reference, artifact.tokenize, texts)),
        ("tokenizer/decode", lambda: _compare_decoding(reference, artifact.detokenize_stream, texts)),
        (
            "tokenizer/eos",
            lambda: [check_ends(artifact.end_tokens(), config.eos_token_ids, reference.id_to_token)],
        ),
    )
    results: list[CheckResult] = []
    for name, check in checks:
        try:
            results += check()
        except ArtifactError as error:
            results.append(_refused(name, error))
    return results


__all__ = ["SAMPLES", "ArtifactTokenizer", "check_ends", "check_tokenizer", "compare_tokenizer"]
