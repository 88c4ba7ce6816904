"""The builds of a plan against one checkpoint: every tensor decided from metadata, or the reason why it cannot be.

No weight is read, nothing is written, no framework is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.device import Device
from edgekiln.errors import EdgekilnError, MachineError, UnsupportedError, UsageError
from edgekiln.exporters.base import ExportPlan
from edgekiln.installed import package_version
from edgekiln.pipelines.export import plan_export
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.targets import RUNTIMES
from edgekiln.scheme import Scheme

if TYPE_CHECKING:
    from edgekiln.validators.validate import ArtifactMetrics  # `edgekiln plan` does without NumPy


@dataclass
class Cell:
    """A build on its way; each phase fills in what it found.

    Attributes:
        build: What is to be made.
        plan: Decided from metadata; None when the cell is unsupported.
        unsupported: Why it cannot be made.
        error: What stopped it.
    """

    build: Build
    plan: ExportPlan | None = None
    unsupported: str | None = None
    error: EdgekilnError | None = None
    artifact: Path | None = None
    export_seconds: float | None = None
    metrics: ArtifactMetrics | None = None

    @property
    def alive(self) -> bool:
        """Nothing has stopped it so far."""
        return self.plan is not None and self.error is None


class _Planner:
    """Decides artifacts of one checkpoint, each distinct one once: the context of a device changes no tensor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._made: dict[tuple[str, Scheme, Device], ExportPlan | UnsupportedError | UsageError] = {}

    def plan(self, build: Build) -> ExportPlan:
        """Return the artifact of a build. See `Exporter.plan`."""
        device = build.device
        key = build.format, build.scheme, Device(device.execution_provider)
        if key not in self._made:
            try:
                self._made[key] = plan_export(self._checkpoint, *key)
            except (UnsupportedError, UsageError) as error:
                self._made[key] = error
        made = self._made[key]
        if not isinstance(made, ExportPlan):
            raise made.with_traceback(None)  # it would grow with every build
        return made if made.device == device else replace(made, device=device)


def prepare(plan: Plan, checkpoint: Checkpoint) -> list[Cell]:
    """Decide every tensor of every build from metadata, before anything is written.

    Raises:
        UsageError: A scheme contradicts itself or the shapes; the message begins with the build's id.
    """
    planner = _Planner(checkpoint)
    return [_prepare(build, planner) for build in plan.builds]


def _prepare(build: Build, planner: _Planner) -> Cell:
    cell = Cell(build, unsupported=build.unsupported)
    if cell.unsupported is not None:
        return cell
    try:
        cell.plan = planner.plan(build)
    except UnsupportedError as error:
        cell.unsupported = str(error)
        return cell
    except UsageError as error:
        raise UsageError(f"{build.id}: {error}") from None
    memory = build.target.memory
    if memory is not None and cell.plan.weights_bytes > memory:
        needed, given = cell.plan.weights_bytes / 2**20, memory / 2**20
        cell.unsupported = (
            f"its weights take {needed:.0f} MiB, but {build.target.name} gives a process {given:.0f} MiB; "
            "use a smaller precision or checkpoint"
        )
        cell.plan = None
    return cell


@dataclass(frozen=True)
class Outlook:
    """A plan against its checkpoint, as far as metadata tells.

    Attributes:
        checkpoint: None where it is not on this machine.
        plans: The artifact of each build that can be made, by the build's id.
        reasons: Why the others cannot, by id.
        note: What could not be looked at; None where everything was.
    """

    checkpoint: Checkpoint | None
    plans: Mapping[str, ExportPlan]
    reasons: Mapping[str, str]
    note: str | None = None


def look_ahead(plan: Plan) -> Outlook:
    """Decide what every build of a plan will be, or why it cannot be made.

    The checkpoint's metadata is read where it is on this machine already; no weight is read, nothing is written.
    """
    settings = plan.settings.values
    try:
        checkpoint = open_checkpoint(settings.checkpoint, offline=True, with_text=False)
    except MachineError:
        known = {build.id: build.unsupported for build in plan.builds if build.unsupported}
        note = f"{settings.checkpoint} is not on this machine yet, so its shapes were not looked at."
        return Outlook(None, {}, known, note)
    planner = _Planner(checkpoint)
    plans: dict[str, ExportPlan] = {}
    reasons: dict[str, str] = {}
    for build in plan.builds:
        try:
            cell = _prepare(build, planner)
        except UsageError as error:
            reasons[build.id] = str(error).removeprefix(f"{build.id}: ")
            continue
        if cell.plan is not None:
            plans[build.id] = cell.plan
        elif cell.unsupported is not None:
            reasons[build.id] = cell.unsupported
    return Outlook(checkpoint, plans, reasons)


def check_runtime(build: Build) -> None:
    """Refuse to judge for a runtime version that this machine does not have.

    Another runtime that stands in has no version that the target could ask for.

    Raises:
        MachineError: The runtime is missing, or lies outside the target's range.
    """
    target = build.target
    package = RUNTIMES[target.runtime.name].package
    try:
        found = package_version(package)
    except PackageNotFoundError:
        raise MachineError(
            f"target {target.name} is validated with {package}, which is not installed; install it with pip"
        ) from None
    if RUNTIMES[target.runtime.name].stand_in is None and not target.runtime.accepts(found):
        raise MachineError(
            f"target {target.name} wants {target.runtime.name} {target.runtime.version}, but this machine has "
            f"{package} {found}; install one in that range or change the target"
        )
