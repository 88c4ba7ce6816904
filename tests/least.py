"""The least that a build can do and still measure everything: for tests of what surrounds the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: By name, as `--set` has them. Threads that wait for each other beside another test take many times as long as one.
LEAST: Final[Mapping[str, str]] = {
    "windows": "1",
    "window": "64",
    "greedy_tokens": "2",
    "warmups": "0",
    "prefill_tokens": "16",
    "decode_tokens": "4",
    "depths": "4",
    "decode_positions": "2",
    "long_context": "0",
    "repeats": "3",
    "max_repeats": "3",
    "max_spread": "10",
    "threads": "1",
}
ASSIGNMENTS: Final = tuple(f"{name}={value}" for name, value in LEAST.items())
ENVIRONMENT: Final = {f"EDGEKILN_{name.upper()}": value for name, value in LEAST.items()}
