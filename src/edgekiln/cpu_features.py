"""Instruction sets: what this processor has, and what a build of llama.cpp uses.

llama.cpp is usually compiled for the very processor that compiled it. On another one it either ends with an illegal
instruction or leaves speed on the table; comparing the two lists tells before a build does.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class _Feature:
    """How each system calls an instruction set; None or empty where it does not tell.

    Attributes:
        linux: Words of `flags` (x86) or `Features` (Arm) in /proc/cpuinfo, any of which means it.
        macos: Key of sysctl.
        windows: Number for IsProcessorFeaturePresent (winnt.h, PF_*_AVAILABLE).
    """

    linux: tuple[str, ...]
    macos: str | None = None
    windows: int | None = None


#: By the name that llama.cpp prints (`ggml_backend_cpu_get_features`), per family of processors.
X86: Final[Mapping[str, _Feature]] = MappingProxyType(
    {
        "SSE3": _Feature(("pni", "sse3"), "hw.optional.sse3", 13),
        "SSSE3": _Feature(("ssse3",), "hw.optional.supplementalsse3", 36),
        "AVX": _Feature(("avx",), "hw.optional.avx1_0", 39),
        "AVX2": _Feature(("avx2",), "hw.optional.avx2_0", 40),
        "F16C": _Feature(("f16c",), "hw.optional.f16c"),
        "FMA": _Feature(("fma",), "hw.optional.fma"),
        "BMI2": _Feature(("bmi2",), "hw.optional.bmi2"),
        "AVX_VNNI": _Feature(("avx_vnni",)),
        "AVX512": _Feature(("avx512f",), "hw.optional.avx512f", 41),
        "AVX512_VBMI": _Feature(("avx512vbmi",), "hw.optional.avx512vbmi"),
        "AVX512_VNNI": _Feature(("avx512_vnni",)),
        "AVX512_BF16": _Feature(("avx512_bf16",)),
        "AMX_INT8": _Feature(("amx_int8",)),
    }
)
ARM: Final[Mapping[str, _Feature]] = MappingProxyType(
    {
        "NEON": _Feature(("asimd", "neon"), "hw.optional.AdvSIMD", 19),
        "FP16_VA": _Feature(("asimdhp",), "hw.optional.arm.FEAT_FP16", 67),
        "DOTPROD": _Feature(("asimddp",), "hw.optional.arm.FEAT_DotProd", 43),
        "MATMUL_INT8": _Feature(("i8mm",), "hw.optional.arm.FEAT_I8MM", 66),
        "SVE": _Feature(("sve",), "hw.optional.arm.FEAT_SVE", 46),
        "SME": _Feature(("sme",), "hw.optional.arm.FEAT_SME", 70),
    }
)
#: Sets that llama.cpp's matrix kernels of quantized types gain much from.
WORTHWHILE: Final = frozenset(
    {"AVX2", "FMA", "F16C", "AVX_VNNI", "AVX512", "AVX512_VNNI", "AMX_INT8", "NEON", "DOTPROD", "MATMUL_INT8", "SVE"}
)
_ARM_MACHINES: Final = frozenset({"aarch64", "arm64"})


def _table(machine: str) -> Mapping[str, _Feature]:
    """Return the features to look for; empty for a family that is not known."""
    if machine.lower() in _ARM_MACHINES:
        return ARM
    return X86 if machine.lower() in {"x86_64", "amd64"} else MappingProxyType({})


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Return the words of the flags that every processor in a /proc/cpuinfo text has (cores may differ on Arm)."""
    found = [set(line.partition(":")[2].split()) for line in re.findall(r"(?m)^(?:flags|Features)\s*:.*$", text)]
    return frozenset(set.intersection(*found)) if found else frozenset()


def _of_linux(table: Mapping[str, _Feature], words: Collection[str]) -> Mapping[str, bool | None]:
    return {name: any(word in words for word in feature.linux) if words else None for name, feature in table.items()}


def _of_macos(table: Mapping[str, _Feature]) -> Mapping[str, bool | None]:
    """Ask sysctl for each key; one that it does not know is a feature of a later processor."""
    keys = [feature.macos for feature in table.values() if feature.macos]
    shown = subprocess.run(["/usr/sbin/sysctl", *keys], capture_output=True, text=True, check=False, timeout=10).stdout
    values = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    return {
        name: values.get(feature.macos) == "1" if feature.macos and values else None for name, feature in table.items()
    }


def _of_windows(table: Mapping[str, _Feature]) -> Mapping[str, bool | None]:
    """Ask the system for each number that it knows; elsewhere than on Windows nothing is known."""
    found: dict[str, bool | None] = dict.fromkeys(table, None)
    if sys.platform == "win32":
        ask = ctypes.windll.kernel32.IsProcessorFeaturePresent
        found |= {name: bool(ask(feature.windows)) for name, feature in table.items() if feature.windows is not None}
    return found


def cpu_features() -> Mapping[str, bool | None]:
    """Return which instruction sets this processor has, by llama.cpp's names.

    Returns:
        True, False, or None where the system does not tell; empty for a family of processors that is not known.
    """
    table = _table(platform.machine())
    if _CPUINFO.exists():
        return _of_linux(table, parse_cpuinfo(_CPUINFO.read_text(encoding="utf-8", errors="replace")))
    return _of_macos(table) if sys.platform == "darwin" else _of_windows(table)


def parse_system_info(text: str) -> frozenset[str]:
    """Return the features that are on in what `llama_print_system_info` returns.

    Args:
        text: Like `CPU : AVX2 = 1 | AVX512 = 0 | REPACK = 1 | `, perhaps with several backends.
    """
    return frozenset(name for name, value in re.findall(r"([A-Za-z0-9_]+) = ([0-9]+)", text) if value != "0")


@dataclass(frozen=True)
class Fit:
    """How a build suits a processor.

    Attributes:
        lethal: Instruction sets of the build that the processor lacks: it would end with an illegal instruction.
        unused: Instruction sets of the processor that would speed quantized kernels up and that the build lacks.
    """

    lethal: tuple[str, ...]
    unused: tuple[str, ...]


def compare(built: Collection[str], processor: Mapping[str, bool | None]) -> Fit:
    """Compare a build's instruction sets with a processor's; what the system does not tell counts as neither."""
    return Fit(
        lethal=tuple(sorted(name for name in built if processor.get(name) is False)),
        unused=tuple(sorted(name for name in WORTHWHILE if processor.get(name) and name not in built)),
    )
