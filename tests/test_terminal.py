"""Nothing that a file or a model says controls the terminal."""

import pytest

from edgekiln import errors
from edgekiln.terminal import printable


@pytest.mark.parametrize("text", ["plain", "Straße", "川\u3000流", "👩\u200d🔬", "é", "e\u0301"])
def test_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize("bad", ["\x1b[2J", "\r", "\x07", "\u202e", "\u2028", "\x9b", "\ud800", "\n"])
def test_controls_are_escaped(bad):
    shown = printable(f"a{bad}b")
    assert shown.startswith("a\\")
    assert shown.endswith("b")
    assert bad[0] not in shown


@pytest.mark.parametrize("text", ["川\u3000流\xa0", "👩\u200d🔬", "a\x1b\n\u202e\udcffb\ud800"])
def test_errors_escape_by_the_same_rule(text):
    assert errors.printable(text) == printable(text)
    assert len(errors.printable(text * 9999)) < 40_000


def test_bytes_of_names_are_shown_as_bytes():
    assert printable("a\udcff") == "a\\xff"


def test_line_ends_stay_where_there_are_lines():
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
