"""The size of what seals an artifact: manifest.json and SHA256SUMS, before there is one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from typing import Final

from edgekiln import __version__
from edgekiln.artifact import (
    MANIFEST,
    CheckpointEntry,
    FileEntry,
    Manifest,
)
from edgekiln.checkpoint import EMBEDDED, Checkpoint
from edgekiln.exporters.base import ExportPlan
from edgekiln.exporters.manifest_entries import device_entry, scheme_entry, tensor_entries
from edgekiln.installed import package_version

_SHA256: Final = "0" * 64
#: A line of SHA256SUMS beside the name: hash, two spaces, line end.
_LINE: Final = len(_SHA256) + 3


@functools.cache
def tool_version(package: str) -> str:
    """Return the version of an installed package; a usual one's length where it is not installed."""
    try:
        return package_version(package)
    except PackageNotFoundError:
        return "0.0.0"


def sealed_size(checkpoint: Checkpoint, plan: ExportPlan, files: Mapping[str, int], tools: tuple[str, ...]) -> int:
    """Return the bytes of an artifact: its files, manifest.json and SHA256SUMS.

    Args:
        checkpoint: The source.
        plan: What `Exporter.plan` decided.
        files: Sizes by name.
        tools: Packages that the manifest lists.
    """
    manifest = len(_manifest(checkpoint, plan, files, tools).model_dump_json(indent=2, by_alias=True).encode()) + 1
    checksums = sum(_LINE + len(name) for name in (*files, MANIFEST))
    return sum(files.values()) + manifest + checksums


def _manifest(checkpoint: Checkpoint, plan: ExportPlan, files: Mapping[str, int], tools: tuple[str, ...]) -> Manifest:
    """Return a manifest as long as the artifact's own; what it says of hashes is not true."""
    public = checkpoint.source == EMBEDDED or checkpoint.revision is not None
    return Manifest(
        format=plan.format,
        container_type=plan.container_type,
        checkpoint=CheckpointEntry(
            name=checkpoint.source if public else None,
            revision=checkpoint.revision,
            identity=_SHA256,
            model_type=checkpoint.config.model_type,
            weights=checkpoint.weight_count,
        ),
        scheme=scheme_entry(plan.scheme, plan.scheme.precision),
        device=device_entry(plan.device),
        tools={"edgekiln": __version__, **{name: tool_version(name) for name in tools}},
        files=tuple(FileEntry(path=name, size=size, sha256=_SHA256) for name, size in sorted(files.items())),
        tensors=tensor_entries(plan),
    )
