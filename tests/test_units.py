from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import UsageError
from edgekiln.units import format_size, parse_size


@given(st.integers(min_value=0, max_value=2**60))
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4 GiB", 4 * 2**30),
        ("4GiB", 4 * 2**30),
        ("350 MB", 350_000_000),
        ("1.5 kib", 1536),
        ("0.3 GB", 300_000_000),
        (" 7 B ", 7),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 G", "-1 MB", "1e9", "4 GiB free", "1,5 GB", "∞ GB", "9" * 400, "٤ GB"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(UsageError, match="GiB"):
        parse_size(text)
