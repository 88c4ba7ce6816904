"""The validator's benchmark runs, and its parts add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import artifact

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "validate.py"


@pytest.mark.slow
def test_the_share_of_our_own_is_what_the_runtime_leaves(tmp_path: Path) -> None:
    made = [str(artifact("gguf", "q4_0", tmp_path)), str(artifact("onnx", "int4", tmp_path))]
    found = tmp_path / "found.json"
    options = ["--rounds=1", "--profile=quick", "--set", "windows=2", "--set", "greedy_tokens=4", "--json", str(found)]
    command = [sys.executable, str(SCRIPT), "tiny-qwen3", *made, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    assert list(figures["artifacts"]) == made
    for name, one in figures["artifacts"].items():
        assert Path(name).name in done.stdout
        assert one["seconds"] == pytest.approx(one["runtime_seconds"] + one["own_seconds"])
        assert 0 < one["own_share"] < 1
        assert one["positions"] >= figures["scored_tokens"]
    assert 0 < figures["kept_bytes_per_token"] <= 2 * figures["float32_bytes_per_token"] + 64
