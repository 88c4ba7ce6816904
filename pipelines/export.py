"""Making one artifact: plan, write, manifest, and one rename that makes it visible."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from edgekiln import __version__
from edgekiln.artifact import (
    CheckpointEntry,
    Manifest,
    check_destination,
    list_files,
    seal,
    staged,
)
from edgekiln.checkpoint import EMBEDDED, Checkpoint
from edgekiln.device import ANY_CPU, Device
from edgekiln.errors import UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan
from edgekiln.exporters.manifest_entries import device_entry, scheme_entry, tensor_entries
from edgekiln.hub import parse_hub_id
from edgekiln.journal import Journal
from edgekiln.quantizers import library_versions, quantize
from edgekiln.scheme import Scheme
from edgekiln.text_check import text_checked


def plan_export(checkpoint: Checkpoint, format_name: str, scheme: Scheme, device: Device = ANY_CPU) -> ExportPlan:
    """Decide every tensor of an artifact from metadata alone. See `Exporter.plan`."""
    return EXPORTERS[format_name].plan(checkpoint, scheme, device)


def write_artifact(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    requested: str,
    directory: Path,
    *,
    journal: Journal | None = None,
    threads: int | None = None,
) -> Manifest:
    """Write an artifact with its manifest and checksums into an empty, not yet visible directory.

    Args:
        checkpoint: The source.
        plan: What `plan_export` decided.
        requested: Precision as the user named it, before a target's mapping.
        directory: Empty; see `edgekiln.artifact.staged`. With a journal, what earlier attempts left.
        journal: Remembers which tensors are whole; see `Exporter.write`.
        threads: See `Exporter.write`.

    Raises:
        StepError: The weights hold what cannot be exported.
    """
    exporter = EXPORTERS[plan.format]
    exporter.write(checkpoint, plan, directory, quantize, journal=journal, threads=threads)
    manifest = Manifest(
        format=plan.format,
        container_type=plan.container_type,
        checkpoint=_checkpoint_entry(checkpoint),
        scheme=scheme_entry(plan.scheme, requested),
        device=device_entry(plan.device),
        tools=artifact_tools(plan),
        files=list_files(directory),
        tensors=tensor_entries(plan),
    )
    seal(directory, manifest)
    return manifest


def artifact_tools(plan: ExportPlan) -> dict[str, str]:
    """Return name and version of Edgekiln and of every library that touches the bytes of an artifact."""
    grids = {tensor.storage for tensor in plan.tensors if not isinstance(tensor.storage, str)}
    versions = {**EXPORTERS[plan.format].tool_versions(), **library_versions(grids)}
    return {"edgekiln": __version__, **dict(sorted(versions.items()))}


def export(
    checkpoint: Checkpoint,
    format_name: str,
    scheme: Scheme,
    out: Path,
    device: Device = ANY_CPU,
    *,
    threads: int | None = None,
    with_text: bool = False,
) -> Manifest:
    """Make one artifact at `out`; nothing is visible there before it is whole.

    Args:
        checkpoint: The source.
        format_name: Key of `EXPORTERS`.
        scheme: How the weights are stored.
        out: The new directory.
        device: Where it is to run.
        threads: See `Exporter.write`.
        with_text: Check tokenizer and chat template first, where opening the checkpoint did not.

    Raises:
        UsageError: `out` exists, lies inside the checkpoint, or the scheme does not fit the shapes.
        UnsupportedError: The container cannot hold what is asked, or not for this device.
        StepError: The weights hold what cannot be exported.
        MachineError: The disk is full or cannot be written.
    """
    check_outside(out, checkpoint)
    check_destination(out)
    checkpoint.begin_identity()  # takes a core about as long as what follows takes another one
    with text_checked(checkpoint.directory, checkpoint.config.vocab_size) if with_text else nullcontext():
        plan = plan_export(checkpoint, format_name, scheme, device)
    with staged(out) as directory:
        return write_artifact(checkpoint, plan, scheme.precision, directory, threads=threads)


def check_outside(out: Path, checkpoint: Checkpoint) -> None:
    """Refuse a destination inside the checkpoint, which is never written to."""
    place, inside = (Path(os.path.realpath(path)) for path in (out, checkpoint.directory))  # resolve() raises on loops
    if place.is_relative_to(inside):
        raise UsageError(f"{out} lies inside the checkpoint {checkpoint.directory}; choose another --out")


def _checkpoint_entry(checkpoint: Checkpoint) -> CheckpointEntry:
    """Describe the checkpoint without its place on this machine."""
    public = checkpoint.source == EMBEDDED or (checkpoint.revision and parse_hub_id(checkpoint.source))
    return CheckpointEntry(
        name=checkpoint.source if public else None,
        revision=checkpoint.revision,
        identity=checkpoint.identity,
        model_type=checkpoint.config.model_type,
        weights=checkpoint.weight_count,
    )
