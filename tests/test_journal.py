"""Exports that are interrupted anywhere go on after their last whole tensor, and end with the bytes of others."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import make_checkpoint
from edgekiln import journal as journal_module
from edgekiln.checkpoint import Checkpoint, open_checkpoint
from edgekiln.exporters import EXPORTERS
from edgekiln.exporters.base import ExportPlan, Quantize
from edgekiln.grids import Grid, QuantizedRows
from edgekiln.journal import DoneCounter, Extent, Journal, Layout, Written
from edgekiln.quantizers import quantize
from edgekiln.scheme import Scheme
from edgekiln.tensor_files import TensorFiles

EXPORTS = {
    "gguf fp16": ("gguf", Scheme("fp16")),
    "gguf q4_0": ("gguf", Scheme("q4_0")),
    "gguf q4_k_m": ("gguf", Scheme("q4_k_m")),
    "onnx fp16": ("onnx", Scheme("fp16")),
    "onnx int4": ("onnx", Scheme("int4")),
    "onnx int4 asymmetric, the tied head int8": (
        "onnx",
        Scheme("int4", symmetric=False, embedding_precision="int4", head_precision="int8"),
    ),
    "onnx nf4": ("onnx", Scheme("nf4")),
    "foundry-local int4": ("foundry-local", Scheme("int4")),
}


class StopError(Exception):
    """The end of an attempt."""


class StoppingJournal(Journal):
    """Ends the attempt when a tensor more than `count` is whole, before that is noted."""

    def __init__(self, path: Path, count: int) -> None:
        super().__init__(path)
        self.left = count

    def complete(self, name: str, written: Iterable[Written]) -> None:
        if not self.left:
            raise StopError(name)
        self.left -= 1
        super().complete(name, written)


class CountingQuantize:
    """Quantizes, and counts; raises in every call after the first `limit`."""

    def __init__(self, limit: int | None = None) -> None:
        self.calls = 0
        self.limit = limit
        self._lock = threading.Lock()

    def __call__(self, rows: NDArray[np.float32], grid: Grid) -> QuantizedRows:
        with self._lock:
            if self.calls == self.limit:
                raise StopError
            self.calls += 1
        return quantize(rows, grid)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One layer, with biases; query, key and value are one tensor in ONNX, embeddings and head another."""
    directory = tmp_path_factory.mktemp("small") / "checkpoint"
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_heads": 2, "num_layers": 1}
    return open_checkpoint(str(make_checkpoint(directory, "qwen2", **shape)))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(
    checkpoint: Checkpoint, plan: ExportPlan, directory: Path, journal: Journal | None, how: Quantize = quantize
) -> dict[str, bytes]:
    directory.mkdir(exist_ok=True)
    EXPORTERS[plan.format].write(checkpoint, plan, directory, how, journal=journal)
    return content(directory)


def tensor_lines(path: Path) -> list[dict[str, object]]:
    return [line for raw in path.read_bytes().splitlines() if "tensor" in (line := json.loads(raw))]


def names(path: Path) -> list[object]:
    return [line["tensor"] for line in tensor_lines(path)]


# --- exporters


@pytest.mark.parametrize(("container", "scheme"), EXPORTS.values(), ids=EXPORTS)
def test_stopped_at_every_tensor_in_turn_the_bytes_are_those_of_an_undisturbed_export(
    small: Checkpoint, tmp_path: Path, container: str, scheme: Scheme
) -> None:
    plan = EXPORTERS[container].plan(small, scheme)
    expected = write(small, plan, tmp_path / "undisturbed", None)
    path, attempts = tmp_path / "journal", 0
    while True:
        journal = StoppingJournal(path, 1)
        try:
            written = write(small, plan, tmp_path / "out", journal)
        except StopError:
            attempts += 1
            assert (journal.done_before, journal.done_now) == (attempts - 1, 1)
        else:
            break
    assert written == expected
    assert sorted(names(path)) == sorted(tensor.name for tensor in plan.tensors)  # each once, over all attempts
    assert [line["attempt"] for line in tensor_lines(path)] == list(range(1, len(plan.tensors) + 1))


