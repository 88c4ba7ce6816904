"""The tokenizer of a checkpoint as llama.cpp stores it: tokens by id, their types, merges, the pre-tokenizer's name.

`tokenizer.json` is untrusted: every part that is used is checked here, and whatever llama.cpp could not reproduce (a
normalizer, a pre-tokenizer, an option of the BPE model that it does not have) is refused rather than dropped.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from edgekiln.checkpoint import Checkpoint
from edgekiln.errors import CheckpointError, UnsupportedError
from edgekiln.memory import uncollected
from edgekiln.tokenizer_file import read_tokenizer

_QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's name of a pre-tokenizer, by the pattern that splits the text in tokenizer.json.
PRE_TOKENIZERS: Final[Mapping[str, str]] = {_QWEN2_PATTERN: "qwen2"}

_Json = Mapping[str, object]


class TokenType(IntEnum):
    """llama.cpp's types of tokens (`enum llama_token_type` in llama.h)."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class Vocabulary:
    """What goes into `tokenizer.ggml.*`.

    Attributes:
        tokens: Text by id, as many as the embedding has rows.
        types: Type by id.
        merges: `left right`, in order of priority.
        pre: llama.cpp's name of the pre-tokenizer.
    """

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    pre: str

    @functools.cached_property
    def token_bytes(self) -> int:
        """Bytes of all tokens as UTF-8."""
        return len("".join(self.tokens).encode("utf-8"))

    @functools.cached_property
    def merge_bytes(self) -> int:
        """Bytes of all merges as UTF-8."""
        return len("".join(self.merges).encode("utf-8"))


def _member(path: Path, values: _Json, key: str, where: str = "") -> _Json:
    value = values.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {where}{key} must be an object, not {type(value).__name__}")
    return value


def _steps(path: Path, value: object, key: str) -> list[_Json]:
    """Return the steps of a normalizer, pre-tokenizer or post-processor, alone or in a Sequence."""
    if value is None:
        return []
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} must be an object, not {type(value).__name__}")
    if value.get("type") != "Sequence":
        return [value]
    steps = next((v for k, v in value.items() if k != "type" and isinstance(v, list)), None)
    if steps is None or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{path}: {key} is a Sequence without a list of steps")
    return steps


def _pre_tokenizer(path: Path, root: _Json) -> str:
    """Return llama.cpp's name of the pre-tokenizer.

    llama.cpp's own converter recognises it by a hash of the ids of a test text, which fails for every vocabulary that
    it has not seen; what decides how text is split is the pattern.
    """
    match _steps(path, root.get("pre_tokenizer"), "pre_tokenizer"):
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if pattern in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[pattern]
    raise UnsupportedError(
        f"{path} splits text in a way that llama.cpp does not know as Qwen's; "
        f"GGUF export knows the pre-tokenizers {', '.join(sorted(set(PRE_TOKENIZERS.values())))}"
    )


def _check_pipeline(path: Path, root: _Json) -> None:
    """Refuse what would make llama.cpp's ids differ; its lack of NFC is known, and the validator reports it."""
    for step in _steps(path, root.get("normalizer"), "normalizer"):
        if step.get("type") != "NFC":
            raise UnsupportedError(f"{path} normalizes text by {step.get('type')!r}; GGUF export knows NFC")
    for step in _steps(path, root.get("post_processor"), "post_processor"):
        if step.get("type") not in {"ByteLevel", "TemplateProcessing"} or step.get("special_tokens"):
            raise UnsupportedError(
                f"{path} adds special tokens to every text ({step.get('type')!r}), which no Qwen does; "
                "GGUF export supports tokenizers that add none"
            )


def _merges(path: Path, model: _Json, vocabulary: _Json) -> tuple[str, ...]:
    """Return the merges as `left right`, from either layout of tokenizer.json."""
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise CheckpointError(f"{path}: model.merges must be a list, not {type(listed).__name__}")
    pairs = [entry.split(" ") if type(entry) is str else entry for entry in listed]
    for entry, pair in zip(listed, pairs, strict=True) if not _are_merges(pairs, vocabulary) else ():
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise CheckpointError(f"{path}: the merge {entry!r} is not a pair of tokens")
        left, right = pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise CheckpointError(f"{path}: the merge {left!r} + {right!r} is not of tokens in the vocabulary")
    merges = tuple(map(" ".join, pairs))
    if "".join(merges).count(" ") != len(merges):  # each has one at least
        raise CheckpointError(f"{path}: a merge holds a space, which byte-level BPE writes as 'Ġ'")
    return merges


