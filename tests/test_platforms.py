"""What no test can run here: other systems. So the calls that they lack are looked for, and taken away."""

import ast
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest

from checkpoints import make_checkpoint
from edgekiln import host, memory, process
from edgekiln.cgroup import CgroupLimits
from edgekiln.checkpoint import open_checkpoint
from edgekiln.pipelines import doctor_machine, workspace
from edgekiln.quantizers import ggml

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("src/edgekiln", "pipelines", "quantizers", "exporters", "validators")
    for path in (ROOT / folder).rglob("*.py")
)
#: What Windows or macOS lacks, by module.
LACKING = {
    "os": {
        "O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_NOATIME", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC",
        "POSIX_FADV_DONTNEED",
        "RWF_NOWAIT", "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WNOHANG", "WTERMSIG", "chown", "chroot", "confstr",
        "copy_file_range", "fchmod", "fchown", "fdatasync", "fork", "forkpty", "fpathconf", "fstatvfs", "getegid",
        "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getrandom", "getresuid",
        "getsid", "getuid", "killpg", "lchown", "lockf", "major", "memfd_create", "minor", "mkfifo", "mknod", "nice",
        "openpty", "pathconf", "pidfd_open", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread",
        "preadv", "pwrite", "pwritev", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sched_yield",
        "sendfile", "setgid", "setns", "setpgid", "setpriority", "setsid", "setuid", "splice", "statvfs", "sync",
        "sysconf", "tcgetpgrp", "ttyname", "uname", "unshare", "wait", "wait3", "wait4", "waitid",
    },
    "signal": {
        "ITIMER_REAL", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP",
        "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIG_BLOCK", "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask",
        "setitimer", "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo",
    },
    "time": {"clock_gettime", "clock_settime", "pthread_getcpuclockid", "tzset"},
}  # fmt: skip
#: Modules that Windows lacks.
LACKING_MODULES = {
    "crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"
}  # fmt: skip


def guards(name):
    """Return the texts of which one in the same function shows that the other systems were thought of."""
    present = (f'hasattr(os, "{name}")', f'getattr(os, "{name}"')
    return (*present, "sys.platform", "os.name", "except ImportError", "suppress(ImportError)")


def unguarded(text):
    """Return (line, name) of every call in a module that other systems lack, with nothing about them around it."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    def is_guarded(node, name):
        around = [f for f in functions if f.lineno <= node.lineno <= (f.end_lineno or 0)]
        own = "\n".join(ast.get_source_segment(text, f) or "" for f in around)
        return any(guard in own for guard in guards(name))

    for node in ast.walk(tree):
        found = []
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in LACKING.get(module, ()):
                found = [f"{module}.{name}"]
            case ast.ImportFrom(module=str(module), names=names):
                found = [f"{module}.{alias.name}" for alias in names if alias.name in LACKING.get(module, ())]
                found += [module] * (module in LACKING_MODULES)
            case ast.Import(names=names):
                found = [alias.name for alias in names if alias.name in LACKING_MODULES]
        for name in found:
            if not is_guarded(node, name.rpartition(".")[2]):
                yield node.lineno, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_calls_what_another_system_lacks(path):
    assert list(unguarded(path.read_text(encoding="utf-8"))) == []


def test_such_a_call_is_found():
    assert list(unguarded("import os\nn = os.sched_getaffinity(0)\n")) == [(2, "os.sched_getaffinity")]
    assert list(unguarded("def f():\n    import resource\n")) == [(2, "resource")]
    assert list(unguarded("from os import getuid\n")) == [(1, "os.getuid")]
    kept = 'def f():\n    if hasattr(os, "preadv"):\n        os.preadv()\n'
    assert list(unguarded(kept)) == []
    assert list(unguarded(f"{kept}def g():\n    os.preadv()\n")) == [(5, "os.preadv")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_file_is_read_and_written_as_utf_8(path):
    """Elsewhere Python would take the console's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr="read_text" | "write_text" as name), args=args, keywords=keywords):
                given = {keyword.arg for keyword in keywords}
                enough = "encoding" in given or (name == "read_text" and args) or None in given
                assert enough, f"{path.name}:{node.lineno}: {name} without an encoding"


def test_no_two_files_differ_in_case_alone_and_none_has_a_name_that_windows_reserves():
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    for folder in ("src", "pipelines", "quantizers", "exporters", "validators", "tests", "docs", "examples"):
        names = [p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts]
        assert len({name.lower() for name in names}) == len(names)
        assert not {Path(name).stem.lower() for name in names} & reserved


def test_cores_are_counted_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(host, "cgroup_limits", lambda: CgroupLimits(memory_bytes=None, cpus=None))
    assert host.logical_cores() == os.cpu_count()
    assert 1 <= host.physical_cores() <= host.logical_cores()


