"""Running steps: only those that are missing, side by side where memory and processors allow, measurements alone.

One thread decides, each unit of work runs in a thread of its own and does its heavy part in processes. Which steps are
missing is found out from the end: a step is made when something that is wanted needs its files and the store has none;
what nobody needs any more is neither made nor looked at.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from edgekiln.artifact import FileEntry, sha256_file
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.machine_lock import MachineLock
from edgekiln.engine.record import Ingredients, Record
from edgekiln.engine.run_log import RunLog
from edgekiln.engine.step import Batch, Step, Work
from edgekiln.engine.store import Claim, Store
from edgekiln.engine.survey import BAD, Outcome, Survey
from edgekiln.errors import BugError, EdgekilnError, InterruptError, MachineError
from edgekiln.process import Limits, Watch
from edgekiln.redact import redact

#: How often the deciding thread looks whether it can go on, and a waiting step whether its turn has come, in seconds.
_TICK: Final = 0.1
_RETRY_SECONDS: Final = 0.5
#: Within this time all children of an interrupted run have ended.
_END_SECONDS: Final = 1.8


class Listener(Protocol):
    """Is told what happens, in the deciding thread."""

    def expect(self, steps: Collection[Step]) -> None:
        """These steps are still to be made; called again whenever that changes."""
        ...

    def begins(self, step: Step, last_seconds: float | None) -> None:
        """A step begins; it took `last_seconds` the last time."""
        ...

    def advances(self, step: Step, share: float) -> None:
        """A step has done this share of its work."""
        ...

    def ends(self, step: Step, outcome: Outcome) -> None:
        """A step has ended."""
        ...

    def say(self, text: str) -> None:
        """Something is worth a line."""
        ...


@dataclass(frozen=True)
class Options:
    """How steps are run.

    Attributes:
        jobs: Units side by side at most.
        cores: Processors that they may keep busy together.
        memory_bytes: Memory that they may take together.
        child_seconds: Time limit of each process.
        child_memory_bytes: Memory limit of each process.
        fail_fast: The first failure ends the run.
        fresh: Kinds of steps that are made anew, whatever the store has.
    """

    jobs: int
    cores: int
    memory_bytes: int
    child_seconds: float
    child_memory_bytes: int | None = None
    fail_fast: bool = False
    fresh: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Busy:
    """Another engine makes the step."""


@dataclass(frozen=True)
class _Given:
    """What a step is made from, as it was when it began: the deciding thread may forget and look again meanwhile."""

    ingredients: Ingredients
    records: Mapping[str, Record]
    paths: Mapping[str, Path]


@dataclass(eq=False)
class _Unit:
    """What runs as one: a step, or the missing steps of a batch."""

    steps: tuple[Step, ...]
    given: dict[Step, _Given] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    results: dict[Step, Outcome | _Busy] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    begin: float = field(default_factory=time.monotonic)

    @property
    def alone(self) -> bool:
        return any(step.needs.alone for step in self.steps)

    @property
    def memory_bytes(self) -> int:
        return max(step.needs.memory_bytes for step in self.steps)

    @property
    def cores(self) -> int:
        return max(step.needs.cores for step in self.steps)


#: What became of each step of a unit.
_Results: TypeAlias = Mapping[Step, "Outcome | _Busy"]


class Engine:
    """Makes steps. Use one per run.

    Args:
        store: Where results are kept.
        memory: Durations of earlier runs.
        listener: Is told what happens.
        log: Returns the log file of a step.
        run_log: Gets every event.
        lock: Keeps measurements alone on the machine.
        scratch: A directory for results that serve this run only.
        options: How steps are run.

    Attributes:
        survey: What is there and what is missing.
    """

    def __init__(
        self,
        store: Store,
        memory: HashMemory,
        listener: Listener,
        log: Callable[[Step], Path],
        run_log: RunLog,
        lock: MachineLock,
        scratch: Path,
        options: Options,
    ) -> None:
        self._store, self._memory, self._listener, self._log = store, memory, listener, log
        self._run_log, self._lock, self._scratch, self._options = run_log, lock, scratch, options
        self.survey = Survey(store, options.fresh)
        self._running: set[_Unit] = set()
        self._finished: queue.Queue[tuple[_Unit, _Results]] = queue.Queue()
        self._ending = False
        self._first_failure: EdgekilnError | None = None
        self._changed = True
        self._said_waiting = False

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, goals: Sequence[Step]) -> dict[Step, Outcome]:
        """Make all that is missing of the goals and return how each step that was looked at ended.

        Raises:
            KeyboardInterrupt: The user interrupted; all children have ended.
            ValueError: A step depends on another of its batch, so that they cannot be made together.
        """
        _check_batches(goals)
        try:
            self._look_around(goals)
            self._note_what_is_there()
            while True:
                self._look_around(goals)
                while not self._ending and (unit := self._next()) is not None:
                    self._start(unit)
                if not self._running and (self._ending or not (self._changed or self._is_waiting())):
                    break
                if not self._changed:
                    self._wait()
        except BaseException:  # whatever it is, no child may outlive it
            self._end()
            raise
        return self.outcomes()

    def outcomes(self) -> dict[Step, Outcome]:
        """Return how each step that was looked at has ended so far."""
        return {step: self._settled(step) for step in self.survey.states}

    def _settled(self, step: Step) -> Outcome:
        state = self.survey.states[step]
        if state.outcome is not None:
            return state.outcome
        if state.wanted or state.undecided or state.running:
            return Outcome("stopped", error=self._stopped())
        if state.record is None:
            return Outcome("skipped", reason="nothing needs it that could still be made")
        return Outcome("hit", state.path, state.record, state.record.seconds)

    def _stopped(self) -> EdgekilnError:
        """Return why a step was not made that nothing was wrong with."""
        if self._first_failure is None:
            return InterruptError("the run was interrupted before it was made")
        return type(self._first_failure)(f"not made, since another step failed first: {self._first_failure}")

    def _look_around(self, goals: Sequence[Step]) -> None:
        """Find out what is missing now, if anything has changed."""
        if not self._changed:
            return
        while self._changed:  # what is stopped now may have been the only one to need another step
            self._changed = False
            self.survey.want_all(goals)
            seen: set[Step] = set()
            for goal in goals:
                self._stop(goal, seen)
        left = [step for step, state in self.survey.states.items() if state.wanted or state.undecided or state.running]
        self._listener.expect(left)

    def _note_what_is_there(self) -> None:
        """Write down how many steps were made before, and which were not."""
        states = self.survey.states.items()
        missing = [step.name for step, state in states if state.wanted or state.undecided]
        self._run_log.write("survey", there=len(states) - len(missing), missing=missing)

    def _stop(self, step: Step, seen: set[Step]) -> None:
        state = self.survey.state(step)
        if state.outcome is not None or state.running or step in seen:
            return
        seen.add(step)
        if state.looked and state.record is not None and not state.wanted:
            return
        for role, other in step.inputs.items():
            self._stop(other, seen)
            ended = self.survey.state(other).outcome
            if ended is not None and ended.ending in BAD and not self.survey.does_without(step, role):
                self._finish(step, Outcome("stopped", error=ended.error, reason=ended.reason))
                return

    def _is_waiting(self) -> bool:
        return any(state.wanted and state.outcome is None for state in self.survey.states.values())

    def _next(self) -> _Unit | None:
        """Return the next unit that may start now; measurements come last, when all else has been done."""
        if len(self._running) >= self._options.jobs:
            return None
        wanted = [step for step, state in self.survey.states.items() if state.wanted]
        ready = dict.fromkeys(step for step in wanted if self._is_ready(step))
        tried: set[Batch] = set()
        for step in sorted(ready, key=lambda each: each.needs.alone):
            if step.needs.alone and self._running:
                break
            if step.batch is not None:
                if step.batch in tried:
                    continue
                tried.add(step.batch)
            if (unit := self._unit(step, ready)) is not None and self._fits(unit):
                return unit
        if ready and not self._running and not self._said_waiting:
            self._said_waiting = True
            self._listener.say("waiting: another edgekiln measures on this machine, or works while this one has to")
        return None

    def _is_ready(self, step: Step) -> bool:
        state = self.survey.state(step)
        if state.running or state.outcome is not None or state.retry_at > time.monotonic():
            return False
        if any(
            self.survey.path(other) is None and not self.survey.does_without(step, r)
            for r, other in step.inputs.items()
        ):
            return False
        if step.skip is not None and (reason := step.skip(self._inputs(step))) is not None:
            self._finish(step, Outcome("skipped", reason=reason))
            return False
        return True

    def _inputs(self, step: Step) -> dict[str, Path]:
        return {role: path for role, other in step.inputs.items() if (path := self.survey.path(other)) is not None}

    def _unit(self, step: Step, ready: Collection[Step]) -> _Unit | None:
        """Return the unit of a step, or None while another step of its batch is not ready."""
        if step.batch is None:
            return _Unit((step,))
        missing = [
            other
            for other, state in self.survey.states.items()
            if other.batch is step.batch and state.outcome is None and (state.wanted or state.undecided)
        ]
        return _Unit(tuple(missing)) if all(other in ready for other in missing) else None

    def _fits(self, unit: _Unit) -> bool:
        """Return whether a unit may start beside those that run; the first one always may, but for who measures."""
        if unit.alone:
            return not self._running and self._lock.try_alone()
        if any(other.alone for other in self._running):
            return False
        if self._running:
            memory = unit.memory_bytes + sum(other.memory_bytes for other in self._running)
            cores = unit.cores + sum(other.cores for other in self._running)
            if memory > self._options.memory_bytes or cores > self._options.cores:
                return False
        return self._lock.try_share()

    def _start(self, unit: _Unit) -> None:
        limits = [step.needs.seconds for step in unit.steps]
        unit.watch = Watch(None if None in limits else max(seconds for seconds in limits if seconds is not None))
        self._running.add(unit)
        for step in unit.steps:
            state = self.survey.states[step]
            unit.given[step] = self._given(step)
            state.running = True
            if state.retry_at == 0.0:
                self._listener.begins(step, self._memory.seconds(step.name))
                key = unit.given[step].ingredients.key
                self._run_log.write("begin", step=step.name, kind=step.kind, key=key)
        threading.Thread(target=self._thread, args=(unit,), name=unit.steps[0].name, daemon=True).start()

    def _given(self, step: Step) -> _Given:
        records = {role: found for role, other in step.inputs.items() if (found := self.survey.states[other].record)}
        paths = {
            role: path for role, other in step.inputs.items() if (path := self.survey.states[other].path) is not None
        }
        return _Given(step.ingredients({role: found.digest for role, found in records.items()}), records, paths)

    def _wait(self) -> None:
        """Wait until something has ended, or it is time to look around."""
        with contextlib.suppress(queue.Empty):
            while True:
                unit, results = self._finished.get(timeout=_TICK)
                self._take(unit, results)
                if self._finished.empty():
                    return
        for unit in self._running:
            for work in tuple(unit.works):
                share = work.share if work.step.progress is None else work.step.progress(work)
                if share is not None:
                    self._listener.advances(work.step, share)

    def _take(self, unit: _Unit, results: _Results) -> None:
        """Learn what became of a unit."""
        self._running.discard(unit)
        self._changed = True
        if unit.alone:
            self._lock.release_alone()
        else:
            self._lock.release_share()
        for step in unit.steps:
            state, outcome = self.survey.states[step], results[step]
            state.running = False
            if isinstance(outcome, _Busy):
                if state.retry_at == 0.0:
                    self._listener.say(f"{step.name}: another edgekiln makes it; waiting for its result")
                state.retry_at, state.looked = time.monotonic() + _RETRY_SECONDS, False
                continue
            if outcome.record is not None:
                self._learn(step, outcome)
            if isinstance(outcome.error, InterruptError):
                outcome = Outcome("stopped", seconds=outcome.seconds, error=self._stopped())
            self._finish(step, outcome)

    def _learn(self, step: Step, outcome: Outcome) -> None:
        """Take the record of a step that was made; what depends on it may have another key than was thought."""
        state = self.survey.states[step]
        before, state.record, state.path = state.record, outcome.record, outcome.path
        state.looked = state.made = True
        # Where there was no record, nothing that depends on it has been looked for yet.
        if before is not None and (outcome.record is None or before.digest != outcome.record.digest):
            for other, theirs in self.survey.states.items():
                if theirs.outcome is None and not theirs.running and other is not step and not theirs.made:
                    theirs.looked, theirs.record, theirs.path = False, None, None

    def _finish(self, step: Step, outcome: Outcome) -> None:
        state = self.survey.state(step)
        state.outcome, state.wanted, self._changed = outcome, False, True
        if outcome.ending == "made" and outcome.seconds is not None:
            self._memory.took(step.name, outcome.seconds)
        values = {"seconds": outcome.seconds, "reason": outcome.reason, "key": outcome.record and outcome.record.key}
        error = None if outcome.error is None else redact(str(outcome.error))
        kept = {name: value for name, value in {**values, "error": error}.items() if value is not None}
        self._run_log.write(outcome.ending, step=step.name, kind=step.kind, **kept)
        self._listener.ends(step, outcome)
        if outcome.ending == "failed" and self._options.fail_fast and not self._ending:
            self._ending, self._first_failure = True, outcome.error
            for unit in self._running:
                unit.watch.cancelled.set()

    def _end(self) -> None:
        """End everything that runs, children included."""
        self._ending = True
        for unit in self._running:
            unit.watch.cancelled.set()
        deadline = time.monotonic() + _END_SECONDS
        while self._running and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                unit, results = self._finished.get(timeout=_TICK)
                self._take(unit, results)

    # --- in the thread of a unit ----------------------------------------------------------------------------------

    def _thread(self, unit: _Unit) -> None:
        try:
            self._make(unit)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it costs these steps, not the run
            failed = as_error(error, self._log(unit.steps[0]))
            seconds = time.monotonic() - unit.begin
            for step in unit.steps:
                unit.results.setdefault(step, Outcome("failed", seconds=seconds, error=failed))
        self._finished.put((unit, unit.results))

    def _make(self, unit: _Unit) -> None:
        """Claim, make and keep the steps of a unit; fills its results."""
        results = unit.results
        with ExitStack() as claims:
            claimed: dict[Step, Claim] = {}
            for step in unit.steps:
                key = unit.given[step].ingredients.key
                claim = claims.enter_context(self._store.claim(key, resumable=step.resumable))
                if claim is None:
                    results[step] = _Busy()
                elif (found := self._found_meanwhile(step, key)) is not None:
                    results[step] = found
                else:
                    claimed[step] = claim
            for step, claim in claimed.items():
                unit.works.append(self._work(step, claim, unit))
            begin = time.monotonic()
            failed = _run(unit.works)
            seconds = time.monotonic() - begin
            for work in unit.works:
                if work in failed:
                    results[work.step] = Outcome("failed", seconds=seconds, error=failed[work])
                else:
                    results[work.step] = self._keep(work, claimed[work.step], seconds, unit)

    def _found_meanwhile(self, step: Step, key: str) -> Outcome | None:
        """Return what another engine made between our look and our claim."""
        if step.outside is not None or step.kind in self._options.fresh:
            return None
        record = self._store.find(key)
        path = None if record is None else self._store.open(record)
        return None if record is None or path is None else Outcome("hit", path, record, record.seconds)

    def _work(self, step: Step, claim: Claim, unit: _Unit) -> Work:
        log = self._log(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        if not (step.resumable and claim.journal.exists()):  # what goes on goes on in its log, too
            log.unlink(missing_ok=True)
        limits = Limits(self._options.child_seconds, self._options.child_memory_bytes, unit.watch)
        given = unit.given[step]
        return Work(step, claim.directory, claim.journal, given.paths, log, limits, claim.hashes, records=given.records)

    def _keep(self, work: Work, claim: Claim, seconds: float, unit: _Unit) -> Outcome:
        """Put what a step made into the store, and return how it ended."""
        step, ingredients = work.step, unit.given[work.step].ingredients
        if work.done_before:
            self._run_log.write("resumed", step=step.name, done_before=work.done_before, done_now=work.done_now)
        if work.place is not None:
            (record,) = work.records.values()
            return Outcome("made", work.place, record, seconds)
        record = Record(
            key=ingredients.key,
            name=step.name,
            ingredients=ingredients,
            files=_files(claim.directory, work.hashes),
            seconds=seconds,
            peak_memory_bytes=unit.watch.peak_bytes,
        )
        missing = [role for role in step.optional if role not in work.inputs]
        if work.volatile is None and not missing:
            return Outcome("made", self._store.put(claim, record), record, seconds)
        self._run_log.write("volatile", step=step.name, reason=work.volatile or f"made without {missing[0]}")
        path = self._scratch / step.name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(claim.directory, path)
        return Outcome("made", path, record, seconds)


def _check_batches(goals: Iterable[Step]) -> None:
    """Refuse a batch that would wait for itself."""
    above: dict[Step, frozenset[Batch]] = {}

    def batches_from(step: Step) -> frozenset[Batch]:
        if step not in above:
            found = frozenset[Batch]().union(*(batches_from(other) for other in step.inputs.values()))
            if step.batch is not None and step.batch in found:
                raise ValueError(f"{step.name} depends on another step of its batch {step.batch.name!r}")
            above[step] = found if step.batch is None else found | {step.batch}
        return above[step]

    for goal in goals:
        batches_from(goal)


def _run(works: Sequence[Work]) -> Mapping[Work, EdgekilnError]:
    """Do the work of a unit."""
    if not works:
        return {}
    step = works[0].step
    if step.batch is not None:
        return step.batch.run(works)
    if step.run is not None:
        step.run(works[0])
    return {}


def _files(directory: Path, known: Mapping[str, str]) -> tuple[FileEntry, ...]:
    """Return every file below a directory, sorted by path; hashes that are known are not taken again."""
    found = []
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        name = path.relative_to(directory).as_posix()
        found.append(FileEntry(path=name, size=path.stat().st_size, sha256=known.get(name) or sha256_file(path)))
    return tuple(found)


def as_error(error: Exception | SystemExit, log: Path) -> EdgekilnError:
    """Return what stopped a step as an error of ours: a fault of the machine, or a mistake of Edgekiln's."""
    if isinstance(error, EdgekilnError):
        return error
    if isinstance(error, OSError):
        return MachineError(str(error))
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redact("".join(traceback.format_exception(error))))
    return BugError(redact(f"a bug in Edgekiln: {type(error).__name__}: {error}; please file it with {log}"))
