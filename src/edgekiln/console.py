"""What a person sees while something runs: live lines on a terminal, plain timestamped lines elsewhere.

All of it goes to standard error; standard output belongs to results.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from edgekiln.progress import Progress, Running, span
from edgekiln.redact import redact
from edgekiln.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, RenderResult

    from edgekiln.engine.step import Step
    from edgekiln.engine.survey import Outcome

#: Between two pictures on a terminal, in seconds; a picture costs about 1 ms.
_REFRESH_SECONDS: Final = 0.5
#: The same while a measurement runs alone on the machine.
_QUIET_SECONDS: Final = 2.0
#: Elsewhere: silence for longer makes people, and some CI systems, think that a job hangs.
_SILENT_SECONDS: Final = 60.0
_BAR_WIDTH: Final = 12
#: A label is not shortened to less for the sake of what stands beside it.
_LABEL_WIDTH: Final = 16
_NAMES: Final = 4


def _clock() -> float:
    return time.monotonic()


def _stamp() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


class Console:
    """Shows what runs; the `Listener` of the engine and of the Hub. Use as a context manager around the run.

    Args:
        total: Number of pieces by `step`, as far as it is known.
    """

    def __init__(self, total: int = 0) -> None:
        self._progress = Progress(total, _clock)
        self._log: Callable[[Step], Path] | None = None
        self._output: _Output = _Lines(self._progress)
        self._surveyed = False
        self._stopped: list[str] = []
        self._done = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        screen = _screen(self._progress)
        if screen is not None:
            self._output = screen
            screen.start()
        self._thread = threading.Thread(target=self._beat, name="console", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_QUIET_SECONDS)
        self._say_stopped()
        self._output.stop()

    def _beat(self) -> None:
        """Show again and again what runs, in a thread of its own."""
        while not self._done.is_set():
            self._wake.wait(self._output.pause())
            self._wake.clear()
            if not self._done.is_set():
                self._output.show()

    # --- single commands, and the Hub -------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._output.status = ""
        self._output.say(redact(printable(text, lines=True)))

    def status(self, text: str) -> None:
        """Show `text` beneath what runs until the next line that stays, on a terminal; elsewhere nothing."""
        self._output.status = printable(text)

    @contextmanager
    def step(self, subject: str, action: str) -> Iterator[None]:
        """Show that `action` runs on `subject`, and how long it took."""
        begin = _clock()
        key = self._progress.enter(f"{subject}: {action}")
        self._wake.set()
        failed = True
        try:
            yield
            failed = False
        finally:
            self._progress.leave(key)
            took = _took(_clock() - begin)
            self.say(f"{subject}: {action} failed after {took}" if failed else f"{subject}: {action}, {took}")

    # --- the engine -------------------------------------------------------------------------------------------------

    def survey(
        self,
        goals: Collection[Step],
        *,
        jobs: int,
        last_seconds: Callable[[Step], float | None],
        log: Callable[[Step], Path],
    ) -> None:
        """Learn what a run is about, before the engine runs.

        Args:
            goals: What is to be made, or was made before; all that they depend on counts, too.
            jobs: How many steps run side by side.
            last_seconds: Returns how long a step took the last time.
            log: Returns the log file of a step.
        """
        self._surveyed, self._log = True, log
        self._progress.survey(goals, jobs, last_seconds)

    def expect(self, steps: Collection[Step] | int) -> None:
        """Take these steps as still to be made, or expect so many pieces by `step`."""
        if isinstance(steps, int):
            self._progress.expect_pieces(steps)
            return
        dropped = self._progress.expect(steps)
        self._say_stopped()
        if self._surveyed:
            self._surveyed = False
            if untouched := self._progress.untouched:
                self.say(f"{untouched} of {self._progress.total} steps were made before")
        elif dropped:
            self.say(f"{_plural(dropped)} turned out to be there already")

    def begins(self, step: Step, last_seconds: float | None) -> None:
        """A step begins; it took `last_seconds` the last time."""
        self._progress.begin(step, last_seconds)
        self._wake.set()

    def advances(self, step: Step, share: float) -> None:
        """A step has done this share of its work."""
        self._progress.advance(step, share)

    def ends(self, step: Step, outcome: Outcome) -> None:
        """A step has ended."""
        self._progress.end(step)
        if outcome.ending == "stopped":
            self._stopped.append(step.name)
        else:
            self._say_stopped()
            self.say(f"[{self._progress.done}/{self._progress.total}] {self._ending(step, outcome)}")
        self._wake.set()

    def _ending(self, step: Step, outcome: Outcome) -> str:
        took = "" if outcome.seconds is None else _took(outcome.seconds)
        match outcome.ending:
            case "failed":
                after = f" after {took}" if took else ""
                return f"{step.name}: {step.action} failed{after}: {outcome.error}{self._log_of(step, outcome)}"
            case "skipped":
                return f"{step.name}: skipped: {outcome.reason}"
            case "hit":
                return f"{step.name}: made by another edgekiln"
            case _:
                return f"{step.name}: {step.action}, {took}" if took else f"{step.name}: {step.action}"

    def _log_of(self, step: Step, outcome: Outcome) -> str:
        """Return where a step's log lies, if there is one and its error does not say so."""
        log = None if self._log is None else self._log(step)
        if log is None or printable(str(log)) in str(outcome.error) or not log.exists():
            return ""
        return f"; its log is {log}"

    def _say_stopped(self) -> None:
        """Name the steps that are not made for want of another, a few of many."""
        names, self._stopped = self._stopped, []
        if names:
            more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
            self.say(f"not made therefore: {', '.join(names[:_NAMES])}{more}")


