"""`edgekiln validate` as a command: what it takes, how it ends, what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import artifact, gguf_file

#: The least that still looks at everything.
LEAST = ("windows=1", "greedy_tokens=2", "decode_positions=2", "warmups=0", "max_spread=10", "threads=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, so that the reference runs once."""
    return tmp_path_factory.mktemp("cache")


def validate(path: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    settings = [argument for setting in LEAST for argument in ("--set", setting)]
    command = [sys.executable, "-m", "edgekiln", "validate", str(path), "--reference", "tiny-qwen3"]
    return subprocess.run(
        [*command, "--profile", "quick", *settings, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=cache,
        env={**os.environ, "EDGEKILN_CACHE": str(cache)},
    )


def test_a_sound_artifact_passes_and_every_view_is_written(cache: Path, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "q8_0", tmp_path))
    done = validate(path, cache, "--report", str(tmp_path / "report"), "--gate", "mean_kld <= 1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (build,) = report["builds"]
    assert build["status"] == "passed"
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == [
        "report.html", "report.json", "report.junit.xml", "report.md", "report.sarif",
    ]  # fmt: skip
    for part in ("conservation", "precision_built", "requirements", "parity", "latency"):
        assert build[part], part
    assert {gate["limit"] for gate in build["gates"] if gate["metric"] == "mean_kld"} == {"<= 1"}


def test_a_target_brings_its_runtime_and_gates(cache: Path, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "q8_0", tmp_path))
    done = validate(path, cache, "--target", "raspberry-pi-5", "--json")
    assert done.returncode == 0, done.stderr
    (build,) = json.loads(done.stdout)["builds"]
    assert build["target"] == "raspberry-pi-5"
    relative = [gate for gate in build["gates"] if "fp16_artifact" in gate["limit"]]
    assert relative
    assert all(gate["outcome"] == "not_measured" and not gate["binding"] for gate in relative)


def test_a_target_that_loads_another_format_is_unsupported(cache: Path, tmp_path: Path) -> None:
    done = validate(gguf_file(artifact("gguf", "q8_0", tmp_path)), cache, "--target", "onnx-cpu")
    assert done.returncode == 3
    assert "onnx-cpu loads onnx" in done.stderr


def test_a_truncated_file_cannot_be_read(cache: Path, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "q8_0", tmp_path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = validate(path, cache, "--json")
    assert done.returncode == 4, done.stderr
    (build,) = json.loads(done.stdout)["builds"]
    assert build["status"] == "failed"
    assert build["not_measured"]["parity"].startswith("the artifact was not run, because ")


def test_an_architecture_that_nobody_here_knows_is_unsupported(cache: Path, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "q8_0", tmp_path))
    path.write_bytes(path.read_bytes().replace(b"qwen3", b"llama", 1))
    done = validate(path, cache)
    assert done.returncode == 3, done.stderr
    assert "is of the architecture 'llama'" in done.stderr


def test_weights_of_another_model_fail(cache: Path, tmp_path: Path) -> None:
    path = gguf_file(artifact("gguf", "fp16", tmp_path))
    data = bytearray(path.read_bytes())
    data[-200_000:] = data[-400_000:-200_000]
    path.write_bytes(data)
    done = validate(path, cache, "--json")
    assert done.returncode == 1, done.stderr
    (build,) = json.loads(done.stdout)["builds"]
    found = [finding["id"] for check in build["structure"] for finding in check["findings"]]
    assert any(name.startswith("conservation/") for name in found)


def test_a_report_folder_that_cannot_be_is_said_before_anything_runs(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = validate(gguf_file(artifact("gguf", "q8_0", tmp_path)), cache, "--report", str(tmp_path / "file" / "x"))
    assert done.returncode == 5
    assert "report folder" in done.stderr
    assert "reference" not in done.stderr
