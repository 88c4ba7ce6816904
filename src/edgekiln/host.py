"""What this machine is, for reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

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


def tool_versions() -> dict[str, str]:
    """Return name and version of every package that matters; 'missing' where one is not installed."""
    versions = {"python": platform.python_version()}
    for name in TOOL_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def processor_name() -> str:
    """Return the processor's name as its maker gives it, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def logical_cores() -> int:
    """Return the logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the physical memory of the machine."""
    import psutil

    return int(psutil.virtual_memory().total)
