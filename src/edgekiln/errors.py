"""The errors that Edgekiln reports, and the exit codes that scripts rely on.

Every error that a user can cause or meet derives from `EdgekilnError`; its message is one sentence that names
the value, the choices and the fix. `edgekiln.__main__` is the one place that turns them into text and a code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar, Final

from edgekiln import terminal


class ExitCode(IntEnum):
    """What a finished command tells the shell."""

    PASSED = 0
    GATE_FAILED = 1
    USAGE = 2
    UNSUPPORTED = 3
    STEP_FAILED = 4
    ENVIRONMENT = 5
    BUG = 70
    INTERRUPTED = 130


#: From the worst on: a run with several outcomes ends with the first of these that occurred.
SEVERITY = (
    ExitCode.INTERRUPTED,
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.STEP_FAILED,
    ExitCode.ENVIRONMENT,
    ExitCode.UNSUPPORTED,
    ExitCode.GATE_FAILED,
    ExitCode.PASSED,
)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """Return the gravest of `codes`; an empty iterable counts as passed."""
    return min(codes, key=SEVERITY.index, default=ExitCode.PASSED)


#: A message may quote names and values of a hostile file.
_MAX_MESSAGE: Final = 4000


def printable(text: str) -> str:
    """Return `text` as a line that any terminal, log and UTF-8 file can take.

    What `edgekiln.terminal.printable` escapes is escaped, line ends too; a very long text loses its middle.
    """
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE // 2]} … {text[-_MAX_MESSAGE // 2 :]}"
    return terminal.printable(text)


class EdgekilnError(Exception):
    """Base of all reported errors. Raise a subclass: the class decides the exit code.

    Args:
        message: One sentence; what is not printable in it is escaped, since it may quote hostile input.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.STEP_FAILED
    #: A message may have several lines; elsewhere a line end can only come from what is quoted.
    _several_lines: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        lines = message.split("\n") if self._several_lines else [message]
        super().__init__("\n".join(map(printable, lines)))


class UsageError(EdgekilnError):
    """A command line, a pipeline or a targets file that says something impossible."""

    exit_code = ExitCode.USAGE
    _several_lines = True  # all mistakes of one file


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged or contradicts itself: input that a user can mend, so a usage error."""

    _several_lines = False


class UnsupportedError(EdgekilnError):
    """A sound request that this model, scheme, container or target cannot fulfil."""

    exit_code = ExitCode.UNSUPPORTED


class StepError(EdgekilnError):
    """A step of a build went wrong."""

    exit_code = ExitCode.STEP_FAILED


class ChildError(StepError):
    """A process of a step crashed, hung or grew beyond its limits; what it had finished can be gone on with."""


class InterruptError(EdgekilnError):
    """The run was told to end while a step was under way."""

    exit_code = ExitCode.INTERRUPTED


class ArtifactError(StepError):
    """An artifact that cannot be read or run."""


class MachineError(EdgekilnError):
    """Something is missing on this machine: a runtime, disk space, the network."""

    exit_code = ExitCode.ENVIRONMENT


class BugError(EdgekilnError):
    """A mistake in Edgekiln that stopped one build of several; the others went on."""

    exit_code = ExitCode.BUG


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return the end of an error sentence about a wrong name: the nearest choice, then all of them.

    Args:
        value: What was given.
        choices: What would have been accepted.
    """
    known = sorted(choices)
    close = difflib.get_close_matches(value, known, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}choose one of {', '.join(known)}"
