"""The page cache: what is dropped is gone, what is read is there, and where neither can be had it is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekiln import pagecache
from edgekiln.pagecache import evict, files_below, warm


def resident_share(path: Path) -> float:
    offsets = range(0, path.stat().st_size, path.stat().st_size // 64)
    with path.open("rb") as file:
        return sum(pagecache._is_resident(file.fileno(), offset) for offset in offsets) / len(offsets)


def test_what_is_dropped_is_gone_and_what_is_read_is_there(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(4 << 20))
    warm([file])
    if reason := evict([file]):
        pytest.skip(reason)
    assert resident_share(file) < 0.5  # the pages that were asked for are back
    warm([file])
    assert resident_share(file) == 1


def test_an_empty_file_is_nothing_to_drop(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    evict([tmp_path / "empty"])


@pytest.mark.parametrize("call", ["posix_fadvise", "RWF_NOWAIT"])
def test_a_system_without_the_call_says_so(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, call, raising=False)
    assert "no call that drops" in (evict([tmp_path / "never opened"]) or "")


def test_pages_that_stay_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stays").write_bytes(b"x")
    monkeypatch.setattr(pagecache, "_is_resident", lambda _descriptor, _offset: True)
    assert "kept stays" in (evict([tmp_path / "stays"]) or "")


def test_the_files_of_a_directory_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1", "2"):
        (tmp_path / name).touch()
    assert files_below(tmp_path) == (tmp_path / "2", tmp_path / "a/1")
    assert files_below(tmp_path / "2") == (tmp_path / "2",)
