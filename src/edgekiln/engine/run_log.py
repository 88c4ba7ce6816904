"""The run log: one JSON object a line for everything that a run decided and did, appended as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekiln.artifact import write_fault

#: A log beyond this is put aside before a run begins; the one put aside before is gone then.
_MAX_BYTES: Final = 20 << 20


class RunLog:
    """Appends to one file; a line is with the kernel before `write` returns, so a killed run loses none.

    Args:
        path: The file; its folder is made.

    Raises:
        MachineError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._run = secrets.token_hex(4)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > _MAX_BYTES:
                path.replace(path.with_suffix(".1.jsonl"))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise write_fault(path, error) from None

    def write(self, event: str, **values: object) -> None:
        """Append an event with the run that it belongs to and the time."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"run": self._run, "time": moment, "event": event, **values}, ensure_ascii=True)
        with contextlib.suppress(OSError):  # a full disk stops the step that fills it, which says so
            os.write(self._descriptor, line.encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
