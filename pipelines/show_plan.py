"""What `edgekiln plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgekiln.errors import UsageError, nearest
from edgekiln.exporters import EXPORTERS
from edgekiln.memory import uncollected

if TYPE_CHECKING:
    from edgekiln.pipelines.cells import Outlook
    from edgekiln.pipelines.forecast import Cached
    from edgekiln.pipelines.plan import Plan

FORMS: Final = ("table", "json", "github-matrix", "gitlab-matrix")


def _cached(plan: Plan, outlook: Outlook, environment: Mapping[str, str]) -> Mapping[str, Cached]:
    """Return what the cache of this machine has, by a step's id; what is left out is unknown."""
    from edgekiln.engine.place import open_to_read

    if outlook.checkpoint is None or open_to_read(environment, lambda _complaint: None) is None:
        return {}
    from edgekiln.pipelines.surveyed import cached_steps  # it imports all that a run does

    return cached_steps(plan, outlook, environment)


@dataclass(frozen=True)
class PlanRequest:
    """The options of the command.

    Attributes:
        form: `--format`; None where it was not given.
        as_json: `--json`.
        explain: A build to explain.
        fit: A device to find precisions for.
        pipeline_given: A pipeline was named.
        selection: The options that select builds.
    """

    form: str | None
    as_json: bool
    explain: str | None
    fit: str | None
    pipeline_given: bool
    selection: Mapping[str, Any]


def _form(request: PlanRequest) -> str:
    """Return what is to be printed.

    Raises:
        UsageError: There is no such format, or options contradict each other.
    """
    form = request.form or ("json" if request.as_json else "table")
    if form not in FORMS:
        raise UsageError(f"--format {form!r} is no format of a plan; {nearest(form, FORMS)}")
    if request.as_json and form != "json":
        raise UsageError(f"--json and --format {form} contradict each other; give one of them")
    is_matrix = form.endswith("-matrix")
    if request.explain is not None and (is_matrix or request.fit is not None):
        raise UsageError("--explain shows one build of a pipeline as a table; leave out --fit and the matrix")
    if request.fit is not None and is_matrix:
        raise UsageError(f"--fit makes no jobs, so there is no {form}; print a table or json")
    if request.fit is not None and (request.pipeline_given or request.selection["only"]):
        raise UsageError("--fit takes a checkpoint and a device; leave out the pipeline and --target")
    return form


def plan_output(request: PlanRequest, environment: Mapping[str, str]) -> str:
    """Return the text to print.

    Raises:
        UsageError: Options contradict each other; a file, a setting or a name is wrong.
        UnsupportedError: A matrix would have no job.
        MachineError: The checkpoint of `--fit` is not on this machine.
    """
    with uncollected():
        return _output(request, environment)


def _output(request: PlanRequest, environment: Mapping[str, str]) -> str:
    from edgekiln.pipelines.cells import look_ahead
    from edgekiln.pipelines.forecast import forecast
    from edgekiln.pipelines.plan import make_plan

    form = _form(request)
    if request.fit is not None:
        return _fit_output(request.fit, form, request.selection, environment)
    selection = request.selection
    plan = make_plan(
        selection["pipeline"],
        formats=EXPORTERS,
        flags=_flags(selection),
        assignments=selection["assignments"],
        environment=environment,
        only=selection["only"],
    )
    if form.endswith("-matrix"):
        return _matrix(form, plan, selection)
    outlook = look_ahead(plan)
    if form == "json":
        from edgekiln.pipelines.tables import plan_json

        return plan_json(plan, forecast(plan, outlook, _cached(plan, outlook, environment)), outlook.reasons)
    if request.explain is not None:
        from edgekiln.pipelines.tables import build_text

        return build_text(plan, request.explain, outlook.reasons)
    from edgekiln.pipelines.plan_table import plan_text

    return plan_text(plan, forecast(plan, outlook, _cached(plan, outlook, environment)), outlook.reasons, outlook.note)


def _matrix(form: str, plan: Plan, selection: Mapping[str, Any]) -> str:
    """Return the jobs of a plan. No checkpoint is opened: jobs are planned where it need not be."""
    from edgekiln.pipelines.matrix import github_matrix, gitlab_matrix

    reasons = {build.id: build.unsupported for build in plan.builds if build.unsupported}
    if form == "github-matrix":
        return github_matrix(plan, reasons)
    return gitlab_matrix(plan, reasons, list(_arguments(selection)))


def _flags(selection: Mapping[str, Any]) -> dict[str, object]:
    return {key: selection[key] for key in ("checkpoint", "out", "targets", "offline")}


def _arguments(selection: Mapping[str, Any]) -> Iterator[str]:
    """Yield the arguments of `edgekiln build` that select the same builds under the same settings."""
    yield selection["pipeline"]
    for key in ("checkpoint", "out", "targets"):
        if selection[key] is not None:
            yield from (f"--{key}", selection[key])
    for assignment in selection["assignments"]:
        yield from ("--set", assignment)
    if selection["offline"]:
        yield "--offline"


def _fit_output(device: str, form: str, selection: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    from edgekiln.pipelines.fit import fit, fit_json, fit_text
    from edgekiln.pipelines.plan import settle
    from edgekiln.pipelines.settings import assignments_layer, environment_layer, flags_layer

    layers = (
        environment_layer(environment),
        assignments_layer(selection["assignments"]),
        flags_layer(_flags(selection)),
    )
    report = fit(device, *settle(*layers), EXPORTERS)
    return fit_json(report) if form == "json" else fit_text(report)
