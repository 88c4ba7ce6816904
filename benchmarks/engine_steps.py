"""What the engine costs per step: against calling the same functions directly, and where it goes."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from common import Action, Figure, Part, samples, seconds_of

from edgekiln.engine import local_store, scheduler
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.machine_lock import MachineLock
from edgekiln.engine.record import Record
from edgekiln.engine.run_log import RunLog
from edgekiln.engine.scheduler import Engine, Options
from edgekiln.engine.step import Step, Work
from edgekiln.engine.store import Claim
from edgekiln.process import run_task

FILE = "result.txt"
Run = Callable[[Path, str, Path], None]


class Nobody:
    """A listener that does not listen."""

    def expect(self, steps: object) -> None:
        pass

    def begins(self, step: Step, last_seconds: float | None) -> None:
        pass

    def advances(self, step: Step, share: float) -> None:
        pass

    def ends(self, step: Step, outcome: scheduler.Outcome) -> None:
        pass

    def say(self, text: str) -> None:
        print(text)


def write_file(directory: Path, name: str, _log: Path) -> None:
    """Do what a trivial step does."""
    (directory / FILE).write_text(name, encoding="utf-8")


def write_in_child(directory: Path, name: str, log: Path) -> None:
    """Do the same in a process."""
    more = {"PYTHONPATH": str(Path(__file__).parent)}
    run_task("engine_task", "write", {"path": str(directory / FILE), "text": name}, log=log, environment=more)


def make_steps(count: int, run: Run) -> list[Step]:
    """Return steps that depend on nothing, each with a key of its own."""

    def work(given: Work) -> None:
        run(given.directory, given.step.name, given.log)

    return [Step(f"step-{n}", "trivial", "writing a file", parameters={"number": n}, run=work) for n in range(count)]


def run_steps(steps: list[Step], place: Path, store: LocalStore | None = None) -> float:
    """Run steps one after the other and return the seconds that the deciding thread computed."""
    memory = HashMemory(place / "memory.sqlite")
    run_log = RunLog(place / "run.jsonl")
    engine = Engine(
        store or LocalStore(place / "cache"),
        memory,
        Nobody(),
        lambda step: place / "logs" / f"{step.name}.log",
        run_log,
        MachineLock(place / "state"),
        place / "volatile",
        Options(jobs=1, cores=os.cpu_count() or 1, memory_bytes=1 << 40, child_seconds=60.0),
    )
    begin = time.thread_time()
    outcomes = engine.run(steps)
    decided = time.thread_time() - begin
    memory.close()
    run_log.close()
    endings = {outcome.ending for outcome in outcomes.values()}
    if not endings <= {"made", "hit"}:
        raise RuntimeError(f"trivial steps ended as {endings}")
    return decided


def call_directly(count: int, run: Run, place: Path) -> None:
    """Do the work of steps without an engine: a directory for each, and its file."""
    for number in range(count):
        directory = place / str(number)
        directory.mkdir(parents=True)
        run(directory, f"step-{number}", place / "log")


def overhead(scratch: Path, *, steps: int, children: int, runs: int) -> Part:
    """Compare the engine with direct calls, without and with processes; then run once more with nothing to make."""
    rows, data = [], {}
    for title, count, run in (("writes a file", steps, write_file), ("does so in a process", children, write_in_child)):
        figures = _compare(scratch, count, run, runs)
        data[title] = {"steps": count, "seconds": samples(figures)}
        scale = 1000 / count
        direct, engine = figures["directly"], figures["engine"]
        extra = Figure([ours - theirs for ours, theirs in zip(engine.samples, direct.samples, strict=True)])
        shown = [each.text(scale) for each in (direct, engine, extra, figures["again"])]
        rows.append([f"{count} steps, each {title}", *shown])
    columns = ("ms per step", "called directly", "by the engine", "the engine's share", "by the engine, again")
    return Part("Overhead per step", columns, rows, data)


def _compare(scratch: Path, count: int, run: Run, runs: int) -> dict[str, Figure]:
    place, steps = scratch / "overhead", make_steps(count, run)
    actions: dict[str, Action] = {
        "directly": lambda: call_directly(count, run, place / "direct"),
        "engine": lambda: run_steps(steps, place),
        "again": lambda: run_steps(steps, place),
    }
    figures = {name: Figure() for name in actions}
    for _ in range(runs):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name, action in actions.items():
            figures[name].samples.append(seconds_of(action))
    shutil.rmtree(place)
    return figures


# --- where it goes ---------------------------------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """Adds up the seconds of phases; one that runs within another is taken from that."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def around(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return a function that counts as a phase."""

        def timed(*arguments: object, **named: object) -> object:
            with self.phase(name):
                return function(*arguments, **named)

        return timed


