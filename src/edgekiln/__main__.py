"""The entry point: the one place that turns errors into a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

from edgekiln.errors import EdgekilnError, ExitCode


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that children are ended and nothing half-written stays."""
    raise KeyboardInterrupt


def _report_bug(error: Exception) -> None:
    """Say what to file; nothing of the environment is printed."""
    from edgekiln.host import tool_versions

    frame = traceback.extract_tb(error.__traceback__)[-1]
    versions = tool_versions()
    print(
        f"edgekiln: a bug in Edgekiln: {type(error).__name__}: {error}\n"
        f"  at {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}\n"  # noqa: PTH119 - no path of the user
        f"  edgekiln {versions['edgekiln']}, Python {versions['python']}, {sys.platform}\n"
        "Please file this with the command that you ran; --debug (before the command) shows the traceback.",
        file=sys.stderr,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that scripts rely on."""
    import click

    from edgekiln.cli import cli

    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or os.environ.get("EDGEKILN_DEBUG", "") not in {"", "0"}
    try:
        code = cli.main(args=arguments, prog_name="edgekiln", standalone_mode=False)
    except click.exceptions.Abort:
        print("edgekiln: interrupted", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    except KeyboardInterrupt:
        print("edgekiln: interrupted", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except EdgekilnError as error:
        if debug:
            traceback.print_exc()
        print(f"edgekiln: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort: Python's own exit code 1 would read as a failed gate
        if debug:
            traceback.print_exc()
        _report_bug(error)
        sys.exit(ExitCode.BUG)
    sys.exit(code if isinstance(code, int) else ExitCode.PASSED)


if __name__ == "__main__":
    main()
