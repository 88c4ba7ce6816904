"""Bytes go to their places only, and a tensor is whole only when all of them are there. See test_journal.py too."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.errors import StepError
from edgekiln.journal import Extent, Journal, Layout
from edgekiln.tensor_files import TensorFiles

LAYOUT = Layout({"data": 64}, {"a": (Extent("data", 0, 8), Extent("data", 16, 8)), "b": (Extent("data", 32, 8),)})


def test_more_bytes_than_planned_are_refused_before_they_reach_a_neighbour(tmp_path: Path) -> None:
    with TensorFiles(tmp_path, LAYOUT) as files:
        files.write("a", b"12345678")
        with pytest.raises(StepError, match="a has more than the 8 bytes that were planned; its quantizer is wrong"):
            files.write("a", b"9")
    assert (tmp_path / "data").read_bytes() == b"12345678" + bytes(56)


@pytest.mark.parametrize("parts", [(), (0,), (1,)])
def test_a_tensor_with_bytes_missing_is_not_whole(tmp_path: Path, parts: tuple[int, ...]) -> None:
    journal = Journal(tmp_path / "journal")
    (tmp_path / "out").mkdir()
    with TensorFiles(tmp_path / "out", LAYOUT, journal) as files:
        for part in parts:
            files.write("a", bytes(8), part)
        with pytest.raises(StepError, match=f"a has {8 * len(parts)} bytes, not 16 as planned"):
            files.complete("a")
    assert journal.done_now == 0


def test_pieces_of_any_size_and_order_make_the_same_file(tmp_path: Path) -> None:
    for name, size in (("bytewise", 1), ("whole", 8)):
        (tmp_path / name).mkdir()
        with TensorFiles(tmp_path / name, LAYOUT) as files:
            for at in range(0, 8, size):
                files.write("b", memoryview(b"ABCDEFGH")[at : at + size])
                files.write("a", b"abcdefgh"[at : at + size], 1)
                files.write("a", b"01234567"[at : at + size], 0)
            files.complete("a")
            files.complete("b")
    assert (tmp_path / "whole/data").read_bytes() == (tmp_path / "bytewise/data").read_bytes()
    assert (tmp_path / "whole/data").read_bytes() == b"01234567" + bytes(8) + b"abcdefgh" + bytes(
        8
    ) + b"ABCDEFGH" + bytes(24)


def test_without_a_journal_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"there")
    with pytest.raises(FileExistsError), TensorFiles(tmp_path, LAYOUT):
        pass
    assert (tmp_path / "data").read_bytes() == b"there"


def test_the_first_error_is_told_where_closing_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(journal: Journal) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr(Journal, "close", fails)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="no disk"), TensorFiles(tmp_path / "out", LAYOUT, Journal(tmp_path / "journal")):
        pass
    with pytest.raises(ZeroDivisionError), TensorFiles(tmp_path / "out", LAYOUT, Journal(tmp_path / "journal")):
        raise ZeroDivisionError
