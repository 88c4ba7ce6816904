"""The command line as scripts meet it: exit codes, one sentence, and standard output that holds results only."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from least import ENVIRONMENT


def edgekiln(*arguments, cwd, environment=None):
    return subprocess.run(
        [sys.executable, "-m", "edgekiln", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
    )


def test_help_imports_no_framework():
    program = (
        "import sys\nfrom edgekiln.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'numpy', 'torch', 'onnxruntime', 'transformers', 'pydantic', 'rich'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[]\n")


def test_planning_imports_no_framework_and_writes_nothing(tmp_path):
    program = (
        "import sys\nfrom edgekiln.__main__ import main\ntry: main(['plan', '--json'])\nexcept SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'onnxruntime', 'transformers', 'mobius', 'llama_cpp'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.endswith("[]\n")
    assert not list(tmp_path.iterdir())


def test_the_default_plan_has_every_format(tmp_path):
    shown = edgekiln("plan", "--json", cwd=tmp_path)
    builds = json.loads(shown.stdout)["builds"]
    levels = {build["id"]: build["accuracy_level"] for build in builds}
    assert {level for name, level in levels.items() if not name.startswith("gguf")} == {4}  # the CPU provider's own
    assert {level for name, level in levels.items() if name.startswith("gguf")} == {None}
    ids = {build["id"] for build in builds}
    assert ids >= {
        "onnx-cpu-int4",
        "onnx-cpu-int8",
        "onnx-cpu-nf4",
        "gguf-cpu-int4",
        "gguf-cpu-int8",
        "gguf-cpu-q4-k-m",
    }
    assert "foundry-local-cpu-int4" in ids


def pipeline(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(f"schema: edgekiln.pipeline/1\nname: p\n{text}")
    return path


CELL = "builds:\n  - {target: gguf-cpu, precision: int4}\n"
EXPORT = ("--out", "out", "--format", "onnx", "--precision", "int4")

BAD = {
    "no such directory": (["export", "./nowhere", *EXPORT], 2, "./nowhere"),
    "hub id offline": (["export", "org/name", *EXPORT, "--offline"], 5, "not in the local Hub cache"),
    "misspelt format": (["export", "tiny-qwen3", *EXPORT, "--format", "onx"], 2, "did you mean 'onnx'"),
    "misspelt precision": (["export", "tiny-qwen3", *EXPORT, "--precision", "int44"], 2, "did you mean 'int4'"),
    "group does not divide": (["export", "tiny-qwen3", *EXPORT, "--group-size", "48"], 2, "group_size 48"),
    "nf4 to gguf": (
        ["export", "tiny-qwen3", "--out", "out", "--format", "gguf", "--precision", "nf4"], 3, "iq4_nl"),
    "unknown command": (["bild"], 2, "bild"),
    "unknown option": (["build", "--fast"], 2, "--fast"),
    "misspelt target": (["build", "--target", "gguf-cpuu"], 2, "did you mean 'gguf-cpu'"),
    "no such pipeline": (["build", "nightly"], 2, "nightly"),
    "misspelt setting": (["plan", "--set", "thread=2"], 2, "did you mean 'threads'"),
    "setting out of bounds": (["plan", "--set", "threads=0"], 2, "threads"),
    "no such artifact": (["validate", "nowhere.gguf", "--reference", "tiny-qwen3"], 4, "nowhere.gguf"),
    "misspelt gate": (
        ["validate", "x.gguf", "--reference", "tiny-qwen3", "--gate", "mean_kl<=1"], 2, "did you mean 'mean_kld'"),
    "unknown schema": (["schema", "pipelines"], 2, "did you mean 'pipeline'"),
    "unknown target": (["targets", "onx-cpu"], 2, "did you mean 'onnx-cpu'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_with_the_right_code_and_leaves_nothing(tmp_path, arguments, code, message):
    shown = edgekiln(*arguments, cwd=tmp_path)
    assert shown.returncode == code, shown.stderr
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not shown.stdout
    assert not list(tmp_path.iterdir())


YAML = {
    "misspelt key": (f"{CELL}thread: 3\n", "p.yaml:5:1: unknown key 'thread'"),
    "misspelt precision": ("builds:\n  - {target: gguf-cpu, precision: int44}\n", "p.yaml:4:35"),
    "misspelt target": ("builds:\n  - {target: gguf-cpuu, precision: int4}\n", "did you mean 'gguf-cpu'"),
    "duplicate key": (f"{CELL}name: q\n", "name"),
}


@pytest.mark.parametrize(("text", "message"), YAML.values(), ids=YAML)
def test_a_mistake_in_a_pipeline_names_its_place(tmp_path, text, message):
    path = pipeline(tmp_path, text)
    shown = edgekiln("build", path.name, cwd=tmp_path)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["p.yaml"]


def test_an_unsupported_cell_is_reported_and_ends_with_3_unless_allowed(tmp_path):
    for allow, code in (("false", 3), ("true", 0)):
        cell = f"builds:\n  - {{target: gguf-cpu, precision: nf4, allow_unsupported: {allow}}}\n"
        shown = edgekiln("build", pipeline(tmp_path, cell).name, "--json", cwd=tmp_path)
        assert shown.returncode == code, shown.stderr
        (build,) = json.loads(shown.stdout)["builds"]
        assert (build["status"], build["artifact"]) == ("unsupported", None)
        assert "iq4_nl" in build["reason"]
        assert json.loads((tmp_path / "artifacts" / "report.json").read_text()) == json.loads(shown.stdout)


def test_a_group_that_does_not_divide_is_found_before_anything_is_written(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen2", hidden_size=896)
    text = "builds:\n  - {target: onnx-cpu, precision: int4, group_size: 256}\n"
    shown = edgekiln("build", pipeline(tmp_path, text).name, "--checkpoint", "./c", cwd=tmp_path)
    assert shown.returncode == 2
    assert "group size 256 does not divide the 896 columns" in shown.stderr
    assert not (tmp_path / "artifacts").exists()


def test_a_damaged_weight_fails_its_build_and_nothing_half_written_stays(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen3", hidden_size=128, dtype="F32")
    data = bytearray((tmp_path / "c" / "model.safetensors").read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    (tmp_path / "c" / "model.safetensors").write_bytes(data)
    shown = edgekiln("export", "./c", *EXPORT, cwd=tmp_path)
    assert shown.returncode == 4
    assert "1 NaN and 0 infinite weights" in shown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_an_artifact_inside_the_checkpoint_is_refused(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen3", hidden_size=128)
    shown = edgekiln("export", "./c", *EXPORT, "--out", "c/out", cwd=tmp_path)
    assert shown.returncode == 2
    assert "inside the checkpoint" in shown.stderr


def test_a_bug_ends_with_70_and_says_what_to_file(tmp_path):
    program = (
        "import edgekiln.pipelines.targets as t\nfrom edgekiln.__main__ import main\n"
        "t.load_targets = lambda path: 1 / 0\nmain(['targets'])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert shown.returncode == 70
    assert "a bug in Edgekiln: ZeroDivisionError" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.skipif(os.name == "nt", reason="there, a directory in use cannot be deleted")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("1 / 0", 70, "a bug in Edgekiln: ZeroDivisionError"),
        ("open('some/file')", 5, "the working directory has been deleted; change into one that exists"),
    ],
)
def test_a_deleted_working_directory_does_not_break_the_report(tmp_path, error, code, said):
    (tmp_path / "gone").mkdir()
    program = (
        f"import os, edgekiln.pipelines.targets as t\nfrom edgekiln.__main__ import main\nos.rmdir(os.getcwd())\n"
        f"t.load_targets = lambda path: {error}\nmain(['targets', '--targets', 'x.yaml'])"
    )
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "gone")
    assert shown.returncode == code, shown.stderr
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "RecursionError"])
def test_a_bug_ends_with_70_even_where_it_cannot_be_described(tmp_path, raised):
    program = (
        f"import edgekiln.host, edgekiln.pipelines.targets as t\nfrom edgekiln.__main__ import main\n"
        f"def stop(): raise {raised}\nedgekiln.host.tool_versions = stop\n"
        f"t.load_targets = lambda path: 1 / 0\nmain(['targets'])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert shown.returncode == 70
    assert shown.stderr == f"edgekiln: a bug in Edgekiln: ZeroDivisionError; {raised} while describing it\n"


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("moment", ["reference", "exporting"])
def test_an_interrupt_ends_with_130_and_leaves_no_process_and_nothing_half_written(tmp_path, moment):
    import signal

    import psutil

    process = subprocess.Popen(
        [sys.executable, "-m", "edgekiln", "build"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = []
    deadline = time.monotonic() + 120
    if moment == "exporting":
        assert process.stderr is not None
        while "predictions and replies" not in process.stderr.readline():
            assert time.monotonic() < deadline
        time.sleep(1)
        children = psutil.Process(process.pid).children(recursive=True)
    else:
        while not children and time.monotonic() < deadline:
            time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True)
        assert children
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert "edgekiln: interrupted" in errors
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    whole = {path.parent for path in tmp_path.rglob("SHA256SUMS")}  # written last; the directory is renamed after that
    left = {path for path in tmp_path.rglob("*") if path.is_file() and path.parent not in whole}
    assert not {path.name for path in left if path.name.endswith((".partial", ".gguf", ".data"))}
    assert {path.name for path in left if path.name.startswith(".")} <= {".edgekiln.lock"}
    assert json.loads((tmp_path / "artifacts" / "report.json").read_text())["builds"][0]["status"] == "error"


def test_export_makes_one_artifact_and_json_holds_its_manifest_only(tmp_path):
    shown = edgekiln(
        "export", "tiny-qwen3", "--format", "gguf", "--precision", "INT4", "--out", "out", "--json", cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    manifest = json.loads(shown.stdout)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["scheme"]["requested"], manifest["container_type"]) == ("int4", "Q4_0")
    again = edgekiln("export", "tiny-qwen3", "--format", "gguf", "--precision", "int4", "--out", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_asymmetric_int4_in_gguf_is_q4_1(tmp_path):
    arguments = ("--format", "gguf", "--precision", "int4", "--asymmetric", "--out", "out", "--json")
    shown = edgekiln("export", "tiny-qwen3", *arguments, cwd=tmp_path)
    assert json.loads(shown.stdout)["container_type"] == "Q4_1"


@pytest.mark.parametrize("name", ["pipeline", "targets", "report", "manifest"])
def test_schemas_are_json_schemas(tmp_path, name):
    schema = json.loads(edgekiln("schema", name, cwd=tmp_path).stdout)
    assert "properties" in schema


def test_targets_are_listed_and_shown(tmp_path):
    assert "gguf-cpu" in edgekiln("targets", cwd=tmp_path).stdout
    shown = edgekiln("targets", "gguf-cpu", cwd=tmp_path).stdout
    assert "llama.cpp" in shown
    assert "q4_0" in shown
    entries = json.loads(edgekiln("targets", "--json", cwd=tmp_path).stdout)
    assert {"onnx-cpu", "gguf-cpu", "foundry-local-cpu"} <= {entry["name"] for entry in entries}


def test_a_targets_file_in_the_folder_replaces_the_shipped_one_as_a_whole(tmp_path):
    (tmp_path / "targets.yaml").write_text(
        "schema: edgekiln.targets/1\ntargets:\n  kiosk:\n    description: A kiosk\n    format: gguf\n"
        '    runtime: {name: llama.cpp, version: ">=0.3"}\n'
    )
    entries = json.loads(edgekiln("targets", "--json", cwd=tmp_path).stdout)
    assert [entry["name"] for entry in entries] == ["kiosk"]
    assert edgekiln("plan", cwd=tmp_path).returncode == 2  # the default pipeline's targets are not in it


def test_a_module_in_the_working_directory_is_never_run(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen3", hidden_size=64)
    for name in ("onnx", "numpy", "torch", "transformers", "tokenizers"):
        (tmp_path / "c" / f"{name}.py").write_text("raise SystemExit('code of the checkpoint ran')")
    cell = "builds:\n  - {target: gguf-cpu, precision: int8}\n"
    path = pipeline(tmp_path, cell)
    script = Path(sys.executable).with_name("edgekiln")
    shown = subprocess.run(
        [str(script), "build", str(path), "--checkpoint", ".", "--out", str(tmp_path / "out")],
        cwd=tmp_path / "c",
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "".join(log.read_text(errors="replace") for log in (tmp_path / "out" / "logs").iterdir())
    assert "code of the checkpoint ran" not in shown.stderr + logs
    assert shown.returncode in {0, 1}, shown.stderr  # random weights may miss a gate


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--json"], ["schema", "report"], ["targets"]])
def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path, arguments):
    command = " ".join([f"{sys.executable} -m edgekiln", *arguments])
    shown = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "0\n"
    assert not shown.stderr


def test_a_report_of_yesterday_does_not_survive_a_run_that_fails(tmp_path):
    cell = "builds:\n  - {target: gguf-cpu, precision: nf4}\n"
    path = pipeline(tmp_path, cell)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "report.json").write_text("yesterday")
    assert edgekiln("build", path.name, cwd=tmp_path).returncode == 3
    assert "yesterday" not in (tmp_path / "artifacts" / "report.json").read_text()


def test_plan_says_why_a_cell_cannot_be_built_from_the_checkpoints_shapes(tmp_path):
    make_checkpoint(tmp_path / "c", "qwen2", hidden_size=896)
    text = "builds:\n  - {target: onnx-cpu, precision: int4, group_size: 256}\n  - {target: gguf-cpu, precision: nf4}\n"
    shown = edgekiln("plan", pipeline(tmp_path, text).name, "--checkpoint", "./c", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    one, other = json.loads(shown.stdout)["builds"]
    assert "group size 256 does not divide the 896 columns" in one["unsupported"]
    assert "iq4_nl" in other["unsupported"]


def test_a_hub_checkpoint_that_is_not_here_is_planned_from_the_files_alone(tmp_path):
    shown = edgekiln("plan", "--checkpoint", "org/name", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "org/name is not on this machine yet" in shown.stdout


@pytest.mark.parametrize("source", ["org/a--b", "org/.."])
def test_a_malformed_hub_id_is_a_usage_error(tmp_path, source):
    shown = edgekiln("export", source, *EXPORT, cwd=tmp_path)
    assert shown.returncode == 2, shown.stderr
    assert "no Hub id" in shown.stderr
