"""Why the cache has a step's result, or has it not: by what the step differs from the nearest one that was made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from edgekiln.console import Console
from edgekiln.engine.record import Ingredients, Record, differences
from edgekiln.engine.step import Step
from edgekiln.engine.store import Store
from edgekiln.engine.survey import Forecast, Found, Survey
from edgekiln.errors import UnsupportedError, UsageError, nearest
from edgekiln.pipelines.dry_run import SAID
from edgekiln.pipelines.engine_room import EngineRoom, RunOptions
from edgekiln.pipelines.plan import Plan
from edgekiln.pipelines.selection import only_builds
from edgekiln.pipelines.surveyed import surveyed

#: A result of another name is worth a comparison when it differs in no more than this.
_MOST_DIFFERENCES: Final = 3


@dataclass(frozen=True)
class Explained:
    """What is known of a step's result.

    Attributes:
        step: Its name.
        kind: What it does.
        state: The cache has it, has it not, or that depends on what is to be made before.
        reasons: Why the cache has it not, one line each.
    """

    step: str
    kind: str
    state: Forecast
    reasons: tuple[str, ...] = ()


def explain(plan: Plan, build_id: str, console: Console, *, as_json: bool) -> str:
    """Return, for each step of a build, whether the cache has its result, and why not, as lines or JSON.

    The checkpoint is hashed, if that is not remembered; nothing is made.

    Raises:
        UsageError: There is no such build, or its checkpoint or scheme is impossible.
        UnsupportedError: The build cannot be made.
    """
    known = {build.id for build in plan.builds}
    if build_id not in known:
        raise UsageError(f"{build_id!r} is no build of {plan.pipeline.document.name}; {nearest(build_id, known)}")
    plan = only_builds(plan, [build_id])
    with surveyed(plan, console, RunOptions()) as found:
        for cell in found.cells:
            if cell.unsupported is not None:
                raise UnsupportedError(f"{build_id} cannot be made: {cell.unsupported}")
        steps_found = list(explained(found.room, found.found))
    if as_json:
        document = {"schema": "edgekiln.explain/1", "build": build_id, "steps": [asdict(each) for each in steps_found]}
        return json.dumps(document, indent=2)
    lines = []
    for each in steps_found:
        lines += [f"{each.step}: {SAID[each.state]}", *(f"    {reason}" for reason in each.reasons)]
    return "\n".join(lines)


def explained(room: EngineRoom, found: Found) -> Iterator[Explained]:
    """Yield what is known of every step of a forecast."""
    records: list[Record] | None = None
    for step, state in found.items():
        ingredients = None if state == "hit" else room.engine.survey.ingredients(step)
        if state == "hit":
            reasons: tuple[str, ...] = ()
        elif state == "unknown" or ingredients is None:
            reasons = (f"it depends on what is to be made first: {', '.join(_missing(step, room.engine.survey))}",)
        else:
            if records is None:
                records = list(room.store.records())
            reasons = tuple(_why_missing(step, ingredients, records, room.engine.survey, room.store))
        yield Explained(step.name, step.kind, state, reasons)


def _missing(step: Step, survey: Survey) -> list[str]:
    """Return the inputs whose content is not known yet."""
    return sorted({other.name for other in step.inputs.values() if survey.record(other) is None})


def _why_missing(
    step: Step, ingredients: Ingredients, records: list[Record], survey: Survey, store: Store
) -> list[str]:
    """Return why a step has to be made whose inputs are known."""
    if step.outside is not None:
        return ["it does not lie in the output folder, or not as it was exported"]
    if survey.record(step) is not None or store.find(ingredients.key) is not None:
        return ["it was made, but its files are needed and were not kept"]
    made = _nearest(step, ingredients, records)
    if made is None:
        return ["never made"]
    name = "" if made.name == step.name else f"{made.name}: "
    return [f"{name}{line}" for line in differences(made.ingredients, ingredients)]


def _nearest(step: Step, wanted: Ingredients, records: list[Record]) -> Record | None:
    """Return the record of the same kind that differs least; one of the same name comes before any other."""
    kin = [record for record in records if record.kind == step.kind]
    count = {record.key: len(differences(record.ingredients, wanted)) for record in kin}
    same = [record for record in kin if record.name == step.name]
    others = [record for record in kin if count[record.key] <= _MOST_DIFFERENCES]
    return min(same or others, key=lambda record: count[record.key], default=None)
