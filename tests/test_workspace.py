import subprocess
import sys

import pytest

from edgekiln.artifact import CheckpointEntry, Manifest, SchemeEntry, list_files, seal
from edgekiln.errors import MachineError, StepError
from edgekiln.pipelines.workspace import publish, workspace


def artifact(directory, text="weights"):
    directory.mkdir(parents=True)
    (directory / "model").write_text(text)
    manifest = Manifest(
        format="gguf",
        container_type="Q4_0",
        checkpoint=CheckpointEntry(name=None, revision=None, identity="0" * 64, model_type="qwen3", weights=1),
        scheme=SchemeEntry(requested="int4", precision="q4_0"),
        tools={},
        files=list_files(directory),
        tensors=(),
    )
    seal(directory, manifest)
    return manifest


def test_scratch_space_is_empty_at_first_and_gone_at_last(tmp_path):
    out = tmp_path / "out"
    (out / ".edgekiln").mkdir(parents=True)
    (out / ".edgekiln" / "left by a killed run").write_text("x")
    (out / "cell" / ".0123.abc.partial").mkdir(parents=True)
    with workspace(out) as scratch:
        assert not list(scratch.iterdir())
        (scratch / "big").write_text("x")
    (out / "cell").rmdir()
    assert not [path for path in out.rglob("*") if path.name != ".edgekiln.lock"]


def test_scratch_space_goes_when_the_run_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), workspace(tmp_path / "out") as scratch:
        (scratch / "big").write_text("x")
        raise KeyboardInterrupt
    assert not (tmp_path / "out" / ".edgekiln").exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    program = "import sys, pathlib\nfrom edgekiln.pipelines.workspace import workspace\n"
    program += "with workspace(pathlib.Path(sys.argv[1])): pass\n"
    with workspace(tmp_path / "out"):
        other = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
    assert "MachineError: another edgekiln runs in" in other.stderr


def test_a_folder_that_cannot_be_made_is_the_machines_fault(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot write"), workspace(tmp_path / "file" / "out"):
        pass


def test_an_artifact_is_named_by_its_content_and_latest_leads_to_it(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"  # equal in content to "c" and different from it
    one = publish(first, artifact(first), tmp_path / "out", "cell", keep=False)
    two = publish(second, artifact(second, "other"), tmp_path / "out", "cell", keep=False)
    again = publish(tmp_path / "c", artifact(tmp_path / "c"), tmp_path / "out", "cell", keep=False)
    assert one == again != two
    assert (tmp_path / "out" / "cell" / "latest").resolve() == one.resolve()
    assert (two / "model").read_text() == "other"


def test_an_artifact_that_was_changed_afterwards_is_noticed(tmp_path):
    made = publish(tmp_path / "a", artifact(tmp_path / "a"), tmp_path / "out", "cell", keep=False)
    (made / "model").unlink()
    (made / "model").write_text("changed")
    with pytest.raises(StepError, match="was changed after it was built"):
        publish(tmp_path / "b", artifact(tmp_path / "b"), tmp_path / "out", "cell", keep=False)


def test_an_artifact_of_two_builds_is_whole_in_both(tmp_path):
    made = publish(tmp_path / "a", artifact(tmp_path / "a"), tmp_path / "out", "one", keep=False)
    manifest = Manifest.model_validate_json((made / "manifest.json").read_bytes())
    other = publish(made, manifest, tmp_path / "out", "two", keep=True)
    assert (made / "model").read_text() == (other / "model").read_text() == "weights"
