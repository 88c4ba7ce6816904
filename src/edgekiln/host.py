"""What this machine is, for reports."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_BOARD: Final = Path("/proc/device-tree/model")
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


def _macos_processor_name() -> str | None:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return shown.stdout.strip() or None


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
    if _CPUINFO.exists():
        board = _BOARD.read_text(encoding="utf-8", errors="replace") if _BOARD.exists() else ""
        name = linux_processor_name(_CPUINFO.read_text(encoding="utf-8", errors="replace"), board)
    elif sys.platform == "darwin":
        name = _macos_processor_name()
    elif sys.platform == "win32":
        name = _windows_processor_name()
    return name or platform.processor() or platform.machine()


def hardware_names() -> str:
    """Return every name that the system gives of processor and machine, to recognise a target by.

    Machines of a cloud name themselves in the firmware's tables: `c8g.xlarge`.
    """
    try:
        product = Path("/sys/class/dmi/id/product_name").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        product = ""
    return "; ".join(filter(None, (processor_name(), product)))


def logical_cores() -> int:
    """Return the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Return the physical cores that this process may use."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return int(max(1, min(cores, logical_cores())))


def memory_bytes() -> int:
    """Return the physical memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)
