"""Running a task in a process of its own.

Native runtimes print, leak, crash and hold singletons, so each runs in a fresh interpreter: a JSON request goes
in, a JSON result comes out, everything it prints goes to a log, and time and memory have limits. A crash of the
child is an error of the step, never of the build.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekiln import errors
from edgekiln.errors import ChildError, EdgekilnError, InterruptError, MachineError, StepError
from edgekiln.redact import without_secrets

_SCHEMA: Final = "edgekiln.task/1"
_POLL_SECONDS: Final = 0.05
#: Between two looks at a child's memory: a look walks over all processes, which would disturb what is timed.
_LOOK_SECONDS: Final = 0.5
#: Characters of a log that `showing_log` prints.
_SHOWN_LOG: Final = 10_000
#: What Windows ends a process with (ntstatus.h) where POSIX sends a signal.
_WINDOWS_CRASHES: Final = {
    0xC0000005: "an access violation",
    0xC000001D: "an illegal instruction",
    0xC00000FD: "a stack overflow",
    0xC0000135: "a DLL that is missing",
    0xC0000374: "a corrupted heap",
    0xC0000409: "its own abort",
}

#: What a file system refuses a child, whatever it was about to do.
_MACHINE_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
#: Set in every child: nothing we start reports to anyone, and none of it needs the network or an account.
QUIET_ENVIRONMENT: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
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


class Watch:
    """Follows a step through all the processes that it starts: ends it, bounds it as a whole, sees its memory.

    Args:
        seconds: Time that the step may take from now on; None for no limit beside that of each process.

    Attributes:
        cancelled: When it is set, the process that runs is ended, and so is the step.
        peak_bytes: Highest resident memory of one process tree, as far as it was looked at.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.cancelled = threading.Event()
        self.peak_bytes = 0
        self._seconds = seconds
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds

    def check(self, name: str, log: Path) -> None:
        """Raise if the step is to end.

        Raises:
            InterruptError: Somebody wants it.
            ChildError: Its time is up.
        """
        if self.cancelled.is_set():
            raise InterruptError(f"{name} was ended with the run")
        if time.monotonic() > self._deadline:
            raise ChildError(f"{name} was ended, since its step took longer than {self._seconds:g} s; its log is {log}")


