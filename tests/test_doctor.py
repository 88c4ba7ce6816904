"""The doctor: what works, what does not, how to mend it; no connection, no secret, nothing left behind."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgekiln.pipelines.doctor as doctor_module
import edgekiln.pipelines.doctor_libraries as libraries
import edgekiln.pipelines.doctor_machine as machine
import edgekiln.pipelines.doctor_targets as targets
from edgekiln import host
from edgekiln.cgroup import CgroupLimits
from edgekiln.errors import UsageError
from edgekiln.pipelines.doctor import LOOKED_AT, examine, report_text
from edgekiln.pipelines.doctor_network import bare_address, network_findings
from edgekiln.pipelines.findings import DoctorReport

SECRETS = ("pr0xy-Passw0rd", "endp0int-Passw0rd", "hf_Pl4ntedT0kenPl4nted", "qu3ry-Signature")
#: Runs in every interpreter that starts: it notes each connection and hides libraries.
SPY = """
import os, socket, sys
_connect = socket.socket.connect
def connect(self, address):
    if self.family != getattr(socket, "AF_UNIX", None):
        with open(os.environ["EK_SPY"], "a") as file:
            file.write(repr(address) + "\\n")
    return _connect(self, address)
socket.socket.connect = connect
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ.get("EK_HIDDEN", "").split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hider())
"""


def doctor(folder, *arguments, **environment):
    for name in ("cwd", "site", "temp", "home"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SPY)
    return subprocess.run(
        [sys.executable, "-m", "edgekiln", "doctor", *arguments],
        cwd=folder / "cwd",
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(folder / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EK_SPY": str(folder / "connections"),
            "TMPDIR": str(folder / "temp"),
            "HOME": str(folder / "home"),
            **environment,
        },
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    shown = doctor(
        folder,
        "--json",
        HTTPS_PROXY=f"http://user:{SECRETS[0]}@proxy.example:3128",
        HF_ENDPOINT=f"https://me:{SECRETS[1]}@mirror.example/hub?sig={SECRETS[3]}",
        HF_TOKEN=SECRETS[2],
        SSL_CERT_FILE=str(folder / "nowhere.pem"),
    )
    return folder, shown


def by_id(shown):
    return {finding["id"]: finding for finding in json.loads(shown.stdout)["findings"]}


def test_in_this_environment_builds_can_run(healthy):
    _, shown = healthy
    assert shown.returncode == 0, shown.stdout + shown.stderr
    report = DoctorReport.model_validate_json(shown.stdout)
    assert report.verdict.ready
    assert not [finding for finding in report.findings if finding.status == "problem"]
    assert len({finding.id for finding in report.findings}) == len(report.findings)
    assert not [finding for finding in report.findings if finding.status == "warning" and not finding.fix]


def test_it_makes_no_connection_and_leaves_nothing(healthy):
    folder, _ = healthy
    assert not (folder / "connections").exists()
    assert [path for name in ("cwd", "temp", "home") for path in (folder / name).rglob("*")] == []


def test_no_secret_is_shown_and_the_rest_of_an_address_is(healthy):
    _, shown = healthy
    for secret in SECRETS:
        assert secret not in shown.stdout + shown.stderr
    found = by_id(shown)
    assert found["network/proxy"]["facts"]["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert found["network/hub"]["facts"]["endpoint"] == "https://mirror.example/hub"
    assert "HF_TOKEN is set" in found["network/hub"]["summary"]
    assert found["network/certificates"]["status"] == "warning"


def test_the_text_has_a_line_per_finding_and_ends_with_the_verdict(healthy):
    _, shown = healthy
    report = DoctorReport.model_validate_json(shown.stdout)
    text = report_text(report)
    assert text.splitlines()[-1] == report.verdict.summary
    assert all(finding.summary in text for finding in report.findings)


def test_everything_that_edgekiln_requires_is_looked_at():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert wanted <= {canonicalize_name(name) for name in LOOKED_AT}


def test_a_broken_installation_is_reported_and_does_not_stop_it(tmp_path):
    hidden = "torch,psutil,onnxruntime,onnxruntime_genai,huggingface_hub"
    (tmp_path / "site" / "llama_cpp").mkdir(parents=True)
    crash = "import os, signal\nos.kill(os.getpid(), getattr(signal, 'SIGILL', signal.SIGTERM))\n"
    (tmp_path / "site" / "llama_cpp" / "__init__.py").write_text(crash)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "targets.yaml").write_text("schema: edgekiln.targets/1\ntargets: {a: {formt: gguf}}\n")
    shown = doctor(tmp_path, EK_HIDDEN=hidden, EDGEKILN_THREADS="many")
    assert shown.returncode == 5, shown.stderr
    assert "Traceback" not in shown.stdout + shown.stderr
    lines = shown.stdout.splitlines()
    for name in ("torch", "psutil", "onnxruntime", "huggingface-hub"):
        assert any(re.search(rf"PROBLEM +{name} .*does not import: ModuleNotFoundError", line) for line in lines), name
    crashed = next(number for number, line in enumerate(lines) if "llama-cpp-python" in line and "PROBLEM" in line)
    assert "SIGILL" in lines[crashed] or os.name == "nt"
    assert "--no-binary llama-cpp-python" in lines[crashed + 1]
    assert any("PROBLEM" in line and "targets.yaml:2:" in line for line in lines)
    assert any("PROBLEM" in line and "EDGEKILN_THREADS" in line for line in lines)
    assert lines[-1].startswith("Not every build can run here: ")


def test_a_targets_file_that_was_named_and_is_wrong_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        examine(tmp_path / "nowhere.yaml")


def test_a_targets_file_of_the_environment_that_is_wrong_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKILN_TARGETS", "nowhere.yaml")
    for slow in ("probe_all", "library_findings", "provider_findings"):  # other tests look at them
        monkeypatch.setattr(doctor_module, slow, lambda _: [])
    found = {finding.id: finding for finding in examine().findings}
    assert found["target/catalogue"].status == "problem"
    assert "nowhere.yaml" in found["target/catalogue"].summary


def test_a_usage_error_of_a_check_is_a_finding():
    def check():
        raise UsageError("no")

    assert [finding.id for finding in doctor_module._guarded("x", check)] == ["x/check"]


def test_the_machine_is_the_target_by_the_names_that_the_verdict_goes_by(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "hardware_names", lambda: "Cortex; Nowhere 9")
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "hardware_names", lambda: "Cortex; Nowhere 9")
    (tmp_path / "t.yaml").write_text(CATALOGUE)
    native = next(f for f in targets.target_findings(tmp_path / "t.yaml", {}) if f.id == "target/native")
    assert "phone" in native.facts
    assert next(machine.cpu_findings()).facts["name"] == "Cortex; Nowhere 9"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:secret@proxy:3128/", "http://proxy:3128/"),
        ("user:secret@proxy:3128", "proxy:3128"),
        ("http://user:se@cr?e/t#@proxy", "http://proxy"),
        ("https://host/path?token=secret#secret", "https://host/path"),
        ("socks5h://secret@host", "socks5h://host"),
        ("host secret", "host"),
        ("", ""),
    ],
)
def test_addresses_lose_whatever_may_be_secret(address, shown):
    assert bare_address(address) == shown


def test_a_proxy_for_http_alone_does_not_reach_the_hub():
    proxy = next(network_findings({"http_proxy": "http://p:1"}))
    assert (proxy.status, proxy.facts) == ("warning", {"HTTP_PROXY": "http://p:1"})
    assert next(network_findings({"all_proxy": "http://p:1", "http_proxy": "http://p:1"})).status == "info"


ANSWER = {"seconds": 0.1, "facts": {}}


def library(monkeypatch, *, found, wanted, answer=ANSWER):
    monkeypatch.setattr(libraries, "installed_version", lambda _: found)
    requirement = Requirement(wanted) if wanted else None
    return libraries._library(libraries.Library("torch", "torch", "the reference"), requirement, answer)


@pytest.mark.parametrize(
    ("found", "wanted", "status", "fix"),
    [
        ("2.13.0+cpu", "torch>=2.7", "ok", None),
        ("2.13.0", None, "ok", None),
        ("2.6.0", "torch>=2.7", "problem", "python -m pip install -c constraints.txt 'torch>=2.7'"),
        (None, "torch>=2.7", "problem", "python -m pip install -c constraints.txt 'torch>=2.7'"),
    ],
)
def test_a_library_is_judged_by_what_edgekiln_requires(monkeypatch, found, wanted, status, fix):
    finding = library(monkeypatch, found=found, wanted=wanted)
    assert (finding.status, finding.fix) == (status, fix)


def test_without_the_reference_no_target_can_be_validated(tmp_path):
    (tmp_path / "t.yaml").write_text(CATALOGUE)
    found = {f.id: set(f.facts) for f in targets.target_findings(tmp_path / "t.yaml", {"torch": "not installed"})}
    assert found == {"target/blocked": {"here", "phone", "gpu", "old", "onnx"}, "target/unsupported": {"npu"}}


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("OSError: libgomp.so.1: cannot open shared object file: No such file", "apt install libgomp1"),
        (
            "ImportError: libz.so.1: cannot open shared object file: No such file",
            "install the system library libz.so.1",
        ),
        ("ImportError: bad", "--force-reinstall"),
    ],
)
def test_a_missing_system_library_is_not_mended_by_pip(monkeypatch, error, fix):
    finding = library(monkeypatch, found="2.13.0", wanted="torch>=2.7", answer={"error": error})
    assert finding.status == "problem"
    assert fix in finding.fix
    assert ("pip" in finding.fix) == ("reinstall" in fix)


def test_versions_that_were_not_tried_together_are_named(tmp_path):
    (tmp_path / "constraints.txt").write_text("numpy==0.1\ngguf>=0.1\n")
    found = {finding.id: finding for finding in libraries.agreement_findings(tmp_path / "constraints.txt")}
    assert found["library/constraints"].status == "warning"
    assert "numpy" in found["library/constraints"].summary
    assert "gguf" not in found["library/constraints"].summary


@pytest.mark.parametrize(
    ("system_info", "processor", "status"),
    [
        ("CPU : AVX2 = 1 | FMA = 1 | ", {"AVX2": True, "FMA": True, "AVX512": False}, "ok"),
        ("CPU : AVX2 = 1 | AVX512 = 1 | ", {"AVX2": True, "AVX512": False}, "problem"),
        ("CPU : SSE3 = 1 | ", {"SSE3": True, "AVX2": True}, "warning"),
        ("CPU : NEON = 1 | ", {"NEON": None, "DOTPROD": None}, "info"),
        ("CPU : RISCV_V = 1 | ", {}, "info"),
    ],
)
def test_a_build_of_llama_cpp_is_compared_with_the_processor(system_info, processor, status):
    finding = libraries._llama_build(system_info, processor)
    assert finding.status == status
    assert (finding.fix is not None) == (status in {"problem", "warning"})


def test_a_missing_compiler_is_a_problem_only_where_something_has_to_be_compiled(monkeypatch):
    monkeypatch.setattr(libraries.shutil, "which", lambda _: None)
    assert [finding.status for finding in libraries.compiler_findings()] == ["info"]
    monkeypatch.setattr(libraries, "installed_version", lambda _: None)
    (finding,) = libraries.compiler_findings()
    assert finding.status == "problem"
    assert "build-essential" in finding.fix


def test_little_memory_and_few_processors_of_a_control_group_are_warnings(monkeypatch):
    limits = CgroupLimits(memory_bytes=1 << 30, cpus=0.5)
    monkeypatch.setattr(machine, "cgroup_limits", lambda: limits)
    monkeypatch.setattr(host, "cgroup_limits", lambda: limits)
    (memory,) = machine.memory_findings()
    assert (memory.status, memory.facts["total_bytes"]) == ("warning", 1 << 30)
    cores = next(machine.cpu_findings())
    assert cores.status == "warning"
    assert "0.5 cores' worth" in cores.summary
    assert cores.facts["allowed"] == 1


def test_a_folder_that_cannot_be_written_is_a_problem_where_builds_need_it(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "not" / "made" / "yet"
    assert machine._folder("disk/out", "o", inside, needed=True, little=0, fix="f").status == "ok"
    assert not (tmp_path / "not").exists()
    full = machine._folder("disk/out", "o", inside, needed=True, little=1 << 80, fix="f")
    assert (full.status, full.fix) == ("warning", "f")


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="a folder in which not even root makes files")
@pytest.mark.parametrize(("needed", "status"), [(True, "problem"), (False, "warning")])
def test_a_folder_of_a_read_only_file_system(needed, status):
    finding = machine._folder("disk/out", "o", Path("/proc/sys/edgekiln"), needed=needed, little=0, fix="f")
    assert finding.status == status


def test_a_cache_of_many_files_is_not_counted_to_the_end(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x").write_bytes(b"12345")
    assert machine._scanned_size(tmp_path) == (25, True)
    monkeypatch.setattr(machine, "_SCAN_ENTRIES", 2)
    size, whole = machine._scanned_size(tmp_path)
    assert not whole
    assert 0 < size < 25


HUB_CACHES = """
from edgekiln.pipelines.doctor_machine import hub_cache
from huggingface_hub.constants import HF_HUB_CACHE
print(hub_cache(), HF_HUB_CACHE, sep="\\n")
"""


@pytest.mark.parametrize(
    "variables", [{}, {"HF_HOME": "h"}, {"HF_HUB_CACHE": "c", "HF_HOME": "h"}, {"XDG_CACHE_HOME": "x"}]
)
def test_the_hub_cache_is_where_huggingface_hub_looks(tmp_path, variables):
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            HUB_CACHES,
        ],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "HUGGING"))},
            **{name: str(tmp_path / value) for name, value in variables.items()},
        },
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = shown.stdout.splitlines()
    assert Path(ours) == Path(theirs)


@pytest.mark.parametrize(("busy", "load", "status"), [(0.02, 0.1, "ok"), (0.6, 0.1, "warning"), (0.0, 99.0, "warning")])
def test_a_busy_machine_is_not_quiet_enough(monkeypatch, busy, load, status):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    finding = machine._load(busy)
    assert finding.status == status
    assert finding.summary.startswith("quiet" if status == "ok" else "not quiet")


def test_the_load_of_the_whole_machine_is_not_held_against_a_small_share_of_it(monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (2.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "logical_cores", lambda: 1)
    assert machine._load(0.02).status == "ok"


@pytest.mark.parametrize(
    ("files", "status", "turbo"),
    [
        ({}, "info", None),
        ({"cpu0/cpufreq/scaling_governor": "performance", "cpufreq/boost": "1"}, "ok", True),
        ({"cpu0/cpufreq/scaling_governor": "powersave", "intel_pstate/no_turbo": "1"}, "warning", False),
        ({"cpu0/cpufreq/scaling_governor": "performance", "cpu1/cpufreq/scaling_governor": "x"}, "warning", None),
    ],
)  # fmt: skip
def test_the_clock_is_judged_by_what_the_kernel_says(tmp_path, files, status, turbo):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (finding,) = machine.clock_findings(tmp_path)
    assert (finding.status, finding.facts["turbo"]) == (status, turbo)


CATALOGUE = """schema: edgekiln.targets/1
targets:
  here: {description: d, format: gguf, runtime: {name: llama.cpp, version: ">=0.3"}}
  phone:
    description: d
    format: gguf
    runtime: {name: llama.cpp, version: ">=0.3"}
    hardware: {machine: aarch64, processor: [Nowhere 9]}
  gpu: {description: d, format: gguf, runtime: {name: llama.cpp, version: ">=0.3"}, execution_provider: cuda}
  old: {description: d, format: gguf, runtime: {name: llama.cpp, version: "<0.1"}}
  onnx: {description: d, format: onnx, runtime: {name: onnxruntime-genai, version: ">=0.1"}}
  npu:
    description: d
    format: onnx
    runtime: {name: onnxruntime-genai, version: ">=0.1"}
    unsupported: the NPU needs the vendor's SDK
"""


def test_every_target_is_in_the_group_that_says_what_can_be_done_for_it_here(tmp_path):
    (tmp_path / "t.yaml").write_text(CATALOGUE)
    broken = {"onnxruntime-genai": "0.1 does not import: ImportError: no"}
    found = {f.id: f for f in targets.target_findings(tmp_path / "t.yaml", broken)}
    assert {name: set(finding.facts) for name, finding in found.items()} == {
        "target/native": {"here"},
        "target/other-machine": {"phone"},
        "target/stand-in": {"gpu"},
        "target/blocked": {"old", "onnx"},
        "target/unsupported": {"npu"},
    }
    assert "install llama-cpp-python<0.1" in found["target/blocked"].fix
    assert "onnxruntime-genai: does not work" in found["target/blocked"].fix
    assert found["target/unsupported"].facts["npu"] == "the NPU needs the vendor's SDK"
