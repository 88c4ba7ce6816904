"""The texts that parity is measured on: the built-in corpus, or a file of the user's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekiln.errors import UsageError

_DATA: Final = Path(__file__).parent / "data"
BUILT_IN: Final = _DATA / "corpus.jsonl"
PROMPTS: Final = _DATA / "prompts.jsonl"
#: A few windows are taken from the whole; a larger file would cost memory and minutes for nothing.
MAX_CORPUS_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        section: What kind of text it is; metrics can be told apart by it.
        text: The text; special tokens inside it count as such.
    """

    section: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Texts, and what a report says of them.

    Attributes:
        name: `built-in`, or the name of the file.
        sha256: Of the file's bytes.
        documents: At least one; each gives one window.
        consecutive: The text is one piece, split into consecutive windows.
    """

    name: str
    sha256: str
    documents: tuple[Document, ...]
    consecutive: bool


@dataclass(frozen=True)
class Window:
    """Token ids that are run as one sequence; the first is not predicted."""

    section: str
    ids: tuple[int, ...]


def _parse_lines(path: Path, text: str) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number} is no JSON object: {error}") from None
        match entry:
            case {"text": str(content), **rest}:
                yield Document(str(rest.get("section", "text")), content)
            case _:
                raise UsageError(f"{path}, line {number} needs a 'text' (and may have a 'section'), both strings")


def read_corpus(path: Path | None = None) -> Corpus:
    """Return the corpus in `path`, or the built-in one.

    A `.jsonl` file has one `{"section": …, "text": …}` per line; any other file is plain text.

    Raises:
        UsageError: The file is missing, empty, too large, not UTF-8, or malformed.
    """
    source = path or BUILT_IN
    try:
        size = source.stat().st_size
        if size > MAX_CORPUS_BYTES:
            raise UsageError(f"{source} has {size} bytes; a corpus may have {MAX_CORPUS_BYTES}: give a part of it")
        data = source.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"the corpus {source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the corpus {source} is not UTF-8 at byte {error.start}; convert it first") from None
    lines = source.suffix == ".jsonl"
    documents = tuple(_parse_lines(source, text)) if lines else (Document("text", text),)
    if not any(document.text.strip() for document in documents):
        raise UsageError(f"the corpus {source} is empty; parity needs text")
    name = "built-in" if path is None else path.name
    return Corpus(name, hashlib.sha256(data).hexdigest(), documents, consecutive=not lines)


def read_prompts() -> tuple[str, ...]:
    """Return the built-in user prompts for greedy decoding."""
    return tuple(document.text for document in _parse_lines(PROMPTS, PROMPTS.read_text(encoding="utf-8")))


def choose_evenly(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the indices below `count`, evenly spaced from the first on."""
    taken = min(count, limit)
    return [index * count // taken for index in range(taken)]


def make_windows(
    corpus: Corpus, encode: Callable[[str], Sequence[int]], *, window: int, windows: int
) -> tuple[Window, ...]:
    """Return the windows of a corpus: up to `window` tokens each, at most `windows`, chosen evenly.

    A document gives its first tokens; plain text is split into consecutive windows first.

    Raises:
        UsageError: No window has two tokens, so that nothing could be predicted.
    """
    candidates: list[Window] = []
    for document in corpus.documents:
        ids = encode(document.text)
        last = len(ids) if corpus.consecutive else 1
        candidates += [Window(document.section, tuple(ids[at : at + window])) for at in range(0, last, window)]
    usable = [candidate for candidate in candidates if len(candidate.ids) >= 2]
    if not usable:
        raise UsageError(f"the corpus {corpus.name} has too little text: a window needs two tokens")
    full = [candidate for candidate in usable if len(candidate.ids) == window]
    if corpus.consecutive and full:
        usable = full  # the rest at the end of a text is no window of its own
    return tuple(usable[index] for index in choose_evenly(len(usable), windows))
