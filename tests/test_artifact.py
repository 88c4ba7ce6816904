import errno
import json

import pytest

from edgekiln.artifact import (
    CHECKSUMS,
    MANIFEST,
    CheckpointEntry,
    DeviceEntry,
    Manifest,
    SchemeEntry,
    list_files,
    seal,
    sha256_file,
    staged,
    write_atomically,
)
from edgekiln.errors import MachineError, UsageError


def manifest(directory):
    return Manifest(
        format="gguf",
        container_type="Q4_0",
        checkpoint=CheckpointEntry(name=None, revision=None, identity="0" * 64, model_type="qwen3", weights=1),
        scheme=SchemeEntry(requested="int4", precision="q4_0"),
        tools={"edgekiln": "0"},
        files=list_files(directory),
        tensors=(),
    )


def test_a_finished_directory_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged(out) as directory:
        (directory / "a").write_text("x")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_fault_leaves_nothing(tmp_path, fault):
    with pytest.raises(fault), staged(tmp_path / "out") as directory:
        (directory / "a").write_text("x")
        raise fault
    assert not list(tmp_path.iterdir())


def test_an_empty_directory_may_be_the_destination(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with staged(out) as directory:
        (directory / "a").write_text("x")
    assert (out / "a").read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_nothing_is_overwritten(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "directory":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="exists already"), staged(out):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_full_disk_is_the_machines_fault(tmp_path):
    with pytest.raises(MachineError, match="the disk is full"), staged(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_destination_below_a_file_is_the_machines_fault(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(MachineError, match="cannot write .* is no directory"),
        staged(tmp_path / "file" / "out"),
    ):
        pass


def test_checksums_cover_every_file_and_the_manifest_reads_back(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    sealed = manifest(tmp_path)
    seal(tmp_path, sealed)
    listed = dict(reversed(line.split("  ")) for line in (tmp_path / CHECKSUMS).read_text().splitlines())
    assert set(listed) == {"a", "sub/b", MANIFEST}
    assert all(sha256_file(tmp_path / name) == digest for name, digest in listed.items())
    text = (tmp_path / MANIFEST).read_text()
    assert json.loads(text)["schema"] == "edgekiln.manifest/1"
    assert Manifest.model_validate_json(text) == sealed


def test_a_reader_sees_the_old_or_the_new_text(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_manifest_from_before_devices_reads_as_one_for_the_cpu(tmp_path):
    document = json.loads(manifest(tmp_path).model_dump_json(by_alias=True))
    assert document.pop("device") == {"execution_provider": "cpu", "context_length": None}
    assert Manifest.model_validate(document).device == DeviceEntry()
