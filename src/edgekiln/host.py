"""What this machine is, for reports."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekiln.cgroup import cgroup_limits

_CPUINFO: Final = Path("/proc/cpuinfo")
_BOARD: Final = Path("/proc/device-tree/model")
_PRODUCT: Final = Path("/sys/class/dmi/id/product_name")
_ANSWER_SECONDS: Final = 10.0  # for a program that prints one line
#: Packages whose version can change an artifact or a measurement.
TOOL_PACKAGES: Final = (
    "edgekiln",
    "foundry-local-sdk",
    "gguf",
    "llama-cpp-python",
    "mobius-onnx",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "tokenizers",
    "torch",
    "transformers",
)

#: Arm's cores by implementer and part (MIDR_EL1; the Linux kernel's arch/arm64/include/asm/cputype.h).
ARM_CORES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("0x41", "0xd03"): "Cortex-A53",
        ("0x41", "0xd05"): "Cortex-A55",
        ("0x41", "0xd08"): "Cortex-A72",
        ("0x41", "0xd0b"): "Cortex-A76",
        ("0x41", "0xd0c"): "Neoverse N1",
        ("0x41", "0xd40"): "Neoverse V1",
        ("0x41", "0xd41"): "Cortex-A78",
        ("0x41", "0xd42"): "Cortex-A78AE",
        ("0x41", "0xd44"): "Cortex-X1",
        ("0x41", "0xd48"): "Cortex-X2",
        ("0x41", "0xd49"): "Neoverse N2",
        ("0x41", "0xd4e"): "Cortex-X3",
        ("0x41", "0xd4f"): "Neoverse V2",
        ("0x41", "0xd81"): "Cortex-A720",
        ("0x41", "0xd82"): "Cortex-X4",
        ("0x41", "0xd84"): "Neoverse V3",
        ("0x41", "0xd8e"): "Neoverse N3",
    }
)


def tool_versions() -> dict[str, str]:
    """Return name and version of every package that matters; 'missing' where one is not installed."""
    versions = {"python": platform.python_version()}
    for name in TOOL_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def _first_value(text: str, key: str) -> str | None:
    """Return the value of the first `key : value` line."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key and value.strip():
            return value.strip()
    return None


def linux_processor_name(cpuinfo: str, model: str = "") -> str | None:
    """Return the processor's name from /proc/cpuinfo and the device tree's model.

    On Arm the kernel gives numbers instead of a name: implementer and part, which `ARM_CORES` names, and the board.

    Args:
        cpuinfo: Content of /proc/cpuinfo.
        model: Content of /proc/device-tree/model, with its closing zero byte.
    """
    if name := _first_value(cpuinfo, "model name"):
        return name
    core = (_first_value(cpuinfo, "CPU implementer"), _first_value(cpuinfo, "CPU part"))
    known = ARM_CORES.get((core[0] or "", core[1] or ""))
    board = model.strip("\0\n ") or _first_value(cpuinfo, "Model") or _first_value(cpuinfo, "Hardware")
    return " ".join(filter(None, (board, f"({known})" if board and known else known))) or None


def _text(path: Path) -> str:
    """Return what a file of the kernel holds; nothing where it is missing or, as on Android, forbidden."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _said(*command: str) -> str:
    """Return what a program prints; nothing where it is missing, fails or takes too long."""
    try:
        shown = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=_ANSWER_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.stdout.strip()


def _android_model() -> str:
    """Return the model number that Android's properties hold, `SM-S938B`; nothing on other systems."""
    program = shutil.which("getprop")
    return _said(program, "ro.product.model") if program else ""


def _windows_processor_name() -> str | None:
    name: str | None = None
    if sys.platform == "win32":
        import winreg

        key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            name = str(winreg.QueryValueEx(opened, "ProcessorNameString")[0]).strip()
    return name


def processor_name() -> str:
    """Return the processor's name as its maker gives it, as far as the system tells."""
    name: str | None = None
    if cpuinfo := _text(_CPUINFO):
        name = linux_processor_name(cpuinfo, _text(_BOARD))
    elif sys.platform == "darwin":
        name = _said("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
    elif sys.platform == "win32":
        name = _windows_processor_name()
    return name or platform.processor() or platform.machine()


def hardware_names() -> str:
    """Return every name that the system gives of processor and machine, to recognise a target by.

    Machines of a cloud name themselves in the firmware's tables, `c8g.xlarge`; telephones in Android's properties.
    """
    return "; ".join(filter(None, (processor_name(), _text(_PRODUCT), _android_model())))


def logical_cores() -> int:
    """Return the logical cores that this process may use: of its affinity, and of its control group's time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_limits().cpus
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores() -> int:
    """Return the physical cores that this process may use."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return int(max(1, min(cores, logical_cores())))


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's limit where that is less."""
    import psutil

    total, limit = int(psutil.virtual_memory().total), cgroup_limits().memory_bytes
    return total if limit is None else min(total, limit)