class _Output(Protocol):
    """Where lines go."""

    status: str

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def show(self) -> None:
        """Show what runs, if it is time."""

    def pause(self) -> float:
        """Return after how many seconds it may be time."""

    def stop(self) -> None:
        """Leave nothing but the lines that stay."""


class _Lines:
    """Timestamped lines; when nothing happens for a while, one says what runs."""

    def __init__(self, progress: Progress) -> None:
        self.status = ""
        self._progress = progress
        self._spoke = _clock()

    def say(self, text: str) -> None:
        self._spoke = _clock()
        sys.stderr.write(f"{_stamp()} {text}\n")  # at once: other threads write, too
        sys.stderr.flush()

    def show(self) -> None:
        running = self._progress.running()
        if _clock() - self._spoke < _SILENT_SECONDS or not running:
            return
        tasks = [f"{task.label} ({task.note(_clock())})" for task in running]
        more = [f"{len(tasks) - _NAMES} more"] if len(tasks) > _NAMES else []
        count = f"[{self._progress.done}/{self._progress.total}] " if self._progress.total > 1 else ""
        left = "" if (estimate := self._progress.estimate()) is None else f"; {estimate}"
        self.say(f"{count}still running: {', '.join(tasks[:_NAMES] + more)}{left}")

    def pause(self) -> float:
        return max(_REFRESH_SECONDS, self._spoke + _SILENT_SECONDS - _clock())

    def stop(self) -> None:
        """Nothing to leave."""


def _screen(progress: Progress) -> _Screen | None:
    """Return a screen if standard error is a terminal that can move its cursor."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "").lower() in {"dumb", "unknown"}:
        return None
    from rich.console import Console as RichConsole

    lock = threading.RLock()

    class LockedConsole(RichConsole):
        """Rich decides what to erase before it writes; a picture of another thread in between would lose a line."""

        def print(self, *objects: Any, **options: Any) -> None:
            with lock:
                super().print(*objects, **options)

    styled = not os.environ.get("NO_COLOR")
    console = LockedConsole(stderr=True, no_color=not styled, highlight=False, markup=False, emoji=False)
    return _Screen(progress, console, lock, styled=styled) if console.is_interactive else None


class _Screen:
    """Lines that stay, and below them one for each task that runs, painted anew now and then."""

    def __init__(self, progress: Progress, console: RichConsole, lock: threading.RLock, *, styled: bool) -> None:
        from rich.live import Live

        self.status = ""
        self._progress = progress
        self._lock = lock  # taken before Rich's own, always
        self._dim = "dim" if styled else ""
        self._full, self._empty, self._cut, self._dot = _marks(sys.stderr.encoding)
        self._live = Live(get_renderable=lambda: self, console=console, auto_refresh=False, transient=True,
                          redirect_stdout=False)  # fmt: skip

    def start(self) -> None:
        with self._lock:
            self._live.start()

    def say(self, text: str) -> None:
        # The terminal wraps long lines itself, so that a path can be copied whole.
        self._live.console.print(text, soft_wrap=True)

    def show(self) -> None:
        with self._lock:
            self._live.refresh()

    def pause(self) -> float:
        return _QUIET_SECONDS if any(task.alone for task in self._progress.running()) else _REFRESH_SECONDS

    def stop(self) -> None:
        with self._lock:
            self._live.stop()

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        width = options.max_width - 1  # in the last column some terminals wrap already
        running = self._progress.running()
        rows = max(1, console.height - 3)
        lines = self._table(running[:rows], width)
        lines += [f"and {len(running) - rows} more"] if len(running) > rows else []
        lines += filter(None, [self.status])
        for line in lines:
            yield Text(self._fitted(line, width), no_wrap=True, overflow="crop")
        if summary := self._progress.summary(f" {self._dot} "):
            yield Text(self._fitted(summary, width), style=self._dim, no_wrap=True, overflow="crop")

    def _table(self, tasks: Sequence[Running], width: int) -> list[str]:
        """Return what runs at the left and how far it is at the right, as far as there is room."""
        from rich.cells import cell_len, set_cell_size

        now = _clock()
        notes = [task.note(now) for task in tasks]
        longest = max((cell_len(task.label) for task in tasks), default=0)
        for bars in (True, False):
            ends = [f"{self._bar(task)}{note}" if bars else note for task, note in zip(tasks, notes, strict=True)]
            column = min(longest, width - 2 - max(map(len, ends), default=0))
            if column >= min(_LABEL_WIDTH, longest):
                labels = [self._fitted(task.label, column) for task in tasks]
                return [f"{set_cell_size(label, column)}  {end}" for label, end in zip(labels, ends, strict=True)]
        return [task.label for task in tasks]

    def _bar(self, task: Running) -> str:
        if task.share is None:
            return ""
        full = round(task.share * _BAR_WIDTH)
        return f"{self._full * full}{self._empty * (_BAR_WIDTH - full)} "

    def _fitted(self, text: str, width: int) -> str:
        """Return as much of a text as fits, measured in columns."""
        from rich.cells import cell_len, set_cell_size

        if cell_len(text) <= width:
            return text
        return set_cell_size(text, max(0, width - len(self._cut))) + self._cut


def _marks(encoding: str | None) -> tuple[str, str, str, str]:
    """Return the marks for done, not done, cut off and between, as far as the encoding has them."""
    marks = ("█", "░", "…", "·")
    try:
        "".join(marks).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#", "-", "..", "|"
    return marks


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def _plural(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
