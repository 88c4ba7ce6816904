"""The benchmark of exports runs, and its figures are of what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln.checkpoint import embedded_directory

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "export.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(BENCHMARK), str(embedded_directory()), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_it_measures_whole_processes_and_writes_all_samples(tmp_path: Path) -> None:
    done = run("--rounds", "2", "--only", "copy", "gguf q4_0", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "| gguf q4_0 | " in done.stdout
    (part,) = json.loads((tmp_path / "out.json").read_text())["parts"].values()
    copied, made = part["copy"], part["gguf q4_0"]
    source = sum(path.stat().st_size for path in embedded_directory().iterdir() if path.is_file())
    assert copied["written"] == [source] * 2
    assert len(set(made["written"])) == 1
    assert 0 < made["written"][0] < source
    for samples in part.values():
        assert all(value > 0 for values in samples.values() for value in values)
        assert {len(values) for values in samples.values()} == {2}
    assert min(made["memory"]) > 50e6  # Python with NumPy, at least


def test_an_unknown_case_is_refused() -> None:
    done = run("--only", "gguf q5")
    assert done.returncode == 1
    assert "there is no case 'gguf q5'; choose among 'copy'" in done.stderr


@pytest.mark.slow
def test_growth_is_measured_on_checkpoints_that_it_makes() -> None:
    done = run("--rounds", "1", "--sizes", "0.5")
    assert done.returncode == 0, done.stderr
    assert "| 0.5 GB: gguf q4_0 | " in done.stdout
