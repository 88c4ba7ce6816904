"""Where a command runs its steps: the cache, what is remembered, and an engine on both."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekiln.console import Console
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.machine_lock import MachineLock
from edgekiln.engine.place import open_store, use
from edgekiln.engine.run_log import RunLog
from edgekiln.engine.scheduler import Engine, Options
from edgekiln.engine.step import Step
from edgekiln.engine.store import Store
from edgekiln.errors import UsageError, nearest
from edgekiln.host import logical_cores, memory_bytes
from edgekiln.pipelines.graph import KINDS
from edgekiln.pipelines.settings import Settings

#: Of the machine's memory, what steps may take together unless the user says otherwise: others use it too.
_SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about its steps, as the command line says.

    Attributes:
        jobs: Steps side by side at most; None takes one for every two processors, at least two.
        memory_bytes: Memory that they may take together; None takes most of the machine's.
        from_kind: This kind of step and all later ones are made anew; None for none.
        fail_fast: The first failure ends the run.
        use_cache: False neither reads nor writes the cache.
    """

    jobs: int | None = None
    memory_bytes: int | None = None
    from_kind: str | None = None
    fail_fast: bool = False
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.from_kind is not None and self.from_kind not in KINDS:
            raise UsageError(f"--from {self.from_kind!r} is no step; {nearest(self.from_kind, KINDS)}")

    @property
    def fresh(self) -> frozenset[str]:
        """Kinds of steps that are made anew."""
        return frozenset(KINDS[KINDS.index(self.from_kind) :]) if self.from_kind is not None else frozenset()


@dataclass(frozen=True)
class EngineRoom:
    """What a command needs to run steps.

    Attributes:
        store: Results of earlier runs.
        memory: Hashes and durations.
        engine: Runs steps.
        announce: Says to the console what a run is about; call it before the engine runs.
    """

    store: Store
    memory: HashMemory
    engine: Engine
    announce: Callable[[Collection[Step]], None]


@contextmanager
def engine_room(
    settings: Settings, options: RunOptions, scratch: Path, log: Callable[[Step], Path], console: Console
) -> Iterator[EngineRoom]:
    """Yield an engine on the user's cache.

    Args:
        settings: Time limit, threads, whether to stay offline.
        options: How it runs.
        scratch: An empty directory for what serves this run only.
        log: Returns the log file of a step; the run log lies in its folder.
        console: Shows what happens.

    Raises:
        MachineError: The cache is at a place that cannot be reached.
    """
    with ExitStack() as stack:
        environment = os.environ if options.use_cache else {"EDGEKILN_CACHE": str(scratch / "cache")}
        store, memory = open_store(environment, console.say, scratch / "store", offline=settings.offline)
        stack.callback(memory.close)
        stack.enter_context(use(store))
        run_log = RunLog(log(Step("run", "run", "")).with_name("run.jsonl"))
        stack.callback(run_log.close)
        limit, cores = memory_bytes(), logical_cores()
        jobs = options.jobs or max(2, cores // 2)
        engine = Engine(
            store,
            memory,
            console,
            log,
            run_log,
            MachineLock(),
            scratch / "volatile",
            Options(
                jobs=jobs,
                cores=cores,
                memory_bytes=options.memory_bytes or int(_SHARE_OF_MEMORY * limit),
                child_seconds=settings.step_timeout_seconds,
                # A child that outgrows the machine is ended before the machine is.
                child_memory_bytes=limit,
                fail_fast=options.fail_fast,
                fresh=options.fresh,
            ),
        )

        def announce(goals: Collection[Step]) -> None:
            console.survey(goals, jobs=jobs, last_seconds=lambda step: memory.seconds(step.name), log=log)

        yield EngineRoom(store, memory, engine, announce)