def _are_merges(pairs: list[list[str]], vocabulary: _Json) -> bool:
    """Tell whether all are pairs of tokens that make a token: as sets, since there are 150,000."""
    if not set(map(type, pairs)) <= {list} or not set(map(len, pairs)) <= {2}:
        return False
    try:
        parts = set(itertools.chain.from_iterable(pairs))  # of which many are many times in it
        return parts <= vocabulary.keys() and all(map(vocabulary.__contains__, map("".join, pairs)))
    except TypeError:  # no text, or nothing that a set holds
        return False


def _vocabulary(path: Path, model: _Json, size: int) -> dict[int, str]:
    """Return the tokens of the BPE model by id."""
    if model.get("type") != "BPE":
        raise UnsupportedError(f"{path} holds a {model.get('type')!r} model; GGUF export supports byte-level BPE")
    for option in ("byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(f"{path} sets {option} of its BPE model, which llama.cpp does not do for Qwen")
    vocabulary = _member(path, model, "vocab", "model.")
    numbers = [number for number in vocabulary.values() if type(number) is int]
    tokens = dict(zip(numbers, vocabulary, strict=False))  # of as many as there are texts if every number is one
    if len(tokens) == len(vocabulary) and min(tokens, default=0) >= 0 and max(tokens, default=0) < size:
        return tokens
    raise _wrong_id(path, vocabulary, size)


def _wrong_id(path: Path, vocabulary: _Json, size: int) -> CheckpointError:
    """Return what to say of the first token whose id is none, or is another's."""
    tokens: dict[object, str] = {}
    for text, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < size:
            return CheckpointError(f"{path}: token {text!r} has id {number!r}, but ids must lie in 0…{size - 1}")
        if number in tokens:
            return CheckpointError(f"{path}: tokens {tokens[number]!r} and {text!r} share id {number}")
        tokens[number] = text
    return CheckpointError(f"{path}: the ids of model.vocab are malformed")


def _added_tokens(path: Path, root: _Json, size: int) -> dict[int, tuple[str, TokenType]]:
    """Return text and type of the added tokens by id.

    Some checkpoints list control tokens as not special; `<|…|>` is one whatever the flag says, as in llama.cpp's
    converter.
    """
    listed = root.get("added_tokens", [])
    if not isinstance(listed, list):
        raise CheckpointError(f"{path}: added_tokens must be a list, not {type(listed).__name__}")
    added: dict[int, tuple[str, TokenType]] = {}
    for entry in listed:
        match entry:
            case {"id": int(number), "content": str(text)} if 0 <= number < size and number not in added:
                control = entry.get("special") is True or (text.startswith("<|") and text.endswith("|>"))
                added[number] = (text, TokenType.CONTROL if control else TokenType.USER_DEFINED)
            case _:
                raise CheckpointError(
                    f"{path}: the added token {entry!r} needs a text and an id of its own below {size}"
                )
    return added


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Return the tokenizer of a checkpoint in llama.cpp's form.

    Rows of the embedding without a token become `[PAD<id>]`, unused, as llama.cpp's converter names them.

    Raises:
        CheckpointError: tokenizer.json is malformed or contradicts itself.
        UnsupportedError: llama.cpp cannot do what it says.
    """
    path = checkpoint.directory / "tokenizer.json"
    return _read_vocabulary(path, checkpoint.config.vocab_size, _stamp(path))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does, so that the last vocabulary read need not be read again.

    None is for a file that is missing or out of reach; reading it says which.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _read_vocabulary(path: Path, size: int, stamp: object) -> Vocabulary:  # noqa: ARG001 - part of the key
    with uncollected():
        _, root = read_tokenizer(path)
        model = _member(path, root, "model")
        pre = _pre_tokenizer(path, root)
        _check_pipeline(path, root)
        vocabulary, added = _vocabulary(path, model, size), _added_tokens(path, root, size)
        texts, kinds = [""] * size, [TokenType.NORMAL] * size
        for number in range(size) if len(vocabulary) < size else ():
            if number not in vocabulary:
                texts[number], kinds[number] = f"[PAD{number}]", TokenType.UNUSED
        for number, text in vocabulary.items():
            texts[number] = text
        for number, entry in added.items():
            texts[number], kinds[number] = entry
        if len(set(texts)) != size:
            twice = next(text for text in texts if texts.count(text) > 1)
            raise CheckpointError(f"{path}: the text {twice!r} has more than one id")
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path}: a token is no valid text ({error.reason})") from None
        merges = _merges(path, model, _member(path, model, "vocab"))
        return Vocabulary(tuple(texts), tuple(kinds), merges, pre)
