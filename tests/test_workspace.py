import subprocess
import sys

import pytest

from edgekiln.artifact import list_files
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.record import Ingredients, Record
from edgekiln.errors import MachineError, StepError
from edgekiln.pipelines.workspace import point_to, publish, published, workspace

MEMORY = HashMemory(None)


def artifact(directory, text="weights"):
    """Return a directory with files and the record of the step that made it."""
    (directory / "part").mkdir(parents=True)
    (directory / "model").write_text(text)
    (directory / "part" / "more").write_text("more")
    ingredients = Ingredients(kind="export", code="", tools={}, inputs={}, parameters={})
    record = Record(
        key=ingredients.key, name="x.export", ingredients=ingredients, files=list_files(directory), seconds=1.0
    )
    return directory, record


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
    first, second = artifact(tmp_path / "a"), artifact(tmp_path / "b", "other")
    out = tmp_path / "out"
    one, two = publish(*first, out, "cell", MEMORY), publish(*second, out, "cell", MEMORY)
    assert one != two
    for made in (one, two, one):
        point_to(made)
        assert (out / "cell" / "latest").resolve() == made.resolve()
    assert (two / "model").read_text() == "other"


def test_what_is_published_is_found_again_whole(tmp_path):
    files, record = artifact(tmp_path / "a")
    assert published(record, tmp_path / "out", "cell", MEMORY) is None
    made = publish(files, record, tmp_path / "out", "cell", MEMORY)
    assert published(record, tmp_path / "out", "cell", MEMORY) == made
    assert published(record, tmp_path / "out", "another", MEMORY) is None
    (made / "stray").write_text("x")
    assert published(record, tmp_path / "out", "cell", MEMORY) is None


def test_a_copy_is_a_file_of_its_own(tmp_path):
    files, record = artifact(tmp_path / "a")
    made = publish(files, record, tmp_path / "out", "cell", MEMORY)
    assert (made / "model").stat().st_nlink == 1
    assert (made / "model").stat().st_ino != (files / "model").stat().st_ino


def test_an_artifact_that_was_changed_afterwards_is_noticed(tmp_path):
    files, record = artifact(tmp_path / "a")
    made = publish(files, record, tmp_path / "out", "cell", MEMORY)
    (made / "model").write_text("changed")
    assert published(record, tmp_path / "out", "cell", MEMORY) is None
    with pytest.raises(StepError, match="was changed after it was built"):
        publish(files, record, tmp_path / "out", "cell", MEMORY)
