"""Builds of a plan by their ids: one job of a CI matrix makes one of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.plan import Plan, require_selected


def only_builds(plan: Plan, ids: Collection[str]) -> Plan:
    """Return a plan with the builds of these ids; an empty collection selects all.

    Raises:
        UsageError: The plan has no such build, or a gate compares with one that is not selected.
    """
    known = {build.id for build in plan.builds}
    for name in ids:
        if name not in known:
            raise UsageError(f"--only {name!r} is no build of {plan.pipeline.document.name}; {nearest(name, known)}")
    if not ids:
        return plan
    chosen = tuple(build for build in plan.builds if build.id in ids)
    require_selected(chosen)
    return replace(plan, builds=chosen)
