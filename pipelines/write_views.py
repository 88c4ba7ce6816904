"""Writing a report in all its views."""

from __future__ import annotations

import os
from pathlib import Path

from edgekiln.artifact import write_atomically
from edgekiln.errors import MachineError
from edgekiln.validators.report import Report
from edgekiln.validators.views import VIEWS


def require_writable(directory: Path) -> None:
    """Make the directory of a report before anything is measured, so that no result is lost for want of it.

    Raises:
        MachineError: It cannot be made, or nothing can be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the report folder {directory} cannot be made: {error.strerror}; name another") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise MachineError(f"the report folder {directory} cannot be written to; name another")


def write_views(report: Report, directory: Path) -> None:
    """Write every view of a report to a directory.

    Raises:
        MachineError: It cannot be written there.
    """
    for name, render in VIEWS.items():
        write_atomically(directory / name, render(report))
