"""What a run would do: every step with what the cache has, and nothing made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgekiln.console import Console
from edgekiln.engine.survey import Forecast, Found
from edgekiln.pipelines.engine_room import RunOptions
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.surveyed import Surveyed, surveyed
from edgekiln.table import table

SAID: Final[Mapping[Forecast, str]] = MappingProxyType(
    {"hit": "made before", "miss": "to be made", "unknown": "depends on what is to be made"}
)


def dry_run_text(plan: Plan, console: Console, options: RunOptions, *, as_json: bool) -> str:
    """Return the steps of a plan and what a run would find of each, as a table or JSON.

    The checkpoint is hashed, if that is not remembered; nothing is written to the output folder.

    Raises:
        UsageError: The checkpoint or a scheme is impossible.
    """
    with surveyed(plan, console, options) as found:
        return _json(found.found) if as_json else _table(found)


def _json(found: Found) -> str:
    steps = [{"step": step.name, "kind": step.kind, "cached": state} for step, state in found.items()]
    return json.dumps({"schema": "edgekiln.dry-run/1", "steps": steps}, indent=2)


def _table(found: Surveyed) -> str:
    columns = (("step", False), ("state", False), ("last time", True))
    rows = []
    for step, state in found.found.items():
        seconds = found.room.memory.seconds(step.name)
        rows.append([step.name, SAID[state], "–" if seconds is None else f"{seconds:.1f} s"])
    missing = sum(state != "hit" for state in found.found.values())
    return f"{table(columns, rows)}\n{missing} of {len(rows)} steps would be made."
