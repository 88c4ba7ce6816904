"""The engine's benchmark runs, and what it compares is what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln.checkpoint import EMBEDDED, open_checkpoint
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.cells import look_ahead
from edgekiln.pipelines.forecast import forecast
from edgekiln.pipelines.plan import make_plan

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = ("--runs=1", "--steps=3", "--children=1", "--many", "2", "4", "--builds=2", "--plans", "3", "--megabytes=4")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = tmp_path_factory.mktemp("benchmark")
    options = [*TINY, "--scratch", str(place), "--json", str(place / "found.json")]
    command = [sys.executable, str(BENCHMARKS / "engine.py"), "overhead", "noop", "plan", "hash", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.iterdir()] == ["found.json"]
    return done.stdout, json.loads((place / "found.json").read_text())


@pytest.mark.slow
def test_every_part_has_a_table_and_its_samples(measured):
    text, found = measured
    assert found["schema"] == "edgekiln.benchmark-engine/1"
    assert found["machine"]["processor"] in text
    for title in found["parts"]:
        assert f"### {title}\n\n| " in text
    assert len(found["parts"]) == 6


@pytest.mark.slow
def test_the_engine_costs_something_and_all_of_it_is_somewhere(measured):
    parts = measured[1]["parts"]
    for kind in parts["Overhead per step"].values():
        (direct,), (engine,), (again,) = (kind["seconds"][name] for name in ("directly", "engine", "again"))
        assert min(direct, engine, again) > 0
    phases = parts["Where it goes: 3 steps, each writes a file"]["seconds"]
    assert all(seconds[0] > 0 for seconds in phases.values())
    assert {"the step itself", "put: fsync of files and folders", "put: the entry, written and fsynced"} <= set(phases)


@pytest.mark.slow
def test_the_run_with_nothing_to_make_makes_nothing(measured):
    found = measured[1]["parts"]["A run with nothing to make"]
    # For two builds: export, validation and latency each; the reference, its latency and the baseline.
    assert (found["builds"], found["results"], found["began_again"]) == (2, 9, 0)
    assert found["peak_memory_bytes"] > 30 << 20


def test_a_matrix_has_as_many_builds_as_asked_for_and_no_two_have_an_artifact_in_common(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from engine_matrix import write_matrix

    pipeline, targets = write_matrix(tmp_path, 230, per_target=100)
    plan = make_plan(str(pipeline), formats=EXPORTERS, flags={"checkpoint": EMBEDDED, "targets": str(targets)})
    assert len(plan.builds) == 230
    assert {build.format for build in plan.builds} == {"gguf", "onnx"}
    outlook = look_ahead(plan)
    assert not outlook.reasons
    assert outlook.checkpoint.identity == open_checkpoint(EMBEDDED).identity
    # The baseline of ONNX comes on top; GGUF's are builds of the matrix.
    assert sum(step.kind == "export" for step in forecast(plan, outlook).steps) == 231
