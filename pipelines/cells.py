"""The builds of a plan against one checkpoint: every tensor decided from metadata, or the reason why it cannot be.

No weight is read, nothing is written, no framework is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.artifact import Manifest
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.errors import EdgekilnError, MachineError, UnsupportedError, UsageError
from edgekiln.exporters.base import ExportPlan
from edgekiln.pipelines.export import plan_export
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.targets import RUNTIMES

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
    manifest: Manifest | None = None
    export_seconds: float | None = None
    metrics: ArtifactMetrics | None = None

    @property
    def alive(self) -> bool:
        """Nothing has stopped it so far."""
        return self.plan is not None and self.error is None


def prepare(plan: Plan, checkpoint: Checkpoint) -> list[Cell]:
    """Decide every tensor of every build from metadata, before anything is written.

    Raises:
        UsageError: A scheme contradicts itself or the shapes; the message begins with the build's id.
    """
    return [_prepare(build, checkpoint) for build in plan.builds]


def _prepare(build: Build, checkpoint: Checkpoint) -> Cell:
    cell = Cell(build, unsupported=build.unsupported)
    if cell.unsupported is not None:
        return cell
    try:
        cell.plan = plan_export(checkpoint, build.format, build.scheme, build.device)
    except UnsupportedError as error:
        cell.unsupported = str(error)
        return cell
    except UsageError as error:
        raise UsageError(f"{build.id}: {error}") from None
    memory = build.target.memory
    if memory is not None and cell.plan.weights_bytes > memory:
        needed, given = cell.plan.weights_bytes / 2**20, memory / 2**20
        cell.unsupported = (
            f"its weights take {needed:.0f} MiB, but {build.target.name} gives a model {given:.0f} MiB; "
            "use a smaller precision or checkpoint"
        )
        cell.plan = None
    return cell


def reasons_against(plan: Plan) -> tuple[dict[str, str], str | None]:
    """Return why builds cannot be made, by id, and what could not be looked at.

    The checkpoint's metadata is read where it is on this machine already; no weight is read, nothing is written.
    """
    settings = plan.settings.values
    try:
        checkpoint = open_checkpoint(settings.checkpoint, offline=True)
    except MachineError:
        known = {build.id: build.unsupported for build in plan.builds if build.unsupported}
        return known, f"{settings.checkpoint} is not on this machine yet, so its shapes were not looked at."
    reasons: dict[str, str] = {}
    for build in plan.builds:
        try:
            cell = _prepare(build, checkpoint)
        except UsageError as error:
            reasons[build.id] = str(error).removeprefix(f"{build.id}: ")
            continue
        if cell.unsupported is not None:
            reasons[build.id] = cell.unsupported
    return reasons, None


def check_runtime(build: Build) -> None:
    """Refuse to judge for a runtime version that this machine does not have.

    Another runtime that stands in has no version that the target could ask for.

    Raises:
        MachineError: The runtime is missing, or lies outside the target's range.
    """
    target = build.target
    package = RUNTIMES[target.runtime.name].package
    try:
        found = version(package)
    except PackageNotFoundError:
        raise MachineError(
            f"target {target.name} is validated with {package}, which is not installed; install it with pip"
        ) from None
    if RUNTIMES[target.runtime.name].stand_in is None and not target.runtime.accepts(found):
        raise MachineError(
            f"target {target.name} wants {target.runtime.name} {target.runtime.version}, but this machine has "
            f"{package} {found}; install one in that range or change the target"
        )