def test_what_is_done_is_not_quantized_again_wherever_the_quantizer_stopped(small: Checkpoint, tmp_path: Path) -> None:
    plan = EXPORTERS["gguf"].plan(small, Scheme("q4_0"))
    grids = {tensor.name for tensor in plan.tensors if not isinstance(tensor.storage, str)}
    expected = write(small, plan, tmp_path / "undisturbed", None)
    for count in range(len(grids)):
        path, out = tmp_path / f"{count}.journal", tmp_path / f"{count}"
        with pytest.raises(StopError):
            write(small, plan, out, Journal(path), CountingQuantize(count))
        first = names(path)
        counting = CountingQuantize()
        assert write(small, plan, out, Journal(path), counting) == expected
        assert counting.calls == len(grids - set(first))
        assert len(names(path)) == len(set(names(path))) == len(plan.tensors)
        counting = CountingQuantize(0)
        assert write(small, plan, out, Journal(path), counting) == expected
        assert counting.calls == 0


@pytest.mark.parametrize(("container", "precision"), [("gguf", "q4_0"), ("onnx", "int4")])
def test_what_a_power_loss_took_is_made_again_and_nothing_else(
    small: Checkpoint, tmp_path: Path, container: str, precision: str
) -> None:
    plan = EXPORTERS[container].plan(small, Scheme(precision))
    out, path = tmp_path / "out", tmp_path / "journal"
    expected = write(small, plan, out, Journal(path))
    lines = tensor_lines(path)
    zeroed = lines[1], lines[4]
    for line in zeroed:
        file, offset, nbytes, _ = line["parts"][-1]  # type: ignore[index]
        with (out / file).open("r+b") as data:
            data.seek(offset + nbytes // 2)
            data.write(bytes(nbytes - nbytes // 2))
    last = max((part[1] + part[2], line["tensor"]) for line in lines for part in line["parts"])  # type: ignore[attr-defined]
    os.truncate(out / file, last[0] - 1)
    if container == "gguf":  # before all tensors
        with (out / file).open("r+b") as data:
            data.write(bytes(100))
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b"parts")])  # the last line is torn
    (out / "manifest.json").write_text("of an attempt that ended after it")
    (out / "model-Q8_0.gguf").write_text("of another plan")
    (out / "folder").mkdir()
    lost = {lines[1]["tensor"], lines[4]["tensor"], last[1], lines[-1]["tensor"]}
    journal = Journal(path)
    assert write(small, plan, out, journal) == expected
    assert journal.done_now == len(lost)
    assert journal.done_before == len(plan.tensors) - len(lost)
    assert len(names(path)) == len(set(names(path))) == len(plan.tensors)


# --- the journal itself, on two files with gaps, of three tensors of which one lies in both

LAYOUT = Layout(
    {"one.bin": 96, "two.bin": 40},
    {
        "a": (Extent("one.bin", 10, 20),),
        "b": (Extent("one.bin", 32, 30), Extent("two.bin", 0, 8)),
        "c": (Extent("two.bin", 16, 20),),
    },
)


def fill(directory: Path, journal: Journal | None, layout: Layout = LAYOUT) -> list[str]:
    """Write the header and every tensor that is not done, in two pieces; return which these were."""
    directory.mkdir(exist_ok=True)
    written = []
    with TensorFiles(directory, layout, journal) as files:
        files.put("one.bin", 0, b"header")
        for name, extents in layout.extents.items():
            if files.is_done(name):
                continue
            for part, extent in enumerate(extents):
                files.write(name, name.encode() * 3, part)
                files.write(name, name.encode() * (extent.nbytes - 3), part)
            files.complete(name)
            written.append(name)
    return written


EXPECTED = {
    "one.bin": b"header" + bytes(4) + b"a" * 20 + bytes(2) + b"b" * 30 + bytes(34),
    "two.bin": b"b" * 8 + bytes(8) + b"c" * 20 + bytes(4),
}


