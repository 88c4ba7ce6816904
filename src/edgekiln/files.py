"""Reading files that someone else wrote: never more than a bound, never from a pipe that may not end.

Python's JSON parser needs up to fifty times the bytes of a file made to exhaust it (`[],[],[]…`), so the number of
values is bounded before it is called.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgekiln.errors import CheckpointError, EdgekilnError, MachineError, UsageError
from edgekiln.memory import uncollected

#: What the machine refuses, rather than what the file is.
_MACHINE_FAULTS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def read_fault(path: Path, error: OSError) -> EdgekilnError:
    """Return what to raise for a file that cannot be opened or read."""
    if error.errno in _MACHINE_FAULTS:
        return MachineError(f"{path} cannot be read: {error.strerror}; check its permissions and the disk")
    return CheckpointError(f"{path} cannot be read: {error.strerror}")


def require_utf8(path: Path, fix: str) -> None:
    """Refuse a path that no native runtime can open, since they take names as UTF-8.

    Args:
        path: A file or directory, absolute or not.
        fix: The end of the sentence: what to do.

    Raises:
        UsageError: It, or the directory that it is relative to, is not UTF-8.
    """
    try:
        os.path.abspath(path).encode("utf-8")  # noqa: PTH100 - a text that is only looked at
    except UnicodeEncodeError:
        raise UsageError(f"the path of {path} is not UTF-8, and no runtime opens such a path; {fix}") from None


def open_regular(path: Path) -> tuple[int, int]:
    """Open a file for reading and return (descriptor, size in bytes).

    Raises:
        CheckpointError: It is missing, or no regular file: a named pipe would block, a device might never end.
        MachineError: The system does not let us read it.
    """
    # A named pipe opens at once with O_NONBLOCK, where the system has that flag.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a checkpoint needs it") from None
    except OSError as error:
        raise read_fault(path, error) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
        raise CheckpointError(f"{path} cannot be read: it {kind}")
    return descriptor, status.st_size


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        CheckpointError: It is missing, no regular file, or larger.
        MachineError: The system does not let us read it.
    """
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > max_bytes:
            raise CheckpointError(f"{path} has {size} bytes, more than the {max_bytes} that any such file needs")
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise read_fault(path, error) from None


def read_text(path: Path, max_bytes: int) -> str:
    """Return the content of a UTF-8 file with its line ends as they are.

    Raises:
        CheckpointError: As `read_bounded`, or it is not UTF-8.
        MachineError: The system does not let us read it.
    """
    try:
        return read_bounded(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from None


def parse_json(
    raw: bytes, max_values: int, make_object: Callable[[list[tuple[str, object]]], object] | None = None
) -> object:
    """Return what a JSON text says.

    Args:
        raw: UTF-8 without a byte order mark, as every reader of a checkpoint expects it.
        max_values: Bound on the values in it, counted by commas, colons and opening brackets; those within texts
            count too, so give twice what a real file has.
        make_object: Turns the keys and values of an object, in order, into a value; it may raise a ValueError.

    Raises:
        ValueError: It is not UTF-8, no JSON, nested too deeply, or has more values.
    """
    if sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) > max_values:
        raise ValueError(f"it has more than {max_values} values")
    try:
        with uncollected():
            return json.loads(raw.decode("utf-8"), object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
