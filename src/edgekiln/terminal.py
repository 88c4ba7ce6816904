"""Text from files and models, made safe for a terminal; `edgekiln.errors` builds its sentences on it."""

from __future__ import annotations

import unicodedata
from typing import Final

#: Unicode's controls, formats (which reorder and hide text), surrogates, line and paragraph separators.
_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Formats that join letters and emoji.
_JOINERS: Final = "\u200c\u200d"


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` with escapes in place of characters that could move the cursor, change colours or hide others.

    A lone surrogate by which Python stands for a byte that is not UTF-8 becomes that byte's escape.

    Args:
        text: Anything, from a source that is not trusted.
        lines: Keep line ends and tabs.
    """
    kept = _JOINERS + "\n\t" if lines else _JOINERS
    return "".join(_escape(c) if unicodedata.category(c) in _ESCAPED and c not in kept else c for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
