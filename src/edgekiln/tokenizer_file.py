"""Checking tokenizer.json and its companions against the model, before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgekiln.errors import CheckpointError
from edgekiln.files import parse_json, read_bounded
from edgekiln.model_config import read_json

#: Qwen's has up to 20 MB.
MAX_TOKENIZER_BYTES: Final = 64 << 20
#: As `parse_json` counts them; Qwen3's has 760,000.
_MAX_VALUES: Final = 2_500_000


def parse_tokenizer(path: Path, content: str) -> Any:
    """Return the `tokenizers.Tokenizer` that `content` describes.

    Raises:
        CheckpointError: Hugging Face's library refuses it; the message names `path`.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except BaseException as error:  # the library raises a bare Exception, and its panics derive from BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path} is no tokenizer that Hugging Face's library reads: {error}") from None


def read_tokenizer(path: Path) -> tuple[str, Mapping[str, object]]:
    """Return a tokenizer.json of bounded size as text and as the JSON object it is.

    Of a vocabulary of 150,000 the object takes 50 MB, so whoever asks for it soon lets go of it.

    Raises:
        CheckpointError: It is missing, empty, too large or no JSON object.
        MachineError: The system does not let us read it.
    """
    raw = read_bounded(path, MAX_TOKENIZER_BYTES)
    if not raw.strip():
        raise CheckpointError(f"{path} is empty; save the fast tokenizer beside the weights again")
    try:
        value = parse_json(raw, _MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; save the fast tokenizer again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return raw.decode("utf-8"), value


def check_tokenizer(directory: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that is unreadable, or gives ids for which the model has no embedding.

    Args:
        directory: Holds tokenizer.json and, if there is one, tokenizer_config.json.
        vocab_size: Rows of the embedding.

    Raises:
        CheckpointError: It is missing, empty, damaged or larger than the vocabulary, or contradicts itself.
        MachineError: The system does not let us read it.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{directory} has no tokenizer.json; save the fast tokenizer beside the weights")
    content, listed, has_table = _check_object(path, vocab_size)
    tokenizer = parse_tokenizer(path, content)
    if not has_table:
        _check_tokens(path, tokenizer.get_vocab(with_added_tokens=True) | listed, vocab_size)
    if moved := [text for text, number in listed.items() if tokenizer.token_to_id(text) != number]:
        raise CheckpointError(
            f"{path} lists the token {moved[0]!r} with id {listed[moved[0]]}, but Hugging Face's library gives it "
            f"{tokenizer.token_to_id(moved[0])}; save the fast tokenizer again"
        )
    if (settings := directory / "tokenizer_config.json").exists():
        _check_ids(settings, _added_tokens(settings), vocab_size)


def _check_object(path: Path, vocab_size: int) -> tuple[str, dict[str, int], bool]:
    """Check what the file alone tells, whose object is gone before the library makes a tokenizer of the same size.

    Returns:
        The text of the file; the ids of the added tokens; whether the ids of all others were in it, and are checked:
        asking the library for them takes longer.
    """
    content, root = read_tokenizer(path)
    listed = _listed(root)
    match root.get("model"):
        case {"vocab": dict(vocabulary)} if set(map(type, vocabulary.values())) == {int}:
            _check_tokens(path, vocabulary | listed, vocab_size)
            return content, listed, True
    return content, listed, False


def _check_tokens(path: Path, tokens: dict[str, int], vocab_size: int) -> None:
    if not tokens:
        raise CheckpointError(f"{path} has no tokens; save the fast tokenizer beside the weights again")
    _check_ids(path, tokens, vocab_size)


def _listed(root: Mapping[str, object]) -> dict[str, int]:
    """Return the ids of the added tokens as tokenizer.json lists them; the library appends what leaves a gap."""
    added = root.get("added_tokens")
    listed: dict[str, int] = {}
    for entry in added if isinstance(added, list) else ():
        match entry:
            case {"id": int(number), "content": str(text)}:
                listed[text] = number
    return listed


def _check_ids(path: Path, tokens: dict[str, int], vocab_size: int) -> None:
    beyond = [(number, text) for text, number in tokens.items() if number >= vocab_size]
    if beyond:
        number, text = min(beyond)
        raise CheckpointError(
            f"{path} has {len(beyond)} tokens beyond the vocabulary of {vocab_size} in config.json, first {text!r} "
            f"with id {number}; resize the embeddings with model.resize_token_embeddings(len(tokenizer)), or restore "
            "the tokenizer that the model was trained with"
        )


def _added_tokens(path: Path) -> dict[str, int]:
    """Return the tokens that tokenizer_config.json adds, by text."""
    added = read_json(path).get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(key.isascii() and key.isdigit() and len(key) < 12 for key in added):
        raise CheckpointError(f"{path}: added_tokens_decoder must be an object of tokens by id")
    return {str(entry.get("content") if isinstance(entry, dict) else entry): int(key) for key, entry in added.items()}