def test_without_a_journal_the_files_are_those_of_the_layout(tmp_path: Path) -> None:
    assert fill(tmp_path / "out", None) == ["a", "b", "c"]
    assert content(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("count", range(4))
def test_a_second_attempt_writes_what_the_first_did_not_complete(tmp_path: Path, count: int) -> None:
    if count < 3:
        with pytest.raises(StopError):
            fill(tmp_path / "out", StoppingJournal(tmp_path / "journal", count))
    else:
        fill(tmp_path / "out", StoppingJournal(tmp_path / "journal", count))
    assert fill(tmp_path / "out", Journal(tmp_path / "journal")) == ["a", "b", "c"][count:]
    assert content(tmp_path / "out") == EXPECTED


def test_gaps_are_made_anew(tmp_path: Path) -> None:
    fill(tmp_path / "out", Journal(tmp_path / "journal"))
    for name, data in EXPECTED.items():
        (tmp_path / "out" / name).write_bytes(data.replace(b"\0", b"?") + b"behind the end")
    with TensorFiles(tmp_path / "out", LAYOUT, Journal(tmp_path / "journal")) as files:
        assert files.is_done("a")
        assert files.is_done("b")
        assert files.is_done("c")
        files.put("one.bin", 0, b"header\0\0\0\0")
    assert content(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("what", ["key", "name", "place", "size", "order"])
def test_a_journal_of_another_plan_counts_for_nothing(tmp_path: Path, what: str) -> None:
    extents, sizes = dict(LAYOUT.extents), dict(LAYOUT.sizes)
    match what:
        case "name":
            extents["d"] = extents.pop("c")
        case "place":
            extents["c"] = (Extent("two.bin", 17, 20),)
        case "size":
            sizes["two.bin"] = 41
        case "order":
            extents["a"] = extents.pop("a")
    fill(tmp_path / "out", Journal(tmp_path / "journal", "before"), Layout(sizes, extents))
    (tmp_path / "out" / "three.bin").write_bytes(b"of that plan")
    journal = Journal(tmp_path / "journal", "now" if what == "key" else "before")
    assert fill(tmp_path / "out", journal) == ["a", "b", "c"]
    assert content(tmp_path / "out") == EXPECTED
    assert {line["attempt"] for line in tensor_lines(tmp_path / "journal")} == {1}


def _line(name: str, *parts: tuple[object, ...], **more: object) -> bytes:
    return json.dumps({"tensor": name, "attempt": 1, "parts": parts, **more}).encode() + b"\n"


_C = ("two.bin", 16, 20, zlib.crc32(b"c" * 20))
HOSTILE = {
    "noted twice": _line("c", _C) * 2,
    "unknown": _line("d", _C),
    "elsewhere": _line("c", ("one.bin", 10, 20, zlib.crc32(b"a" * 20))),
    "another file": _line("c", ("../secret", 16, 20, _C[3])),
    "outside the file": _line("c", ("two.bin", 1 << 70, 20, _C[3])),
    "too short": _line("c", ("two.bin", 16, 19, zlib.crc32(b"c" * 19))),
    "overlapping": _line("c", _C, ("two.bin", 17, 19, zlib.crc32(b"c" * 19))),
    "backwards": _line("c", _C, ("two.bin", 36, -4, 0)),
    "no parts": _line("c"),
    "a part that is none": _line("c", _C, ("two.bin",)),
    "parts are no list": b'{"tensor": "c", "attempt": 1, "parts": {"two.bin": 16}}\n',
    "other checksum": _line("c", (*_C[:3], 1)),
    "no number": _line("c", ("two.bin", 16.0, 20, _C[3])),
    "a number without end": b'{"attempt": ' + b"9" * 5000 + b"}\n",
    "more keys": _line("c", _C, more=1),
    "no JSON": b"\xff\xfe{]\n",
    "nested": b"[" * 50_000 + b"\n",
    "many values": b"[" + b"0," * 200_000 + b"0]\n",
    "torn": _line("c", _C)[:-1],
    "other line ends": _line("c", _C)[:-1] + b"\r",
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_makes_its_tensor_count_as_not_done_and_no_other(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    fill(tmp_path / "out", Journal(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'{"tensor":"c"')] + line)
    assert fill(tmp_path / "out", Journal(path)) == ["c"]
    assert content(tmp_path / "out") == EXPECTED
    assert sorted(names(path)) == ["a", "b", "c"]
    assert fill(tmp_path / "out", Journal(path)) == []


def test_bytes_may_be_noted_in_any_pieces(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    fill(tmp_path / "out", Journal(path))
    whole = path.read_bytes()
    pieces = [("two.bin", 16 + at, 5, zlib.crc32(b"c" * 5)) for at in (10, 0, 15, 5)]
    path.write_bytes(whole[: whole.index(b'{"tensor":"c"')] + _line("c", *pieces))
    assert fill(tmp_path / "out", Journal(path)) == []


def test_a_file_that_cannot_be_a_journal_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    fill(tmp_path / "out", Journal(path))
    monkeypatch.setattr(journal_module, "_MAX_BYTES", path.stat().st_size - 1)
    assert fill(tmp_path / "out", Journal(path)) == ["a", "b", "c"]
    path.write_bytes(b"")
    assert fill(tmp_path / "out", Journal(path)) == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and links")
@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "missing"])
def test_tensors_of_a_file_that_is_none_are_written_again(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    fill(out, Journal(tmp_path / "journal"))
    (tmp_path / "victim").write_bytes(b"untouched")
    (out / "two.bin").unlink()
    match kind:
        case "pipe":
            os.mkfifo(out / "two.bin")
        case "link":
            (out / "two.bin").symlink_to(tmp_path / "victim")
        case "directory":
            (out / "two.bin").mkdir()
    assert fill(out, Journal(tmp_path / "journal")) == ["b", "c"]
    assert content(out) == EXPECTED
    assert (tmp_path / "victim").read_bytes() == b"untouched"


# --- durability and progress


def test_files_are_synchronized_now_and_then_and_a_fault_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino), raising=False)
    fill(tmp_path / "out", Journal(tmp_path / "journal"))
    files = [tmp_path / "out" / "one.bin", tmp_path / "out" / "two.bin", tmp_path / "journal"]
    assert synced[:3] == [path.stat().st_ino for path in files]  # the journal after what it speaks of

    def broken(descriptor: int) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr(os, "fdatasync", broken, raising=False)
    with pytest.raises(OSError, match="no disk"):
        fill(tmp_path / "other", Journal(tmp_path / "other.journal"))


def test_a_fault_of_the_last_synchronization_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr(journal_module, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fdatasync", broken, raising=False)
    with pytest.raises(OSError, match="no disk"):
        fill(tmp_path / "out", Journal(tmp_path / "journal"), Layout({"one.bin": 30}, {"a": LAYOUT.extents["a"]}))


def test_a_short_attempt_is_not_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda _: pytest.fail("synchronized"), raising=False)
    fill(tmp_path / "out", Journal(tmp_path / "journal"))


def test_a_counter_follows_a_journal_while_it_grows_and_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    counter, seen = DoneCounter(path), []

    class Watched(StoppingJournal):
        def complete(self, name: str, written: Iterable[Written]) -> None:
            seen.append(counter.count())
            super().complete(name, written)

    assert counter.count() == 0
    with pytest.raises(StopError):
        fill(tmp_path / "out", Watched(path, 2))
    assert seen == [0, 1, 2]
    with path.open("ab") as file:
        file.write(b'{"tensor":"c","att')
    assert counter.count() == 2  # a line counts when it is whole
    seen.clear()
    (tmp_path / "out" / "one.bin").write_bytes(b"lost")
    fill(tmp_path / "out", Watched(path, 3))
    assert seen == [0, 1, 2]
    assert (counter.count(), DoneCounter(path).count()) == (3, 3)
    (tmp_path / "longer").write_bytes(b'{"tensor":"a"}\n' * 99)
    (tmp_path / "longer").replace(path)
    assert counter.count() == 99
