"""`edgekiln plan`: its formats, what fits a device, and options that contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from checkpoints import make_checkpoint
from edgekiln.cli import cli
from edgekiln.errors import EdgekilnError, MachineError, UsageError
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.fit_document import FitDocument
from edgekiln.pipelines.schemas import json_schema


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "no cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments], standalone_mode=False)


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    assert not list(Path().iterdir())
    return result.output


def document(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(*arguments))
    return found


def test_the_table_has_size_memory_and_fit_of_each_build_and_totals() -> None:
    text = printed("devices")
    headings = "build runtime precision options artifact on device of fit cache"
    assert " ".join(text.splitlines()[0].split()) == headings
    (line,) = [line for line in text.splitlines() if line.startswith("raspberry-pi-5-int4 ")]
    assert line.split()[-8:] == ["3.68", "MB", *line.split()[-6:-4], "6.00", "GiB", "fits", "?"]
    (line,) = [line for line in text.splitlines() if line.startswith("copilot-pc-npu-int4 ")]
    assert line.split()[-2:] == ["unsupported", "–"]
    assert "Building takes up to" in text


def test_the_table_reads_well_at_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekiln.pipelines.plan_table.table_width", lambda: 100)
    lines = printed("devices").splitlines()
    end = next(index for index, line in enumerate(lines) if line.startswith("copilot-pc-npu-int4: "))
    assert max(map(len, lines[:end])) <= 100


def test_json_has_predictions_steps_and_totals() -> None:
    assert document("--json") == document("--format", "json")
    found = document("--json")
    assert found["schema"] == "edgekiln.plan/1"
    gguf = next(build for build in found["builds"] if build["id"] == "gguf-cpu-int4")
    assert gguf["keep"] is True
    prediction = gguf["prediction"]
    assert 3.6e6 < prediction["artifact_bytes"] < 3.7e6
    memory = prediction["memory"]
    assert memory["total"] == memory["weights"] + memory["cache"] + memory["overhead"]
    assert prediction["fit"] == "unknown"  # the generic targets say no memory
    steps = {step["id"]: step for step in found["steps"]}
    assert steps["gguf-cpu-int4.validate"]["needs"] == ["reference", "gguf-cpu-int4.publish"]
    assert {step["cached"] for step in found["steps"]} == {"unknown"}
    assert found["totals"]["peak_disk_bytes"] >= found["totals"]["kept_disk_bytes"] > 0


def test_the_steps_are_those_that_a_run_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    made = CliRunner().invoke(cli, ["build", "--dry-run", "--json"], standalone_mode=False)
    assert made.exception is None, made.exception
    kinds = {step["step"]: step["kind"] for step in json.loads(made.stdout)["steps"]}
    assert {step["id"]: step["kind"] for step in json.loads(run("--json").stdout)["steps"]} == kinds


def test_a_pipeline_may_keep_an_artifact_or_not(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "schema: edgekiln.pipeline/1\nname: p\nbuilds:\n  - {target: gguf-cpu, precision: int4, keep: false}\n"
    )
    found = json.loads(run("p.yaml", "--json").output)
    assert found["builds"][0]["keep"] is False
    assert found["builds"][0]["origins"]["keep"] == "p.yaml:4:41"
    assert found["totals"]["kept_disk_bytes"] < found["totals"]["peak_disk_bytes"]
    assert " stay" in run("p.yaml").output


def test_matrices() -> None:
    entries = document("--format", "github-matrix")["include"]
    assert [entry["id"] for entry in entries][:2] == ["onnx-cpu-int4", "onnx-cpu-int8"]
    text = printed("--format", "gitlab-matrix", "--checkpoint", "tiny-qwen3", "--target", "gguf-cpu")
    assert "- gguf-cpu-int4" in text
    assert "onnx-cpu" not in text
    assert '- edgekiln build default --checkpoint tiny-qwen3 --only "$BUILD_ID"' in text


def test_a_matrix_needs_no_checkpoint() -> None:
    assert "onnx-cpu-int4" in printed("--format", "github-matrix", "--checkpoint", "./not-fetched-yet")


def test_every_precision_of_a_device_is_shown_with_size_and_fit() -> None:
    found = document("--fit", "raspberry-pi-5", "--checkpoint", "tiny-qwen3", "--json")
    assert (found["schema"], found["target"], found["memory"]) == ("edgekiln.fit/1", "raspberry-pi-5", 6 * 2**30)
    by_name = {entry["requested"]: entry for entry in found["precisions"]}
    assert set(by_name) == {*EXPORTERS["gguf"].precisions, "nf4"}
    assert by_name["int4"]["container_type"] == "Q4_0"
    assert by_name["int4"]["prediction"]["fit"] == "fits"
    assert "iq4_nl" in by_name["nf4"]["unsupported"]
    sizes = [entry["prediction"]["artifact_bytes"] for entry in found["precisions"] if entry["prediction"]]
    assert sizes == sorted(sizes, reverse=True)
    text = printed("--fit", "raspberry-pi-5")
    assert "fits" in text
    assert "6.00 GiB for the process, 2,048 tokens of context" in text
    assert "no limit on memory given, 2,048 tokens" in printed("--fit", "gguf-cpu")


def test_the_fit_in_json_follows_its_schema() -> None:
    import jsonschema

    schema = json_schema("fit")
    for device in ("raspberry-pi-5", "gguf-cpu", "copilot-pc-npu"):
        found = document("--fit", device, "--json")
        jsonschema.Draft202012Validator(schema).validate(found)
        assert found == FitDocument.model_validate(found).model_dump(mode="json", by_alias=True)


def test_a_precision_that_the_provider_does_not_hold_is_shown_only_where_the_target_says_why() -> None:
    names = {entry["requested"] for entry in document("--fit", "windows-directml", "--json")["precisions"]}
    assert names == {"fp16", "int4", "int8", "nf4"}
    reasons = printed("--fit", "copilot-pc-npu")
    assert "Qualcomm's NPU" in reasons


def test_shapes_that_do_not_divide_are_reasons_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c", "qwen2", hidden_size=96, num_heads=3, num_kv_heads=1)
    text = run("--fit", "windows-directml", "--checkpoint", "./c").output
    assert "int4: group size 128 does not divide the 96 columns" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tabel"], "did you mean 'table'"),
        (["--json", "--format", "github-matrix"], "contradict each other"),
        (["--explain", "gguf-cpu-int4", "--format", "gitlab-matrix"], "--explain shows one build"),
        (["--explain", "gguf-cpu-int4", "--fit", "gguf-cpu"], "--explain shows one build"),
        (["--fit", "gguf-cpu", "--format", "github-matrix"], "--fit makes no jobs"),
        (["default", "--fit", "gguf-cpu"], "leave out the pipeline"),
        (["--fit", "gguf-cpu", "--target", "gguf-cpu"], "leave out the pipeline"),
        (["--fit", "gguf-cpuu"], "did you mean 'gguf-cpu'"),
        (["--fit", "gguf-cpu", "--checkpoint", "./nowhere"], "no checkpoint"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], message: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_a_model_that_is_not_here_fits_nowhere_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    error = run("--fit", "gguf-cpu", "--checkpoint", "nobody/has-this").exception
    assert isinstance(error, MachineError)
    assert isinstance(error, EdgekilnError)
    assert "not on this machine yet" in str(error)
