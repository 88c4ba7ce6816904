"""Reading bounded files: what is no file, what the machine refuses, what would exhaust it."""

import errno
import os

import pytest

from edgekiln.errors import CheckpointError, MachineError, UsageError
from edgekiln.files import open_regular, parse_json, read_bounded, read_text, require_utf8


def test_a_file_of_the_bound_is_read_and_a_larger_one_is_not(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(CheckpointError, match="has 5 bytes, more than the 4"):
        read_bounded(tmp_path / "a", 4)


def test_line_ends_stay(tmp_path):
    (tmp_path / "a").write_bytes(b"a\r\nb\rc")
    assert read_text(tmp_path / "a", 10) == "a\r\nb\rc"


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_the_machine_refuses_is_the_machines_fault(tmp_path, monkeypatch, fault):
    def refuse(*_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("edgekiln.files.os.open", refuse)
    with pytest.raises(MachineError, match="cannot be read"):
        open_regular(tmp_path / "a")


def test_no_descriptor_stays_open(tmp_path):
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(CheckpointError, match="it is a directory"):
            open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1,2,3,4]", "more than 3 values"),
        (b"\xef\xbb\xbf1", "BOM"),
        (b"\xff", "utf-8"),
        (b"1" * 5000, "digits"),
        (b"{", "Expecting"),
    ],
)
def test_json_that_is_none_or_too_much_is_a_value_error(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_json(raw, 3)


def test_nesting_has_a_bound():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000, 1_000_000)


def test_a_path_for_runtimes_is_utf8(tmp_path):
    require_utf8(tmp_path / "ü 模型", "rename it")
    with pytest.raises(UsageError, match=r"\\xff is not UTF-8.*; rename it"):
        require_utf8(tmp_path / "\udcff", "rename it")
