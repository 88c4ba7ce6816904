"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from edgekiln.errors import UsageError

_UNITS: Final = MappingProxyType(
    {
        "B": 1,
        "kB": 1000,
        "MB": 1000**2,
        "GB": 1000**3,
        "TB": 1000**4,
        "KiB": 1024,
        "MiB": 1024**2,
        "GiB": 1024**3,
        "TiB": 1024**4,
    }
)
_BY_LOWER: Final = MappingProxyType({unit.lower(): unit for unit in _UNITS})
_SIZE: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]{0,8})", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that a text like `4 GiB`, `350 MB` or `4096` stands for, rounded to whole bytes.

    kB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB are powers of 1024; case does not matter.

    Raises:
        UsageError: The text is no number with one of these units.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _BY_LOWER.get(match[2].lower() or "b") if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is no size; write a number and one of {', '.join(_UNITS)}, like '4 GiB'")
    return round(Fraction(match[1]) * _UNITS[unit])


def format_size(size: int) -> str:
    """Return a short text that `parse_size` reads back to exactly `size`: `6.5 GiB`, `350 MB`, `317400576 B`."""
    for unit, factor in sorted(_UNITS.items(), key=lambda item: -item[1]):
        whole, tenths = divmod(10 * size // factor, 10)
        if size >= factor and 10 * size % factor == 0:
            return f"{whole}.{tenths} {unit}" if tenths else f"{whole} {unit}"
    return f"{size} B"