@dataclass(frozen=True)
class Limits:
    """Bounds of one child.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory of the whole process tree, or None for no limit.
        watch: Of the step that it belongs to.
    """

    seconds: float = 3600
    memory_bytes: int | None = None
    watch: Watch | None = None


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started."""
    import psutil

    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.Error:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
    process.kill()  # where the system does not let us look at processes; does nothing to one that has ended
    process.wait()


def tree_rss(pid: int) -> int:
    """Return the resident bytes of a process and its children; 0 when it is gone or the system does not tell."""
    import psutil

    try:
        parent = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))
    except psutil.Error:
        return 0


@functools.cache
def network_isolation() -> tuple[str, ...]:
    """Return the command prefix that runs a program without a network, or nothing where that is not allowed."""
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    if unshare is None:
        return ()
    prefix = (unshare, "--net", "--map-root-user")
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=30).returncode == 0
    return prefix if allowed else ()


def _wait(process: subprocess.Popen[bytes], name: str, limits: Limits, log: Path) -> None:
    deadline = time.monotonic() + limits.seconds
    pause, next_look = 0.005, 0.0
    while process.poll() is None:
        now = time.monotonic()
        if limits.watch is not None:
            limits.watch.check(name, log)
        if now > deadline:
            raise ChildError(f"{name} did not finish within {limits.seconds:g} s and was ended; its log is {log}")
        if limits.memory_bytes is None or now < next_look:
            time.sleep(pause)
            pause = min(_POLL_SECONDS, pause * 2)
            continue
        next_look = now + _LOOK_SECONDS
        used = tree_rss(process.pid)
        if limits.watch is not None:
            limits.watch.peak_bytes = max(limits.watch.peak_bytes, used)
        if used > limits.memory_bytes:
            raise ChildError(
                f"{name} used more than {limits.memory_bytes / 2**20:.0f} MiB and was ended; its log is {log}"
            )


def _describe_exit(code: int) -> str:
    if code in _WINDOWS_CRASHES:
        return f"was ended by {_WINDOWS_CRASHES[code]}"
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
        raise ChildError(f"{name} {_describe_exit(process.returncode)} without a result; its log is {log}") from None
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


@dataclass(frozen=True)
class Child:
    """A task that runs in a process of its own.

    Attributes:
        process: The interpreter.
        name: What errors call it.
        log: The file that gets what it prints.
        answer: The file that it leaves its result in.
    """

    process: subprocess.Popen[bytes]
    name: str
    log: Path
    answer: Path

    def result(self) -> Json:
        """Return what the child, which has ended, answered, or raise what it raised."""
        return _result(self.answer, self.process, self.name, self.log)

    def finish(self, limits: Limits) -> Json:
        """Wait for the child within limits, then do as `result` does; time counts from here on."""
        _wait(self.process, self.name, limits, self.log)
        return self.result()


def _child_environment(scratch: str, more: Mapping[str, str]) -> dict[str, str]:
    """Return what a child finds: no token, no way to report, and one place for temporary files, which goes with it."""
    return {**without_secrets(os.environ), **QUIET_ENVIRONMENT, "TMPDIR": scratch, "TEMP": scratch, **more}


@contextmanager
def started(
    module: str,
    task: str,
    request: Mapping[str, object],
    *,
    log: Path,
    network: bool = False,
    environment: Mapping[str, str] | None = None,
    piped: bool = False,
) -> Iterator[Child]:
    """Start a task, give it, and end it with all that it started when the block is left. See `run_task`.

    Args:
        module: See `run_task`; so are the others.
        task: Key of its task table.
        request: JSON-serializable arguments.
        log: Gets what the child prints.
        network: Whether it may use the network.
        environment: More variables.
        piped: Standard input and output are pipes rather than nothing and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgekiln-task-") as scratch, log.open("ab") as output:
        request_path, result_path = Path(scratch) / "request.json", Path(scratch) / "result.json"
        order = {"schema": _SCHEMA, "task": task, "parent": os.getpid(), "request": dict(request)}
        request_path.write_text(json.dumps(order), encoding="utf-8")
        prefix = () if network else network_isolation()
        process = subprocess.Popen(
            # -P: an `onnx.py` in the working directory, which may be a downloaded checkpoint, is never imported.
            [*prefix, sys.executable, "-P", "-m", module, str(request_path), str(result_path)],
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            env=_child_environment(scratch, environment or {}),
            start_new_session=os.name != "nt",  # Ctrl-C is ours to handle, not the child's
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        try:
            yield Child(process, f"{task} ({module.rpartition('.')[2]})", log, result_path)
        finally:
            if process.poll() is None:
                _kill_tree(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent to a child that is gone
                        pipe.close()


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
        EdgekilnError: What the task raised, or a ChildError if it crashed, hung or grew beyond its limits.
    """
    limits = limits or Limits()
    with started(module, task, request, log=log, network=network, environment=environment) as child:
        return child.finish(limits)


@contextmanager
def showing_log(log: Path) -> Iterator[None]:
    """Print the end of a child's log on standard error when the block fails, for a log that goes with its folder."""
    try:
        yield
    except EdgekilnError:
        if log.exists():
            sys.stderr.write(log.read_text(encoding="utf-8", errors="backslashreplace")[-_SHOWN_LOG:])
        raise


def _wait_until_gone(pid: int) -> None:
    """Return when no process has this number."""
    import psutil

    while psutil.pid_exists(pid):
        time.sleep(0.5)


def _exit_with_parent(pid: int) -> None:
    """End this process when its parent is gone, so that a killed build leaves nothing running.

    Args:
        pid: The process that asked for this one. Windows needs it: a parent that is gone keeps its number there, and
            the python.exe of a virtual environment starts another one in between.
    """
    if os.name == "nt":
        _wait_until_gone(pid)
    else:
        while os.getppid() == pid:  # it may have gone while this process was still importing
            time.sleep(0.5)
    os._exit(1)


def serve(tasks: Mapping[str, Task]) -> None:
    """Run the one task that the command line names; the main block of a task module calls this."""
    request_path, result_path = Path(sys.argv[1]), Path(sys.argv[2])
    order = json.loads(request_path.read_bytes())
    threading.Thread(target=_exit_with_parent, args=(order["parent"],), daemon=True).start()
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
        kind = MachineError if error.errno in _MACHINE_FAULTS else StepError
        message = "the disk is full; free space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else str(error)
        answer = {"schema": _SCHEMA, "error": {"kind": kind.__name__, "message": message}}
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the parent turns it into a StepError
        traceback.print_exc()
        answer = {"schema": _SCHEMA, "error": {"kind": type(error).__name__, "message": str(error)}}
    partial = result_path.with_suffix(".partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(result_path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # native destructors of half of the runtimes crash or hang at interpreter exit