class WatchedStore(LocalStore):
    """A local store that tells a stopwatch what it does."""

    watch: Stopwatch

    @contextmanager
    def claim(self, key: str, *, resumable: bool) -> Iterator[Claim | None]:
        inner: AbstractContextManager[Claim | None] = super().claim(key, resumable=resumable)
        with self.watch.phase("claim: its lock, and a place to work in"):
            claim = inner.__enter__()
        try:
            yield claim
        finally:
            with self.watch.phase("give the claim back"):
                inner.__exit__(None, None, None)

    def put(self, claim: Claim, record: Record) -> Path:
        with self.watch.phase("put: rename, check, stamps"):
            return super().put(claim, record)


#: Functions that are phases of their own: where they are looked up, and what they do.
PHASES: tuple[tuple[ModuleType | type, str, str], ...] = (
    (local_store, "flush", "put: fsync of files and folders"),
    (local_store, "sync", "put: fsync of files and folders"),
    (local_store, "share", "put: share equal files"),
    (LocalStore, "_write", "put: the entry, written and fsynced"),
    (LocalStore, "find", "look into the store"),
    (scheduler, "_files", "hash what was made"),
    (scheduler, "_run", "the step itself"),
)


def where_it_goes(scratch: Path, *, steps: int, runs: int) -> Part:
    """Return the time of trivial steps by phase; the rest is decisions, threads, the machine's lock and the run log."""
    found = [_phases(scratch / "phases", make_steps(steps, write_file)) for _ in range(runs)]
    names = sorted(found[0], key=lambda name: -statistics.median(phases[name] for phases in found))
    figures = {name: Figure([phases[name] for phases in found]) for name in names}
    total = Figure([sum(phases.values()) for phases in found])
    rows = [
        [name, figure.text(1000 / steps), f"{100 * figure.median / total.median:.0f} %"]
        for name, figure in figures.items()
    ]
    rows.append(["all", total.text(1000 / steps), ""])
    data = {"steps": steps, "seconds": samples(figures)}
    return Part(f"Where it goes: {steps} steps, each writes a file", ("phase", "ms per step", "share"), rows, data)


def _phases(place: Path, steps: list[Step]) -> dict[str, float]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    watch, store = Stopwatch(), WatchedStore(place / "cache")
    store.watch = watch
    originals = [getattr(owner, name) for owner, name, _ in PHASES]
    begin = time.perf_counter()
    try:
        for (owner, name, phase), original in zip(PHASES, originals, strict=True):
            setattr(owner, name, watch.around(phase, original))
        run_steps(steps, place, store)
    finally:
        for (owner, name, _), original in zip(PHASES, originals, strict=True):
            setattr(owner, name, original)
    wall = time.perf_counter() - begin
    shutil.rmtree(place)
    return {**watch.seconds, "decide, start a thread, lock, log": wall - sum(watch.seconds.values())}


# --- many ------------------------------------------------------------------------------------------------------------


def many(scratch: Path, *, counts: list[int]) -> Part:
    """Run more and more steps: what the deciding thread computes for each must not grow with their number."""
    rows, data = [], {}
    for count in counts:
        place = scratch / "many"
        place.mkdir()
        steps = make_steps(count, write_file)
        begin = time.perf_counter()
        decided = run_steps(steps, place)
        wall = time.perf_counter() - begin
        again = time.perf_counter()
        run_steps(steps, place)
        again = time.perf_counter() - again
        shutil.rmtree(place)
        data[str(count)] = {"wall_seconds": wall, "deciding_seconds": decided, "again_seconds": again}
        rows.append([f"{count:,}", f"{wall:.1f}", *(f"{1000 * each / count:.2f}" for each in (wall, decided, again))])
    columns = ("steps", "seconds", "ms per step", "of it deciding (processor time)", "again, ms per step")
    return Part("Many steps that depend on nothing, one after the other", columns, rows, data)
