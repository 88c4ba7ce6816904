"""A task in a process of its own: what it returns, and every way it can go wrong."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgekiln.errors import StepError, UnsupportedError
from edgekiln.process import Json, Limits, run_task

MODULE = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
from edgekiln.errors import UnsupportedError
from edgekiln.process import serve

def echo(request):
    print("to the log", flush=True)
    return {"got": request, "environment": os.environ.get("PROBE")}

def refuse(request):
    raise UnsupportedError("this one cannot")

def stumble(request):
    raise ZeroDivisionError("by zero")

def crash(request):
    os.kill(os.getpid(), signal.SIGSEGV)

def leave(request):
    os._exit(9)

def hang(request):
    Path(request["pid"]).write_text(str(os.getpid()))
    time.sleep(60)

def grow(request):
    blocks = []
    while True:
        blocks.append(bytearray(os.urandom(1)) * (8 << 20))
        time.sleep(0.01)

def other_version(request):
    Path(sys.argv[2]).write_text(json.dumps({"schema": "edgekiln.task/999", "value": {}}))
    os._exit(0)

if __name__ == "__main__":
    serve({name: globals()[name] for name in
           ("echo", "refuse", "stumble", "crash", "leave", "hang", "grow", "other_version")})
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "probe_tasks.py").write_text(MODULE)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def start(task: str, request: Json | None = None, **options: object) -> Json:
        return run_task("probe_tasks", task, request or {}, log=tmp_path / "logs" / "log.txt", **options)  # type: ignore[arg-type]

    return start


def test_result_comes_back_and_output_goes_to_the_log(run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("echo", {"a": [1, "ü"]}, environment={"PROBE": "yes"}) == {"got": {"a": [1, "ü"]}, "environment": "yes"}
    assert (tmp_path / "logs" / "log.txt").read_text().startswith("to the log")
    assert capfd.readouterr() == ("", "")


def test_reported_errors_keep_their_class(run) -> None:
    with pytest.raises(UnsupportedError, match="this one cannot"):
        run("refuse")


def test_other_exceptions_become_step_errors_with_a_traceback_in_the_log(run, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="ZeroDivisionError: by zero"):
        run("stumble")
    assert "Traceback" in (tmp_path / "logs" / "log.txt").read_text()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_crash_names_its_signal(run) -> None:
    with pytest.raises(StepError, match="SIGSEGV|code 139"):
        run("crash")


def test_leaving_without_a_result_is_an_error(run) -> None:
    with pytest.raises(StepError, match="without a result"):
        run("leave")


def test_a_hanging_child_is_ended_in_time(run, tmp_path: Path) -> None:
    import psutil

    begin = time.monotonic()
    with pytest.raises(StepError, match="did not finish within 3 s"):
        run("hang", {"pid": str(tmp_path / "pid")}, limits=Limits(seconds=3))
    assert time.monotonic() - begin < 20
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_growing_child_is_ended(run) -> None:
    with pytest.raises(StepError, match="used more than 200 MiB"):
        run("grow", limits=Limits(seconds=60, memory_bytes=200 << 20))


def test_an_answer_of_another_version_is_refused(run) -> None:
    with pytest.raises(StepError, match="another version"):
        run("other_version")


def test_nothing_is_left_behind(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    run("echo")
    with pytest.raises(StepError):
        run("leave")
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces")
def test_a_missing_module_is_an_error_with_the_log(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="exit code 1 without a result; its log is"):
        run_task("edgekiln.no_such_module", "x", {}, log=tmp_path / "log")
