"""Exports in a process of its own: killed at random instants they end with the bytes of an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from checkpoints import change_weights, make_checkpoint
from edgekiln.artifact import CHECKSUMS, MANIFEST, Manifest
from edgekiln.checkpoint import Checkpoint, open_checkpoint, open_resolved
from edgekiln.device import Device
from edgekiln.errors import MachineError, StepError
from edgekiln.exporters.base import ExportPlan
from edgekiln.journal import DoneCounter
from edgekiln.pipelines import export_task
from edgekiln.pipelines.export import plan_export, write_artifact
from edgekiln.pipelines.export_task import ExportAnswer, export_in_child
from edgekiln.process import Json, Limits, started
from edgekiln.scheme import Scheme

#: The task with a quantizer that takes its time, so that there is something to kill.
SLOW = """
import time
from edgekiln.pipelines import export
from edgekiln.pipelines.export_task import TASKS
from edgekiln.process import serve

def slowly(rows, grid, quantize=export.quantize):
    time.sleep(0.02)
    return quantize(rows, grid)

export.quantize = slowly
if __name__ == "__main__":
    serve(TASKS)
"""


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def request(checkpoint: Checkpoint, plan: ExportPlan, into: Path) -> dict[str, Any]:
    """What `export_in_child` asks for, with the artifact and its journal in `into`."""
    return {
        "checkpoint": str(checkpoint.directory),
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "identity": checkpoint.identity,
        "format": plan.format,
        "scheme": vars(plan.scheme),
        "device": vars(plan.device),
        "requested": plan.scheme.precision,
        "directory": str(into / "out"),
        "journal": str(into / "journal"),
        "threads": 2,
    }


def in_child(checkpoint: Checkpoint, plan: ExportPlan, into: Path, **options: Any) -> ExportAnswer:
    return export_in_child(
        checkpoint, plan, plan.scheme.precision, into / "out", into / "journal", log=into / "log", **options
    )


def undisturbed(checkpoint: Checkpoint, plan: ExportPlan, into: Path) -> dict[str, bytes]:
    (into / "undisturbed").mkdir()
    write_artifact(checkpoint, plan, plan.scheme.precision, into / "undisturbed")
    return content(into / "undisturbed")


@pytest.mark.parametrize(("container", "precision", "kills"), [("gguf", "q4_0", 4), ("onnx", "int4", 1)])
def test_killed_at_random_instants_it_ends_with_the_same_bytes_and_no_tensor_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, precision: str, kills: int
) -> None:
    (tmp_path / "slow_export.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checkpoint, instants = open_checkpoint("tiny-qwen3"), random.Random(container)  # noqa: S311 - instants, no secrets
    plan = plan_export(checkpoint, container, Scheme(precision))
    expected = undisturbed(checkpoint, plan, tmp_path)
    counter, killed = DoneCounter(tmp_path / "journal"), 0
    for kill in range(kills):
        wanted = counter.count() + instants.randrange(len(plan.tensors) // (kills + 1)) + 1
        with started("slow_export", "export", request(checkpoint, plan, tmp_path), log=tmp_path / "log") as child:
            while counter.count() < wanted and child.process.poll() is None:
                time.sleep(0.002)
            time.sleep(instants.uniform(0, 0.02))
            child.process.kill()
            killed += child.process.wait() != 0
        assert killed == kill + 1
    before = counter.count()
    answer = in_child(checkpoint, plan, tmp_path)
    assert content(tmp_path / "out") == expected
    assert answer.tensors_before >= before >= kills
    assert answer.tensors_before + answer.tensors_now == len(plan.tensors)
    lines = [json.loads(line) for line in (tmp_path / "journal").read_bytes().splitlines()]
    times = Counter(line["tensor"] for line in lines if "tensor" in line)
    assert times == Counter(tensor.name for tensor in plan.tensors)
    assert {line["attempt"] for line in lines if "tensor" in line} >= {1, kills}


def test_the_answer_names_the_files_and_all_that_was_asked_reaches_them(tmp_path: Path) -> None:
    embedded = open_checkpoint("tiny-qwen3")
    checkpoint = open_resolved("org/tiny", embedded.directory, "0" * 40, with_text=False, identity="1" * 64)
    plan = plan_export(checkpoint, "gguf", Scheme("q4_1", symmetric=False, head_precision="q6_k"), Device("cuda", 256))
    answer = in_child(checkpoint, plan, tmp_path, threads=1)
    assert content(tmp_path / "out") == undisturbed(checkpoint, plan, tmp_path)
    manifest = Manifest.model_validate_json((tmp_path / "out" / MANIFEST).read_bytes())
    assert (manifest.checkpoint.name, manifest.checkpoint.revision) == ("org/tiny", "0" * 40)
    assert manifest.checkpoint.identity == "1" * 64
    assert (manifest.scheme.head_precision, manifest.device.context_length) == ("q6_k", 256)
    assert answer.files == manifest.files
    assert {entry.path for entry in answer.files} == set(content(tmp_path / "out")) - {MANIFEST, CHECKSUMS}
    assert (answer.tensors_before, answer.tensors_now) == (0, len(plan.tensors))
    assert answer.peak_memory_bytes > 50 << 20
    again = in_child(checkpoint, plan, tmp_path)  # killed after it was sealed, as it were
    assert again.files == answer.files
    assert (again.tensors_before, again.tensors_now) == (len(plan.tensors), 0)


@pytest.mark.parametrize("change", ["checkpoint", "scheme", "tools"])
def test_what_was_written_from_something_else_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    make_checkpoint(tmp_path / "c", num_layers=1)
    checkpoint = open_checkpoint(str(tmp_path / "c"))
    plan = plan_export(checkpoint, "gguf", Scheme("int8"))
    export_task.export(request(checkpoint, plan, tmp_path))
    match change:
        case "checkpoint":  # all places and sizes are the same
            change_weights(tmp_path / "c", "model.embed_tokens.weight", {0: b"\x80\x3f"})
            checkpoint = open_checkpoint(str(tmp_path / "c"))
        case "scheme":
            plan = plan_export(checkpoint, "gguf", Scheme("fp16"))
        case "tools":
            monkeypatch.setattr("edgekiln.pipelines.export.__version__", "0.0.1")
    answer = export_task.export(request(checkpoint, plan, tmp_path))
    assert (answer["tensors_before"], answer["tensors_now"]) == (0, len(plan.tensors))
    assert content(tmp_path / "out") == undisturbed(checkpoint, plan, tmp_path)


def test_two_never_write_one_artifact_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("tiny-qwen3")
    asked: Json = request(checkpoint, plan_export(checkpoint, "gguf", Scheme("q4_0")), tmp_path)
    monkeypatch.setattr(export_task, "_LOCK_SECONDS", 0.1)
    with (
        FileLock(tmp_path / "journal.lock"),
        pytest.raises(MachineError, match=r"another process has been writing .*out"),
    ):
        export_task.export(asked)
    assert list((tmp_path / "out").iterdir()) == []
    export_task.export(asked)


def test_faults_keep_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "c", num_layers=1)
    change_weights(tmp_path / "c", "model.norm.weight", {3: b"\xc0\x7f"})
    checkpoint = open_checkpoint(str(tmp_path / "c"))
    plan = plan_export(checkpoint, "gguf", Scheme("q4_0"))
    with pytest.raises(StepError, match=r"^model\.norm\.weight holds 1 NaN"):
        in_child(checkpoint, plan, tmp_path)
    monkeypatch.setattr("edgekiln.process._LOOK_SECONDS", 0.0)  # else it may be done before it is looked at
    with pytest.raises(StepError, match="used more than 1 MiB and was ended"):
        in_child(checkpoint, plan, tmp_path, limits=Limits(memory_bytes=1 << 20))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_task, "write_artifact", full)
    with pytest.raises(MachineError, match="the disk is full"):
        export_task.export(request(checkpoint, plan, tmp_path))
