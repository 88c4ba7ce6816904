"""Making an artifact in a process of its own, which can be limited and killed, and going on where a killed one was.

Started as `python -m edgekiln.pipelines.export_task` by `edgekiln.process.run_task`; paths in requests are absolute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.artifact import FileEntry, write_fault
from edgekiln.checkpoint import Checkpoint, open_resolved
from edgekiln.device import Device
from edgekiln.errors import MachineError
from edgekiln.exporters.base import ExportPlan
from edgekiln.journal import Journal, Layout, Written
from edgekiln.memory import peak_rss_bytes
from edgekiln.pipelines.export import artifact_tools, plan_export, write_artifact
from edgekiln.process import Json, Limits, Task, run_task, serve
from edgekiln.scheme import Scheme

#: A killed run's child notices within half a second, and then has a chunk or two to end.
_LOCK_SECONDS: Final = 30.0
#: It is written into the cache; see `edgekiln.engine.local_store`, which this does not import: it decides no byte.
_FIX: Final = "let EDGEKILN_CACHE name another directory"


@dataclass(frozen=True)
class ExportAnswer:
    """What became of an export.

    Attributes:
        files: Every file of the artifact but its manifest and checksums.
        tensors_before: Tensors that earlier attempts had completed.
        tensors_now: Tensors that this one completed.
        peak_memory_bytes: Highest resident memory of the process.
    """

    files: tuple[FileEntry, ...]
    tensors_before: int
    tensors_now: int
    peak_memory_bytes: int


def export_in_child(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    requested: str,
    directory: Path,
    journal: Path,
    *,
    log: Path,
    limits: Limits | None = None,
    threads: int | None = None,
) -> ExportAnswer:
    """Write an artifact with its manifest and checksums into a not yet visible directory, in a process of its own.

    Tensors that an earlier attempt with the same journal completed there are left as they are; everything else in the
    directory is made anew.

    Args:
        checkpoint: The source; its identity is not taken again.
        plan: What `plan_export` decided.
        requested: Precision as the user named it, before a target's mapping.
        directory: Is made if it is missing.
        journal: A file outside `directory`; see `edgekiln.journal.Journal`. A lock lies beside it.
        log: Gets what the process prints.
        limits: Time and memory.
        threads: Workers that read and quantize; None leaves it to the exporter.

    Raises:
        StepError: The weights hold what cannot be exported, or the process crashed, hung or grew beyond its limits.
        MachineError: The disk is full or cannot be written, or another process writes this artifact and goes on.
    """
    request = {
        "checkpoint": str(checkpoint.directory.absolute()),
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "identity": checkpoint.identity,
        "format": plan.format,
        "scheme": dataclasses.asdict(plan.scheme),
        "device": dataclasses.asdict(plan.device),
        "requested": requested,
        "directory": str(directory.absolute()),
        "journal": str(journal.absolute()),
        "threads": threads,
    }
    answer = run_task(__name__, "export", request, log=log, limits=limits)
    return ExportAnswer(**{**answer, "files": tuple(FileEntry(**entry) for entry in answer["files"])})


class _LoggedJournal(Journal):
    """Says in the step's log what was done before, and of each tensor when it is whole: the journal goes at the end."""

    def begin(self, directory: Path, layout: Layout) -> frozenset[str]:
        """Begin an attempt; see `Journal.begin`."""
        done = super().begin(directory, layout)
        _say(f"{len(done)} of {len(layout.extents)} tensors were done before")
        return done

    def complete(self, name: str, written: Iterable[Written]) -> None:
        """Note that a tensor is whole; see `Journal.complete`."""
        super().complete(name, written)
        _say(f"done: {name}")


def _say(text: str) -> None:
    """Print a line at once; that a full disk has no room for a log stops no export."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode("utf-8", "backslashreplace"))


def export(request: Json) -> Json:
    """Write and seal an artifact. Request: what `export_in_child` makes."""
    from filelock import FileLock, Timeout

    directory, path = Path(request["directory"]), Path(request["journal"])
    checkpoint = open_resolved(
        request["source"],
        Path(request["checkpoint"]),
        request["revision"],
        with_text=False,
        identity=request["identity"],
    )
    plan = plan_export(checkpoint, request["format"], Scheme.parse(request["scheme"]), Device(**request["device"]))
    journal = _LoggedJournal(path, _journal_key(checkpoint, plan))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_SECONDS):
            manifest = write_artifact(
                checkpoint, plan, request["requested"], directory, journal=journal, threads=request["threads"]
            )
    except Timeout:
        raise MachineError(
            f"another process has been writing {directory} for {_LOCK_SECONDS:g} s; wait until it is done, or end it"
        ) from None
    except OSError as error:
        raise write_fault(directory, error, _FIX) from error
    return {
        "files": [entry.model_dump() for entry in manifest.files],
        "tensors_before": journal.done_before,
        "tensors_now": journal.done_now,
        "peak_memory_bytes": peak_rss_bytes(),
    }


def _journal_key(checkpoint: Checkpoint, plan: ExportPlan) -> str:
    """Return what stands for all that decides the bytes of the artifact's tensors."""
    text = json.dumps([checkpoint.identity, repr(plan), artifact_tools(plan)])
    return hashlib.sha256(text.encode()).hexdigest()


TASKS: Final[Mapping[str, Task]] = MappingProxyType({"export": export})

if __name__ == "__main__":
    serve(TASKS)