def test_weights_are_the_same_without_a_positional_read_and_from_many_threads(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "c", "qwen3", hidden_size=128)
    checkpoint = open_checkpoint(str(tmp_path / "c"), offline=True)
    with checkpoint.reader() as reader:
        wanted = {name: reader.rows(tensor, 0, tensor.rows) for name, tensor in checkpoint.tensors.items()}
    monkeypatch.delattr(os, "preadv", raising=False)
    with checkpoint.reader() as reader, ThreadPoolExecutor(4) as pool:
        tensors = [*checkpoint.tensors.items()] * 5
        found = pool.map(lambda item: (item[0], reader.rows(item[1], 0, item[1].rows)), tensors)
        for name, rows in found:
            np.testing.assert_array_equal(rows, wanted[name])


def test_the_newest_artifact_has_a_name_without_symbolic_links_too(tmp_path, monkeypatch):
    link, text = tmp_path / "latest", tmp_path / "latest.txt"
    workspace._point(link, "first")
    assert link.readlink() == Path("first")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", _refuse)
        workspace._point(link, "second")
    assert text.read_text(encoding="utf-8") == "second\n"
    assert not link.is_symlink()  # it led to what is no longer the newest
    workspace._point(link, "third")
    assert link.readlink() == Path("third")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_link_that_cannot_be_replaced_leaves_no_other_behind(tmp_path, monkeypatch):
    """As on Windows, where a link to a directory cannot take the place of another."""
    workspace._point(tmp_path / "latest", "first")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _refuse_links)
        workspace._point(tmp_path / "latest", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.txt"]


def _refuse(*_, **__):
    raise OSError(1, "a required privilege is not held by the client")


def _refuse_links(path, target):
    if path.is_symlink():
        raise PermissionError(13, "access is denied")
    os.replace(path, target)  # noqa: PTH105 - the original


def test_peak_memory_is_known_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "nowhere")
    assert 1 << 20 < memory.peak_rss_bytes() < 1 << 40


@pytest.mark.parametrize(
    ("cpuinfo", "model", "name"),
    [
        ("model name\t: AMD EPYC 7763 64-Core Processor\n", "", "AMD EPYC 7763 64-Core Processor"),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nModel\t\t: Raspberry Pi 5\n",
            "Raspberry Pi 5 Model B Rev 1.0\0",
            "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)",
        ),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "", "Neoverse V1"),
        ("CPU implementer\t: 0x99\nCPU part\t: 0x001\n", "", None),
    ],
)
def test_a_processor_of_arm_is_named_by_its_core_and_board(cpuinfo, model, name):
    assert host.linux_processor_name(cpuinfo, model) == name


def test_a_processor_has_a_name_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "nowhere")
    assert host.processor_name()


@pytest.mark.parametrize("name", ["libggml-base.so", "libggml-base.dylib", "ggml-base.dll"])
def test_the_library_that_quantizes_is_found_under_each_systems_name(tmp_path, monkeypatch, name):
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").write_text("")
    (tmp_path / "llama_cpp" / "lib" / name).write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    assert ggml.find_library() == tmp_path / "llama_cpp" / "lib" / name


@pytest.mark.parametrize(
    ("code", "text"),
    [(0xC000001D, "was ended by an illegal instruction"), (0xC0000005, "was ended by an access violation"),
     (3, "ended with exit code 3"), (-9, "was killed by SIGKILL")],
)  # fmt: skip
def test_a_crash_has_a_name_on_each_system(code, text):
    if code < 0 and os.name == "nt":
        pytest.skip("signals")
    assert process._describe_exit(code) == text


def test_a_child_sees_the_end_of_its_parent_by_number_alone():
    """What Windows needs, where a parent that is gone keeps its number."""
    parent = Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    seen = threading.Event()

    def watch():
        process._wait_until_gone(parent.pid)
        seen.set()

    threading.Thread(target=watch, daemon=True).start()
    assert not seen.wait(0.7)
    parent.kill()
    parent.wait()
    assert seen.wait(5)


def test_a_run_is_judged_without_the_load_average(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert doctor_machine._load(0.01).status == "ok"


def test_a_network_that_cannot_be_taken_away_is_no_error(monkeypatch):
    monkeypatch.setattr(process.sys, "platform", "darwin")
    process.network_isolation.cache_clear()
    try:
        assert process.network_isolation() == ()
        assert doctor_machine._isolation().status == "info"
    finally:
        process.network_isolation.cache_clear()


@pytest.mark.skipif(os.name == "nt", reason="a terminal's encoding is set otherwise there")
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_results_reach_a_console_of_any_encoding(tmp_path, encoding):
    import json
    import subprocess

    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for arguments in (["plan"], ["schema", "report"], ["completion", "bash"], ["--help"]):
        shown = subprocess.run(
            [sys.executable, "-m", "edgekiln", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.decode(encoding)
        if arguments[0] == "schema":
            assert json.loads(shown.stdout.decode(encoding))
