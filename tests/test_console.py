import re

import pytest

from edgekiln.console import Console


def test_elsewhere_than_on_a_terminal_every_step_is_one_plain_line(capsys):
    with Console(1) as console, console.step("gguf-cpu-int4", "exporting Q4_0"):
        pass
    shown = capsys.readouterr()
    assert not shown.out
    assert re.fullmatch(r"\d\d:\d\d:\d\d gguf-cpu-int4: exporting Q4_0, \d+\.\d s\n", shown.err)


def test_a_step_that_fails_says_so(capsys):
    with pytest.raises(ValueError, match="x"), Console() as console, console.step("a", "b"):
        raise ValueError("x")
    assert "a: b failed after" in capsys.readouterr().err


def test_names_with_brackets_are_shown_as_they_are(capsys):
    Console().say("[red]name[/red]")
    assert "[red]name[/red]" in capsys.readouterr().err
