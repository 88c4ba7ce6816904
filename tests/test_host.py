import os
import subprocess
import sys

import psutil
import pytest

from edgekiln import host
from edgekiln.cgroup import CgroupLimits
from edgekiln.host import (
    TOOL_PACKAGES,
    hardware_names,
    logical_cores,
    memory_bytes,
    physical_cores,
    processor_name,
    tool_versions,
)
from edgekiln.memory import peak_rss_bytes


def test_every_tool_has_a_version():
    versions = tool_versions()
    assert set(versions) == {"python", *TOOL_PACKAGES}
    assert "missing" not in versions.values()


def test_the_machine_is_described():
    assert processor_name()
    assert logical_cores() >= 1
    assert memory_bytes() > 1 << 30


@pytest.mark.parametrize(("quota", "cores"), [(0.25, 1), (1.0, 1), (2.5, 3), (16.0, 16), (999.0, 64), (None, 64)])
def test_a_control_group_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(host, "cgroup_limits", lambda: CgroupLimits(memory_bytes=None, cpus=quota))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64 if logical else 32)
    assert (logical_cores(), physical_cores()) == (cores, min(cores, 32))


@pytest.mark.parametrize(("limit", "least"), [(1 << 28, True), (1 << 59, False), (None, False)])
def test_a_control_group_limits_the_memory(monkeypatch, limit, least):
    monkeypatch.setattr(host, "cgroup_limits", lambda: CgroupLimits(memory_bytes=limit, cpus=None))
    assert memory_bytes() == (limit if least else psutil.virtual_memory().total)


@pytest.mark.skipif(os.name == "nt", reason="a program of the shell's")
@pytest.mark.parametrize(
    ("program", "known"),
    [
        ('[ "$*" = ro.product.model ] && echo SM-S938B', True),
        ("echo SM-S938B; exit 1", False),
        ("echo SM-S938B; exec sleep 60", False),
    ],
)
def test_a_telephone_is_known_by_the_model_of_androids_properties(tmp_path, monkeypatch, program, known):
    (tmp_path / "getprop").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "getprop").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(host, "_ANSWER_SECONDS", 0.5)
    assert hardware_names().startswith(processor_name())
    assert hardware_names().endswith("; SM-S938B") is known


def test_what_the_system_forbids_to_read_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_BOARD", tmp_path)  # a directory: read_text raises, as it does where reading is denied
    assert processor_name()


def test_peak_memory_grows_with_use_and_is_not_the_parents():
    program = (
        "from edgekiln.memory import peak_rss_bytes\nbefore = peak_rss_bytes()\ndata = b'x' * (200 << 20)\n"
        "print(before, peak_rss_bytes())"
    )
    ballast = b"x" * (300 << 20)
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, shown.stdout.split())
    assert before < 200 << 20 < after - before + (16 << 20)
    assert peak_rss_bytes() > len(ballast)
