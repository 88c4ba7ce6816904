"""The entry point: the one place that turns errors into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from types import FrameType
from typing import Final

from edgekiln.errors import EdgekilnError, ExitCode, MachineError, printable

#: Faults of the machine wherever they occur; other OSErrors that nobody expected are bugs.
_MACHINE_FAULTS: Final = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    }
)
#: A path, in quotes or not.
_PATH: Final = re.compile(
    r"'(?:/|~|\.{1,2}/|[A-Za-z]:[\\/])[^']*'|(?<![\w<])(?:/|~/|\.{1,2}/|[A-Za-z]:[\\/])[^\s'\",;:)]+"
)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that children are ended and nothing half-written stays."""
    raise KeyboardInterrupt


def _say(text: str) -> None:
    """Print to standard error without secrets; nothing of it can be an argument of a reader that has gone away."""
    from edgekiln.redact import redact

    print(redact(text), file=sys.stderr)


def _without_paths(text: str, arguments: list[str]) -> str:
    """Return a message of Python's or of a library's without what the user typed and without paths."""
    private = {argument.partition("=")[2] if argument.startswith("-") else argument for argument in arguments}
    private.add(os.path.expanduser("~"))  # noqa: PTH111 - texts, which are replaced
    with contextlib.suppress(OSError):  # the working directory may have been deleted
        private |= {os.path.abspath(value) for value in private if value}  # noqa: PTH100
        private.add(os.getcwd())  # noqa: PTH109
    for value in sorted(private, key=len, reverse=True):
        if len(value) > 3:
            text = text.replace(value, "<…>")
    return _PATH.sub("<path>", text)


def _bug_text(error: Exception, arguments: list[str]) -> str:
    """Return what to file; nothing of the environment, no path and no argument is in it."""
    import platform

    from edgekiln.host import tool_versions

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "edgekiln" in frame.filename] or frames
    places = [
        f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}"  # noqa: PTH119 - no path of the user
        for frame in (frames[-1], ours[-1])
    ]
    options = sorted({argument.partition("=")[0] for argument in arguments if argument.startswith("-")})
    command = [argument for argument in arguments if argument.isascii() and argument.isalpha()][:1]
    versions = tool_versions()
    return (
        f"edgekiln: a bug in Edgekiln: {type(error).__name__}: {printable(_without_paths(str(error), arguments))}\n"
        f"  at {', called by '.join(dict.fromkeys(places))}\n"
        f"  command edgekiln {' '.join(command + options)}\n"
        f"  edgekiln {versions['edgekiln']}, Python {versions['python']}, {sys.platform} {platform.machine()}\n"
        "Please file these lines; --debug (before the command) shows the traceback."
    )


def _report_bug(error: Exception, arguments: list[str]) -> ExitCode:
    """Say what to file, and return the exit code: whatever goes wrong meanwhile, it is that of a bug."""
    try:
        text = _bug_text(error, arguments)
    except (Exception, KeyboardInterrupt) as another:  # noqa: BLE001 - an exit code of Python's would be a failed gate
        text = f"edgekiln: a bug in Edgekiln: {type(error).__name__}; {type(another).__name__} while describing it"
    with contextlib.suppress(Exception, KeyboardInterrupt):
        _say(text)
    return ExitCode.BUG


def _working_directory_is_gone() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - whether it raises
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _as_reported(error: Exception) -> EdgekilnError | None:
    """Return the sentence for a fault of the machine that no step expected, or None for a bug."""
    if isinstance(error, EdgekilnError):
        return error
    if isinstance(error, FileNotFoundError) and _working_directory_is_gone():
        return MachineError("the working directory has been deleted; change into one that exists, and try again")
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return MachineError(f"{place}{error.strerror}; free space, or check the permissions and limits of this machine")
    if isinstance(error, MemoryError):
        return MachineError("the memory of this machine is used up; close other programs or use a smaller checkpoint")
    return None


def _run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; errors pass."""
    from edgekiln.cli import cli

    code = cli.main(args=arguments, prog_name="edgekiln", standalone_mode=False)
    return code if isinstance(code, int) else ExitCode.PASSED


def _guarded(arguments: list[str]) -> int:
    """Run the command line and turn every error into a sentence and an exit code."""
    import click

    debug = "--debug" in arguments or os.environ.get("EDGEKILN_DEBUG", "") not in {"", "0"}
    try:
        return _run(arguments)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("edgekiln: interrupted")
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "edgekiln"
        _say(f"edgekiln: {printable(error.format_message())} See {command} --help.")
        return ExitCode.USAGE
    except Exception as error:  # noqa: BLE001 - the last resort: Python's own exit code 1 would read as a failed gate
        if debug:
            _say(traceback.format_exc().rstrip("\n"))
        if (reported := _as_reported(error)) is None:
            return _report_bug(error, arguments)
        _say(f"edgekiln: {reported}")
        return reported.exit_code


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that scripts rely on."""
    from edgekiln.standard_streams import prepare_streams

    prepare_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_guarded(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
