"""A few damaged inputs for every parser; `make fuzz` feeds many."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from edgekiln.errors import UsageError
from fuzz import Parser, file_named, mutate, parsers

_SCRIPT = Path(fuzz.__file__)


@pytest.mark.parametrize("name", [parser.name for parser in parsers()])
def test_damaged_inputs_are_refused_in_our_words_or_accepted(name: str) -> None:
    (parser,) = (parser for parser in parsers() if parser.name == name)
    faults, _ = fuzz.fuzz(parser, 40, seed=20261122)
    assert [fault.what for fault in faults] == []


def test_a_parser_that_lets_another_exception_out_is_found() -> None:
    def careless(path: Path) -> int:
        if not path.read_bytes().startswith(b"12"):
            raise UsageError("it must start with 12")
        return int(path.read_bytes())

    found, _ = fuzz.fuzz(Parser("careless", lambda: [b"123456"], careless, file_named("x")), 200, seed=1)
    assert found
    assert all(fault.what.startswith("ValueError") for fault in found)


def test_a_parser_that_takes_too_long_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.0)
    slow = Parser("slow", lambda: [b"x"], lambda path: sum(range(100_000)) and path.read_bytes(), file_named("x"))
    found, longest = fuzz.fuzz(slow, 3, seed=1)
    assert len(found) == 3
    assert longest > 0


def test_the_same_seed_damages_alike_and_most_inputs_are_damaged() -> None:
    data = bytes(range(256)) * 4
    first, again = ([mutate(data, rng) for _ in range(200)] for rng in (random.Random(1), random.Random(1)))  # noqa: S311
    assert first == again
    assert sum(one != data for one in first) > 150


def test_the_command_runs_a_parser_in_a_process_of_its_own() -> None:
    command = [sys.executable, str(_SCRIPT), "--inputs", "20", "--parser", "gate"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(_SCRIPT.parent)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gate: 20 inputs, 0 faults")
