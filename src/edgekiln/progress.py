"""What of a run is done, what runs and what is left: the figures that `edgekiln.console` shows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekiln.terminal import printable

if TYPE_CHECKING:
    from edgekiln.engine.step import Step


@dataclass(frozen=True)
class Running:
    """What is under way: a step, the steps of a batch, or a piece of a single command.

    Attributes:
        label: What is done on what, printable.
        begin: When it began, on the clock of its `Progress`.
        last_seconds: How long it took the last time.
        share: How much of it is done, 0 to 1; None where it does not tell.
        alone: It measures, so that nothing may disturb it.
    """

    label: str
    begin: float
    last_seconds: float | None = None
    share: float | None = None
    alone: bool = False

    def note(self, now: float) -> str:
        """Return how far it is."""
        elapsed = span(now - self.begin)
        if self.share is not None:
            return f"{self.share:.0%} {elapsed}"
        return elapsed if self.last_seconds is None else f"{elapsed}, last time {span(self.last_seconds)}"

    def left(self, now: float) -> float | None:
        """Return the seconds that it still takes, going by its share or else by the last time."""
        elapsed = now - self.begin
        if self.share:
            return max(0.0, elapsed * (1 / self.share - 1))
        return None if self.last_seconds is None else max(0.0, self.last_seconds - elapsed)


class Progress:
    """Counts the steps of a run. Any thread may ask.

    Args:
        total: Pieces to come by `enter`, as far as it is known.
        clock: Returns seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs = 1
        self._last_seconds: Callable[[Step], float | None] = lambda _: None
        self._lock = threading.Lock()
        self._pieces, self._pieces_done = total, 0
        self._known: set[Step] = set()
        self._ended: set[Step] = set()
        self._left: dict[Step, float | None] = {}
        self._running: dict[Hashable, Running] = {}

    # --- what happens ---------------------------------------------------------------------------------------------

    def survey(self, goals: Collection[Step], jobs: int, last_seconds: Callable[[Step], float | None]) -> None:
        """Count these steps and all that they depend on, whether they have to be made or not.

        Args:
            goals: The steps.
            jobs: How many run side by side.
            last_seconds: Returns how long a step took the last time.
        """
        self._jobs, self._last_seconds = max(1, jobs), last_seconds
        waiting = list(goals)
        while waiting:
            if (step := waiting.pop()) not in self._known:
                self._known.add(step)
                waiting += step.inputs.values()

    def expect(self, steps: Collection[Step]) -> int:
        """Take these as what is still to be made; return how many are found not to be, though they were expected."""
        known = {step: self._left[step] if step in self._left else self._last_seconds(step) for step in steps}
        with self._lock:
            dropped = [step for step in self._left if step not in known]
            self._known.update(known)
            self._ended.difference_update(known)
            self._left = known
            for step in dropped:
                self._running.pop(_key(step), None)
        return len(dropped)

    def expect_pieces(self, total: int) -> None:
        """Take this as the number of pieces by `enter`."""
        self._pieces = total

    def begin(self, step: Step, last_seconds: float | None) -> None:
        """Count a step as running; the steps of a batch are one."""
        key = _key(step)
        with self._lock:
            if (running := self._running.get(key)) is not None:
                self._running[key] = replace(running, last_seconds=_longer(running.last_seconds, last_seconds))
                return
            name = step.name if step.batch is None else step.batch.name
            label = printable(f"{name}: {step.action}")
            self._running[key] = Running(label, self._clock(), last_seconds, alone=step.needs.alone)

    def advance(self, step: Step, share: float) -> None:
        """Note how much of a step is done."""
        with self._lock:
            if (running := self._running.get(_key(step))) is not None and math.isfinite(share):
                self._running[_key(step)] = replace(running, share=min(1.0, max(0.0, share)))

    def end(self, step: Step) -> None:
        """Count a step as done."""
        with self._lock:
            self._running.pop(_key(step), None)
            self._left.pop(step, None)
            self._known.add(step)
            self._ended.add(step)

    def enter(self, label: str) -> Hashable:
        """Count a piece as running and return what `leave` wants."""
        key = object()
        with self._lock:
            self._running[key] = Running(printable(label), self._clock())
        return key

    def leave(self, key: Hashable) -> None:
        """Count a piece as done."""
        with self._lock:
            self._running.pop(key, None)
            self._pieces_done += 1

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """All steps."""
        return len(self._known) + max(self._pieces, self._pieces_done)

    @property
    def done(self) -> int:
        """Steps that need not be made any more, by whatever end."""
        return self.total - self._waiting

    @property
    def untouched(self) -> int:
        """Steps that are done without having been made here."""
        return len(self._known) - len(self._left) - len(self._ended)

    @property
    def _waiting(self) -> int:
        return len(self._left) + max(0, self._pieces - self._pieces_done)

    def running(self) -> list[Running]:
        """Return what is under way, what began first at the head."""
        with self._lock:
            return list(self._running.values())

    def summary(self, separator: str) -> str:
        """Return what is done, what runs and how long the rest takes, in one line."""
        running = len(self.running())
        parts = [f"{self.done} of {self.total} steps"] if self.total > 1 else []
        parts += [f"{running} running"] if running else []
        return separator.join([*parts, *filter(None, [self.estimate()])])

    def estimate(self) -> str | None:
        """Return about how long the rest takes; None where nothing is known.

        What measures does so alone; the rest is shared by all jobs, but lasts as long as its longest step.
        """
        now = self._clock()
        with self._lock:
            running = dict(self._running)
            waiting = {step: known for step, known in self._left.items() if _key(step) not in running}
        spans = [(task.left(now), task.alone) for task in running.values()]
        # The steps of a batch took as long as their batch did, each of them.
        batches: dict[Hashable, tuple[float | None, bool]] = {}
        for step, known in waiting.items():
            before, _ = batches.get(_key(step), (known, False))
            batches[_key(step)] = _longer(before, known), step.needs.alone
        spans += batches.values()
        alone = sum(seconds for seconds, alone in spans if alone and seconds is not None)
        beside = [seconds for seconds, alone in spans if not alone and seconds is not None]
        total = alone + max(sum(beside) / self._jobs, max(beside, default=0.0))
        if total < 1:
            return None
        return f"{'at least' if any(seconds is None for seconds, _ in spans) else 'about'} {_rough(total)} left"


def _key(step: Step) -> Hashable:
    return step if step.batch is None else step.batch


def _longer(one: float | None, other: float | None) -> float | None:
    return max((seconds for seconds in (one, other) if seconds is not None), default=None)


def span(seconds: float) -> str:
    """Return a time for people: `42 s`, `3 min 5 s`, `2 h 10 min`; a clock that ran backwards counts as 0."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _rough(seconds: float) -> str:
    """Return an estimate without figures that it does not have."""
    if seconds < 90:
        return f"{5 * math.ceil(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
