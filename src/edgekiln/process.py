"""Running a task in a process of its own.

Native runtimes print, leak, crash and hold singletons, so each runs in a fresh interpreter: a JSON request goes
in, a JSON result comes out, everything it prints goes to a log, and time and memory have limits. A crash of the
child is an error of the step, never of the build.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekiln import errors
from edgekiln.errors import EdgekilnError, MachineError, StepError

_SCHEMA: Final = "edgekiln.task/1"
_POLL_SECONDS: Final = 0.05

#: Set in every child: nothing we start reports to anyone, and none of it needs the network.
QUIET_ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUTF8": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

Json = dict[str, Any]
Task = Callable[[Json], Json]


@dataclass(frozen=True)
class Limits:
    """Bounds of one child.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory of the whole process tree, or None for no limit.
    """

    seconds: float = 3600
    memory_bytes: int | None = None


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started."""
    import psutil

    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _tree_rss(pid: int) -> int:
    """Return the resident bytes of a process and its children; 0 when it is gone."""
    import psutil

    try:
        parent = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


@functools.cache
def _network_isolation() -> tuple[str, ...]:
    """Return the command prefix that runs a program without a network, or nothing where that is not allowed."""
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    if unshare is None:
        return ()
    prefix = (unshare, "--net", "--map-root-user")
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=30).returncode == 0
    return prefix if allowed else ()


def _wait(process: subprocess.Popen[bytes], name: str, limits: Limits, log: Path) -> None:
    deadline = time.monotonic() + limits.seconds
    pause = 0.005
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise StepError(f"{name} did not finish within {limits.seconds:g} s and was ended; its log is {log}")
        if limits.memory_bytes is not None and _tree_rss(process.pid) > limits.memory_bytes:
            raise StepError(
                f"{name} used more than {limits.memory_bytes / 2**20:.0f} MiB and was ended; its log is {log}"
            )
        time.sleep(pause)
        pause = min(_POLL_SECONDS, pause * 2)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _result(path: Path, process: subprocess.Popen[bytes], name: str, log: Path) -> Json:
    """Return what the child answered, or raise what it raised."""
    try:
        answer = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        raise StepError(f"{name} {_describe_exit(process.returncode)} without a result; its log is {log}") from None
    match answer:
        case {"schema": str(schema), "value": dict(value)} if schema == _SCHEMA:
            return value
        case {"schema": str(schema), "error": {"kind": str(kind), "message": str(message)}} if schema == _SCHEMA:
            known = getattr(errors, kind, None)
            if isinstance(known, type) and issubclass(known, EdgekilnError):
                raise known(message)
            raise StepError(f"{name} failed: {kind}: {message}; its log is {log}")
        case _:
            raise StepError(f"{name} answered in another version than {_SCHEMA}; its log is {log}")


def run_task(
    module: str,
    task: str,
    request: Mapping[str, object],
    *,
    log: Path,
    limits: Limits | None = None,
    network: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Json:
    """Run `task` of the task table in `module` in a fresh interpreter and return its result.

    Args:
        module: A module whose main block calls `serve`.
        task: Key of its task table.
        request: JSON-serializable arguments.
        log: File that gets all that the child prints; it is appended to.
        limits: Time and memory.
        network: False takes the network away where the system allows it (Linux), for native libraries that
            might report home.
        environment: Variables for the child beside `QUIET_ENVIRONMENT`.

    Raises:
        EdgekilnError: What the task raised, or a StepError if it crashed, hung or grew beyond its limits.
    """
    limits = limits or Limits()
    name = f"{task} ({module.rpartition('.')[2]})"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgekiln-task-") as scratch, log.open("ab") as output:
        request_path, result_path = Path(scratch) / "request.json", Path(scratch) / "result.json"
        request_path.write_text(json.dumps({"schema": _SCHEMA, "task": task, "request": dict(request)}))
        prefix = () if network else _network_isolation()
        process = subprocess.Popen(
            # -P: an `onnx.py` in the working directory, which may be a downloaded checkpoint, is never imported.
            [*prefix, sys.executable, "-P", "-m", module, str(request_path), str(result_path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Temporary files of a child that is killed go with its scratch directory.
            env={**os.environ, **QUIET_ENVIRONMENT, "TMPDIR": scratch, "TEMP": scratch, **(environment or {})},
            start_new_session=os.name != "nt",
        )
        try:
            _wait(process, name, limits, log)
            return _result(result_path, process, name, log)
        finally:
            if process.poll() is None:
                _kill_tree(process)


def _exit_with_parent() -> None:
    """End this process when its parent is gone, so that a killed build leaves nothing running."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def serve(tasks: Mapping[str, Task]) -> None:
    """Run the one task that the command line names; the main block of a task module calls this."""
    request_path, result_path = Path(sys.argv[1]), Path(sys.argv[2])
    if os.name != "nt":
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    order = json.loads(request_path.read_bytes())
    answer: Json
    try:
        answer = {"schema": _SCHEMA, "value": tasks[order["task"]](order["request"])}
    except EdgekilnError as error:
        answer = {"schema": _SCHEMA, "error": {"kind": type(error).__name__, "message": str(error)}}
    except ImportError as error:
        traceback.print_exc()
        message = (
            f"{error.name or 'a library'} cannot be imported ({error}); install Edgekiln with its dependencies again"
        )
        answer = {"schema": _SCHEMA, "error": {"kind": MachineError.__name__, "message": message}}
    except OSError as error:
        traceback.print_exc()
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        kind, message = (MachineError, "the disk is full; free space") if full else (StepError, str(error))
        answer = {"schema": _SCHEMA, "error": {"kind": kind.__name__, "message": message}}
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the parent turns it into a StepError
        traceback.print_exc()
        answer = {"schema": _SCHEMA, "error": {"kind": type(error).__name__, "message": str(error)}}
    partial = result_path.with_suffix(".partial")
    partial.write_text(json.dumps(answer))
    partial.replace(result_path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # native destructors of half of the runtimes crash or hang at interpreter exit
