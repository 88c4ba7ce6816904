"""Standard output and error as they come: closed, full, of a narrow encoding, or with nobody reading.

Standard output holds results: what cannot be written there is an error. Standard error holds progress: what cannot be
written there is dropped, since a build must not fail for want of a spectator.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Final

from edgekiln.errors import MachineError

#: What tables and sentences use beyond ASCII, for consoles that have no more.
_ASCII: Final = str.maketrans(
    {"–": "-", "—": "-", "×": "x", "…": "...", "‖": "||", "±": "+-", "≤": "<=", "≥": ">=", "─": "-", "│": "|"}
)
_HANDLER: Final = "edgekiln.narrow"


def _narrow(error: UnicodeError) -> tuple[str, int]:
    r"""Replace what an encoding has not: punctuation by its like, the rest by `\uXXXX`, so that JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    pieces = []
    for character in error.object[error.start : error.end]:
        plain = character.translate(_ASCII)
        units = character.encode("utf-16-be", "surrogatepass").hex()
        pieces.append(
            plain if plain != character else "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        )
    return "".join(pieces), error.end


class _Spectator(io.TextIOWrapper):
    """A standard error that drops what cannot be written."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Make the standard streams of this process safe to use.

    - A closed descriptor is opened to nothing: else the next file to be opened, perhaps an artifact, would get its
      number, and what a native library prints would go into it.
    - A pipe that does not block is made to: a reader that is slow would lose what does not fit.
    - Characters that the console's encoding has not are replaced.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            # Windows has it from 3.12 on, for pipes.
            blocking = getattr(os, "get_blocking", None)
            if blocking is not None and not blocking(descriptor) and hasattr(os, "set_blocking"):
                os.set_blocking(descriptor, True)
    codecs.register_error(_HANDLER, _narrow)
    if sys.stdout is None:  # what Python makes of a closed one; most code does not expect that
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_HANDLER)
    stream = sys.stderr
    if stream is sys.__stderr__:  # a program that replaced it has its reasons
        output = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
        encoding = stream.encoding if stream is not None else "utf-8"
        sys.stderr = _Spectator(output, encoding, _HANDLER, line_buffering=True)


def show(text: str) -> None:
    """Print a result; a reader that has gone away changes nothing about the exit code.

    Raises:
        MachineError: Standard output cannot be written, on a full disk for example.
    """
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        raise MachineError(f"standard output cannot be written: {error.strerror}; redirect it elsewhere") from None


def _discard_output() -> None:
    """Point standard output to nothing, so that flushing at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
