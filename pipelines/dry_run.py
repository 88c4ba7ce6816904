"""What a run would do: every step with what the cache has, and nothing made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.engine.scheduler import Found
from edgekiln.engine.step import Step
from edgekiln.pipelines.cells import prepare
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions, engine_room
from edgekiln.pipelines.graph import Graph
from edgekiln.pipelines.identify import identify
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.run import goals_of, make_steps
from edgekiln.table import table

_SAID = {"hit": "made before", "miss": "to be made", "unknown": "depends on what is to be made"}


def dry_run_text(plan: Plan, console: Console, options: RunOptions, *, as_json: bool) -> str:
    """Return the steps of a plan and what a run would find of each, as a table or JSON.

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
        identified = identify(checkpoint, room.memory)
        steps = make_steps(cells, Graph(identified, settings, room.memory), settings.out, Path(scratch))
        found = room.engine.forecast(goals_of(cells, steps))
        return _json(found) if as_json else _table(list(found), found, room)


def _json(found: Found) -> str:
    steps = [{"step": step.name, "kind": step.kind, "cached": state} for step, state in found.items()]
    return json.dumps({"schema": "edgekiln.dry-run/1", "steps": steps}, indent=2)


def _table(steps: Sequence[Step], found: Found, room: EngineRoom) -> str:
    columns = (("step", False), ("state", False), ("last time", True))
    rows = []
    for step in steps:
        seconds = room.memory.seconds(step.name)
        rows.append([step.name, _SAID[found[step]], "–" if seconds is None else f"{seconds:.1f} s"])
    missing = sum(found[step] != "hit" for step in steps)
    return f"{table(columns, rows)}\n{missing} of {len(steps)} steps would be made."
