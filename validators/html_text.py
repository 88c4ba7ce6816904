"""Text from artifacts, checkpoints and corpora, made safe and visible for an HTML page.

All of it is hostile: it is cut to a length before anything else is done, markup is escaped, and characters that hide or
reorder others are shown as their escapes. Right-to-left scripts stay as they are; the page isolates them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from markupsafe import Markup, escape

from edgekiln.terminal import printable

#: Combining marks that one letter may carry; more of them are drawn over the lines above and below.
_MOST_MARKS: Final = 6
_WHITE_SPACE: Final[Mapping[str, str]] = MappingProxyType({" ": "␣", "\t": "⇥", "\n": "↵", "\r": "␍", "\u00a0": "⍽"})
_PARTS: Final = re.compile(r"(?<=[._/:-])(?=[A-Za-z])")
_LEFT_TO_RIGHT: Final = Markup('<span class="ctl">{}</span>')


def cut(text: str, most: int) -> str:
    """Return at most about `most` characters of `text`: its middle makes way for the number of what is left out."""
    if len(text) <= most:
        return text
    tail = most // 4
    head = most - tail
    return f"{text[:head]} … {len(text) - most:,} characters left out … {text[-tail:] if tail else ''}"


def _is_safe(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _characters(text: str, *, lines: bool, spaces: bool) -> list[Markup | str]:
    """Return the pieces of a text, each safe: runs of what is printable, and marked stand-ins for the rest."""
    pieces: list[Markup | str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if spaces and character in _WHITE_SPACE:
            pieces.append(Markup('<span class="ws">{}</span>').format(_WHITE_SPACE[character]))
        elif lines and character in "\n\t":
            sign = Markup('<span class="ws" aria-hidden="true">{}</span>{}')
            pieces.append(sign.format(_WHITE_SPACE[character], character))
        elif marks > _MOST_MARKS:
            pieces.append(_LEFT_TO_RIGHT.format(f"\\u{ord(character):04x}"))
        elif (shown := printable(character)) != character:
            pieces.append(_LEFT_TO_RIGHT.format(shown))
        else:
            pieces.append(character)
    return pieces


def shown(text: str, most: int = 400, *, lines: bool = False) -> Markup:
    """Return text as HTML on one line, or with its line ends and tabs kept and marked.

    Args:
        text: Anything.
        most: Characters shown, at most.
        lines: Keep line ends and tabs; the page must show them with `white-space: pre-wrap`.
    """
    bounded = cut(text, most)
    if _is_safe(bounded):
        return escape(bounded)
    return Markup("").join(_characters(bounded, lines=lines, spaces=False))


def name(text: str, most: int = 160) -> Markup:
    """Return a name of a tensor, file or key as HTML that may break after its separators before it does elsewhere."""
    return Markup("<wbr>").join(shown(part, most) for part in _PARTS.split(cut(text, most)))


def token(text: str, most: int = 80) -> Markup:
    """Return one token as HTML, all of its white space visible; an empty one is said to be so."""
    if not text:
        return Markup('<span class="ws">empty</span>')
    return Markup("").join(_characters(cut(text, most), lines=False, spaces=True))


def plain(text: str, most: int = 120) -> str:
    """Return text without markup, for titles and text alternatives: bounded, and with escapes as in a terminal."""
    return printable(cut(text, most))


def shared_start(one: str, other: str, *, window: int = 4000) -> int:
    """Return how many characters two texts begin with alike, back to where the word at which they part begins."""
    length = 0
    for a, b in zip(one[:window], other[:window], strict=False):
        if a != b:
            break
        length += 1
    if one[length : length + 1].isalnum() or other[length : length + 1].isalnum():
        while length and one[length - 1].isalnum():
            length -= 1
    return length


def parted(text: str, start: int, most: int = 2000) -> tuple[Markup, Markup, Markup]:
    """Return what a text shares with another, the word at which it leaves it, and the rest, as HTML.

    Args:
        text: The whole text.
        start: Characters that are shared.
        most: Characters shown of each part, at most.
    """
    end = start
    while end < len(text) and end < start + 40 and (end == start or not text[end].isspace()):
        end += 1
    parts = (text[:start], text[start:end], text[end:])
    return (shown(parts[0], most, lines=True), shown(parts[1], most, lines=True), shown(parts[2], most, lines=True))
