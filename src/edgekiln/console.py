"""What a person sees while a build runs: a live line on a terminal, plain timestamped lines elsewhere.

All of it goes to standard error; standard output belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console:
    """Shows the steps of a run. Use as a context manager around the run.

    Args:
        total: Number of steps to come, as far as it is known.
    """

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._live: Progress | None = None
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            self._live = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=RichConsole(stderr=True),
                transient=True,
            )
            self._bar = self._live.add_task("", total=self._total or None)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def expect(self, total: int) -> None:
        """Say how many steps there will be."""
        self._total = total
        if self._live is not None and self._bar is not None:
            self._live.update(self._bar, total=total)

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            stamp = datetime.now().astimezone().strftime("%H:%M:%S")
            print(f"{stamp} {text}", file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Show `text` in place of what runs now, on a terminal; elsewhere nothing."""
        if self._live is not None and self._bar is not None:
            from rich.markup import escape

            self._live.update(self._bar, description=escape(text))

    @contextmanager
    def step(self, subject: str, action: str) -> Iterator[None]:
        """Show that `action` runs on `subject`, and how long it took."""
        if self._live is not None and self._bar is not None:
            self._live.update(self._bar, description=f"{subject}: {action}")
        begin = time.monotonic()
        try:
            yield
        except BaseException:
            self.say(f"{subject}: {action} failed after {time.monotonic() - begin:.1f} s")
            raise
        self.say(f"{subject}: {action}, {time.monotonic() - begin:.1f} s")
        if self._live is not None and self._bar is not None:
            self._live.advance(self._bar)
