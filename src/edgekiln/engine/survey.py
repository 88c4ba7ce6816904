"""What of some steps is there, and what is missing: found out from the end, making nothing.

A step is missing when something that is wanted needs its files and the store has none; what nobody needs any more is
neither missing nor looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgekiln.engine.record import Ingredients, Record
from edgekiln.engine.step import Step
from edgekiln.engine.store import Store
from edgekiln.errors import EdgekilnError

#: Endings after which there is no result.
BAD: Final = frozenset({"failed", "stopped", "skipped"})
#: What a run would find of a step.
Forecast: TypeAlias = Literal["hit", "miss", "unknown"]
Found: TypeAlias = Mapping[Step, Forecast]
Ending: TypeAlias = Literal["hit", "made", "failed", "stopped", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        ending: `hit` was there already; `stopped` could not be made, since something else
            failed; `skipped` was not to be made.
        path: Its files; None where it has none.
        seconds: How long it ran, now or when it was made.
        error: Why it failed or was stopped.
        reason: Why it was skipped.
    """

    ending: Ending
    path: Path | None = None
    record: Record | None = None
    seconds: float | None = None
    error: EdgekilnError | None = None
    reason: str | None = None


@dataclass
class State:
    """What is known about a step in this run.

    Attributes:
        looked: Whether `record` says what the store has.
        wanted: It has to be made.
        undecided: It has to be made unless what its inputs turn out to hold was made from before.
        made: It was made in this run.
        retry_at: Another engine makes it; until then it is left alone.
    """

    looked: bool = False
    record: Record | None = None
    path: Path | None = None
    wanted: bool = False
    undecided: bool = False
    running: bool = False
    made: bool = False
    retry_at: float = 0.0
    outcome: Outcome | None = None


class Survey:
    """Looks at steps and remembers what it saw.

    Args:
        store: Where results are kept.
        fresh: Kinds of steps that count as missing, whatever the store has.

    Attributes:
        states: What is known of every step that was looked at.
    """

    def __init__(self, store: Store, fresh: Collection[str] = ()) -> None:
        self._store, self._fresh = store, frozenset(fresh)
        self.states: dict[Step, State] = {}

    def forecast(self, goals: Sequence[Step]) -> Found:
        """Return what a run would find of each step: its result, none, or unknown, since an input is missing."""
        self.want_all(goals)
        found: dict[Step, Forecast] = {}
        for step, state in self.states.items():
            if state.looked:
                found[step] = "hit" if state.record is not None and not state.wanted else "miss"
            else:
                found[step] = "unknown"
        return found

    def record(self, step: Step) -> Record | None:
        """Return the record of a step, if it can be known without making another."""
        state = self.state(step)
        if state.looked:
            return state.record
        if (ingredients := self.ingredients(step)) is None:
            return None
        state.looked = True
        if step.outside is not None:
            (state.record,) = (self.record(other) for other in step.inputs.values())
        elif step.kind not in self._fresh:
            state.record = self._store.find(ingredients.key)
        return state.record

    def ingredients(self, step: Step) -> Ingredients | None:
        """Return what decides a step's result; None where that is not known yet, since an input is missing."""
        digests: dict[str, str] = {}
        for role, other in step.inputs.items():
            if (found := self.record(other)) is not None:
                digests[role] = found.digest
            elif not self.does_without(step, role):
                return None
        return step.ingredients(digests)

    def does_without(self, step: Step, role: str) -> bool:
        """Return whether a step goes on without an input that failed."""
        ended = self.state(step.inputs[role]).outcome
        return role in step.optional and ended is not None and ended.ending in BAD

    def state(self, step: Step) -> State:
        """Return what is known of a step."""
        if (state := self.states.get(step)) is None:
            state = self.states[step] = State()
        return state

    def path(self, step: Step) -> Path | None:
        """Return where the files of a step lie, checked; None when they must be made."""
        state = self.state(step)
        if state.path is None and (record := self.record(step)) is not None:
            if step.outside is None:
                state.path = self._store.open(record)
            elif not state.made and step.kind not in self._fresh:
                state.path = step.outside(dict.fromkeys(step.inputs, record))
        return state.path

    def want_all(self, goals: Iterable[Step]) -> None:
        """Mark what has to be made so that the files of all goals are there."""
        for state in self.states.values():
            state.wanted = state.undecided = False
        for goal in goals:
            self._want(goal, files=True)

    def _want(self, step: Step, *, files: bool) -> None:
        """Mark what has to be made so that the record of a step, or its files, are there."""
        state = self.state(step)
        if state.outcome is not None or state.running or state.wanted or state.undecided:
            return
        if self.record(step) is None and not state.looked:
            state.undecided = True
            for other in step.inputs.values():
                self._want(other, files=False)
        elif state.record is None or (files and self.path(step) is None):
            state.wanted = True
            for other in step.inputs.values():
                self._want(other, files=True)
