"""The steps of a plan and what the cache has of each; nothing is made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.place import MEMORY, open_to_read
from edgekiln.engine.survey import Found, Survey
from edgekiln.pipelines.cells import Cell, Outlook, prepare
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions, engine_room
from edgekiln.pipelines.forecast import Cached
from edgekiln.pipelines.graph import Graph
from edgekiln.pipelines.identify import Identified, identify, known_identity
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.run import goals_of, make_steps


@dataclass(frozen=True)
class Surveyed:
    """A plan's steps.

    Attributes:
        room: Where they would be made.
        cells: The builds.
        found: Each step that a run would look at, with what it would find.
    """

    room: EngineRoom
    cells: tuple[Cell, ...]
    found: Found


@contextmanager
def surveyed(plan: Plan, console: Console, options: RunOptions) -> Iterator[Surveyed]:
    """Yield the steps of a plan, with what a run under these options would find of each.

    The checkpoint is hashed, if that is not remembered; nothing is written to the output folder.

    Raises:
        UsageError: The checkpoint or a scheme is impossible.
    """
    settings = plan.settings.values
    checkpoint = open_checkpoint(settings.checkpoint, offline=settings.offline, listener=console)
    cells = prepare(plan, checkpoint)
    with (
        tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch,
        engine_room(settings, options, Path(scratch), lambda step: Path(scratch) / step.name, console) as room,
    ):
        graph = Graph(identify(checkpoint, room.memory), settings, room.memory)
        goals = goals_of(cells, make_steps(cells, graph, settings.out, Path(scratch)))
        yield Surveyed(room, tuple(cells), room.engine.survey.forecast(goals))


def cached_steps(plan: Plan, outlook: Outlook, environment: Mapping[str, str]) -> Mapping[str, Cached]:
    """Return, by a step's id, whether the cache of this machine has its result; nothing is read but the cache.

    Where the checkpoint's identity is not remembered, all is unknown, and so is what depends on a step to be made.
    """
    checkpoint = outlook.checkpoint
    store = None if checkpoint is None else open_to_read(environment, lambda _complaint: None)
    if checkpoint is None or store is None:
        return {}
    memory = HashMemory(store.root / MEMORY) if (store.root / MEMORY).exists() else HashMemory(None)
    try:
        identity = known_identity(checkpoint, memory)
        if identity is None:
            return {}
        identified = Identified(replace(checkpoint, known_identity=identity), {})
        cells = [Cell(build, outlook.plans.get(build.id)) for build in plan.builds if build.id not in outlook.reasons]
        settings = plan.settings.values
        steps = make_steps(cells, Graph(identified, settings, memory), settings.out, settings.out / ".edgekiln")
        return {step.name: state for step, state in Survey(store).forecast(goals_of(cells, steps)).items()}
    finally:
        memory.close()
