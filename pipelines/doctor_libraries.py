"""Doctor: the interpreter, the compilers, and every library that builds need."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgekiln.cpu_features import compare, cpu_features, parse_system_info
from edgekiln.pipelines.findings import Finding, Status
from edgekiln.probe import probe
from edgekiln.requirements import conflicts, fulfils, installed_version, read_constraints, requirements_of

#: Python versions that Edgekiln is made for.
_OLDEST, _NEWEST = (3, 11), (3, 13)
_CONSTRAINTS: Final = Path(__file__).parent.parent / "constraints.txt"
_LLAMA: Final = "llama-cpp-python"
_REBUILD: Final = (
    f"python -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary {_LLAMA} {_LLAMA} "
    "(needs a C++ compiler, about ten minutes)"
)
#: How to get a C++ compiler.
_COMPILER_FIX: Final[Mapping[str, str]] = MappingProxyType(
    {
        "linux": "install a C++ compiler: 'apt install build-essential', or 'dnf install gcc-c++'",
        "darwin": "install the command line tools: 'xcode-select --install'",
        "win32": "install the Visual Studio Build Tools with 'Desktop development with C++'",
    }
)
#: How the loader of Linux names a shared library that is not there.
_MISSING_LIBRARY: Final = re.compile(r"(\S+\.so[\d.]*): cannot open shared object file")
#: What brings the libraries that the runtimes expect of the system.
_SYSTEM_PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"libgomp.so.1": "apt install libgomp1", "libstdc++.so.6": "apt install libstdc++6"}
)


@dataclass(frozen=True)
class Library:
    """A distribution that Edgekiln requires.

    Attributes:
        package: Its name on PyPI.
        module: What is imported.
        serves: What it is for.
    """

    package: str
    module: str
    serves: str


#: Libraries by the process that imports them: those of a group share what takes long to load, and none is native
#: code that could disturb another's.
GROUPS: Final[tuple[tuple[Library, ...], ...]] = (
    (
        Library("torch", "torch", "the reference"),
        Library("transformers", "transformers", "the reference"),
        Library("mobius-onnx", "mobius", "ONNX graphs"),
    ),
    (Library("llama-cpp-python", "llama_cpp", "GGUF artifacts"),),
    (Library("xllamacpp", "xllamacpp", "chat templates of GGUF files"),),
    (Library("onnxruntime", "onnxruntime", "ONNX artifacts"),),
    (Library("onnxruntime-genai", "onnxruntime_genai", "ONNX artifacts"),),
    (Library("foundry-local-sdk", "foundry_local_sdk", "Foundry Local artifacts"),),
    (
        Library("numpy", "numpy", "everything"),
        Library("onnx", "onnx", "ONNX files"),
        Library("onnx-ir", "onnx_ir", "ONNX graphs"),
        Library("protobuf", "google.protobuf", "ONNX files"),
        Library("gguf", "gguf", "GGUF files"),
        Library("tokenizers", "tokenizers", "tokenizers"),
        Library("huggingface-hub", "huggingface_hub", "Hub checkpoints"),
        Library("httpx2", "httpx2", "Hub checkpoints"),
        Library("jinja2", "jinja2", "chat templates"),
        Library("markupsafe", "markupsafe", "reports"),
        Library("psutil", "psutil", "limits and measurements"),
        Library("filelock", "filelock", "output folders"),
        Library("platformdirs", "platformdirs", "the cache"),
        Library("fsspec", "fsspec", "shared caches"),
        Library("pydantic", "pydantic", "files and reports"),
        Library("pyyaml", "yaml", "pipelines and targets"),
        Library("ruamel.yaml", "ruamel.yaml", "pipelines and targets"),
        Library("packaging", "packaging", "version ranges"),
        Library("click", "click", "the command line"),
        Library("bracex", "bracex", "overrides"),
        Library("rich", "rich", "tables"),
    ),
)


def _environment_kind() -> str:
    """Return what kind of installation this interpreter belongs to."""
    if sys.prefix != sys.base_prefix:
        return "virtual environment"
    if (Path(sys.prefix) / "conda-meta").is_dir():
        return "conda environment"
    if "WindowsApps" in sys.executable:
        return "Microsoft Store"
    return "system installation" if Path(sys.prefix) in {Path("/usr"), Path("/usr/local")} else "own installation"


def _is_translated() -> bool:
    """Tell whether an x86-64 interpreter runs under Rosetta on Apple silicon."""
    translated = False
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        command = ["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        translated = shown.stdout.strip() == "1"
    return translated


def python_findings() -> Iterator[Finding]:
    """Judge the interpreter."""
    version, bits = sys.version_info[:2], struct.calcsize("P") * 8
    made_for = f"{_OLDEST[0]}.{_OLDEST[1]} to {_NEWEST[0]}.{_NEWEST[1]}"
    facts: dict[str, Any] = {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "kind": _environment_kind(),
        "bits": bits,
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "system": platform.platform(),
    }
    line = f"{facts['implementation']} {facts['version']}, {bits} bit, {facts['kind']}: {sys.executable}"
    status: Status = "ok"
    fix: str | None = None
    if version < _OLDEST or bits < 64:
        status, fix = "problem", f"use a 64-bit Python {made_for}"
    elif version > _NEWEST or facts["implementation"] != "CPython" or facts["free_threaded"]:
        status, fix = "warning", f"Edgekiln is made for CPython {made_for} with its lock; use one of these"
    elif _is_translated():
        status, fix = "warning", "this Python runs under Rosetta; install an arm64 build of Python"
    elif facts["kind"] == "system installation":
        status, fix = "warning", "libraries of the system and ours may collide; use 'python3 -m venv .venv'"
    yield Finding(id="python/interpreter", status=status, summary=line, fix=fix, facts=facts)
    yield Finding(id="python/system", status="info", summary=f"{platform.platform()} ({platform.machine()})")


def _tool_version(command: str) -> str | None:
    """Return the first line that a tool prints of its version; None where it does not run."""
    try:
        # cl knows no --version and prints it in the banner on standard error.
        arguments = [command] if Path(command).stem.lower() == "cl" else [command, "--version"]
        shown = subprocess.run(arguments, capture_output=True, check=False, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = (shown.stdout or shown.stderr).decode("utf-8", "replace").strip()
    return text.splitlines()[0].strip() if text else "found"


def _has_command_line_tools() -> bool:
    """Tell whether macOS has compilers: without them, merely running its `cc` opens a dialog."""
    present = True
    if sys.platform == "darwin":
        try:
            present = subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False).returncode == 0
        except OSError:
            present = False
    return present


def compiler_findings() -> Iterator[Finding]:
    """Look for compilers, which are needed only to build llama-cpp-python where there is no wheel of it."""
    candidates = {
        "c": (os.environ.get("CC"), "cc", "gcc", "clang", "cl"),
        "c++": (os.environ.get("CXX"), "c++", "g++", "clang++", "cl"),
        "cmake": ("cmake",),
    }
    found: dict[str, str | None] = {}
    for kind, names in candidates.items():
        paths = [shutil.which(name) for name in names if name] if _has_command_line_tools() else []
        path = next(filter(None, paths), None)
        found[kind] = f"{path} ({_tool_version(path)})" if path else None
    have = ", ".join(f"{kind} {where}" for kind, where in found.items() if where) or "none found"
    facts: dict[str, Any] = dict(found)
    installed = installed_version(_LLAMA) is not None
    if found["c"] and found["c++"]:
        yield Finding(id="compiler/c++", status="ok", summary=have, facts=facts)
    elif installed:
        line = f"{have}; they are only needed to compile {_LLAMA}, which is installed"
        yield Finding(id="compiler/c++", status="info", summary=line, facts=facts)
    else:
        fix = _COMPILER_FIX.get(sys.platform, _COMPILER_FIX["linux"])
        line = f"{have}, and {_LLAMA} has to be compiled"
        yield Finding(id="compiler/c++", status="problem", summary=line, fix=fix, facts=facts)


def probe_all(directory: Path) -> dict[str, dict[str, Any]]:
    """Import every library in processes of their own, side by side; answers by module."""
    answers: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2))) as pool:
        for answer in pool.map(lambda group: probe([library.module for library in group], directory), GROUPS):
            answers |= answer
    return answers


def library_findings(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Judge every library: is it installed, in the required range, and does it import.

    Args:
        answers: What `probe_all` returned.
    """
    wanted = {canonicalize_name(entry.name): entry for entry in requirements_of("edgekiln")}
    if not wanted:
        line = "Edgekiln is imported but not installed, so that what it requires is not known"
        fix = "install it: python -m pip install -c constraints.txt -e ."
        yield Finding(id="library/edgekiln", status="problem", summary=line, fix=fix)
    for library in (library for group in GROUPS for library in group):
        yield _library(library, wanted.get(canonicalize_name(library.package)), answers[library.module])


def _import_fix(name: str, spec: str, error: str) -> str:
    """Return how to mend a library that is installed and does not import."""
    if missing := _MISSING_LIBRARY.search(error):
        package = _SYSTEM_PACKAGES.get(missing[1])
        return f"install the system library {missing[1]}" + (f", on Debian and Ubuntu '{package}'" if package else "")
    return _REBUILD if name == _LLAMA else f"python -m pip install --force-reinstall -c constraints.txt '{spec}'"


def _library(library: Library, wanted: Requirement | None, answer: Mapping[str, Any]) -> Finding:
    name, found = library.package, installed_version(library.package)
    spec = f"{name}{wanted.specifier}" if wanted else name
    facts: dict[str, Any] = {"version": found, "requires": spec, "serves": library.serves}
    install = f"python -m pip install -c constraints.txt '{spec}'"
    status: Status = "ok"
    fix: str | None = None
    if found is None:
        status, line, fix = "problem", f"not installed; it serves {library.serves}", install
    elif "error" in answer:
        status, line = "problem", f"{found} does not import: {answer['error']}"
        fix = _import_fix(name, spec, answer["error"])
    elif wanted is not None and not fulfils(found, wanted):
        status, line, fix = "problem", f"{found} is not what Edgekiln requires, {spec}", install
    else:
        line = f"{found}, imports in {answer['seconds']:.1f} s"
        facts["import_seconds"] = answer["seconds"]
    return Finding(id=f"library/{name}", status=status, summary=line, fix=fix, facts=facts)


def agreement_findings(constraints: Path = _CONSTRAINTS) -> Iterator[Finding]:
    """Judge whether the installed packages fit each other, and whether they are the versions that were tried."""
    broken = [entry for entry in conflicts("edgekiln") if entry.package != "edgekiln"]  # its own are judged above
    if broken:
        lines = [f"{entry.package} wants {entry.requirement}, found {entry.found or 'none'}" for entry in broken]
        fix = "install Edgekiln again with its constraints: python -m pip install -c constraints.txt -e ."
        yield Finding(id="library/conflicts", status="warning", summary="; ".join(lines[:5]), fix=fix)
    else:
        yield Finding(id="library/conflicts", status="ok", summary="the installed packages fit each other")
    if not constraints.is_file():
        return
    pins = read_constraints(constraints)
    names = [canonicalize_name(library.package) for group in GROUPS for library in group]
    installed = {name: installed_version(name) for name in names if name in pins}
    others = [f"{name} {found}" for name, found in installed.items() if found and not fulfils(found, pins[name])]
    if others:
        line = f"other versions than those that were tried together: {', '.join(others)}"
        fix = "python -m pip install -c constraints.txt -e ."
        yield Finding(id="library/constraints", status="warning", summary=line, fix=fix)
    else:
        yield Finding(id="library/constraints", status="ok", summary="the versions that constraints.txt names")


def provider_findings(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Judge where the runtimes compute, and whether llama.cpp was built for this processor."""
    for module, name in (("onnxruntime", "onnxruntime"), ("onnxruntime_genai", "onnxruntime-genai")):
        if "facts" in answers[module]:
            providers = tuple(answers[module]["facts"]["providers"])
            line = f"computes with {', '.join(providers)}; Edgekiln validates on the CPU"
            yield Finding(id=f"provider/{name}", status="info", summary=line, facts={"providers": providers})
    if "facts" in answers["llama_cpp"]:
        yield _llama_build(answers["llama_cpp"]["facts"]["system_info"], cpu_features())


def _llama_build(system_info: str, processor: Mapping[str, bool | None]) -> Finding:
    """Compare the instruction sets of llama.cpp's build with the processor's."""
    built = parse_system_info(system_info)
    fit = compare(built, processor)
    facts: dict[str, Any] = {"built_for": tuple(sorted(built)), "lethal": fit.lethal, "unused": fit.unused}
    status: Status = "ok"
    fix: str | None = None
    line = f"llama.cpp was built for this processor ({', '.join(sorted(built))})"
    if fit.lethal:
        line = f"llama.cpp was built for {', '.join(fit.lethal)}, which this processor lacks: it would crash"
        status, fix = "problem", _REBUILD
    elif fit.unused:
        line = f"llama.cpp was built without {', '.join(fit.unused)}, which this processor has: it could be faster"
        status, fix = "warning", _REBUILD
    elif not built & set(processor) or all(value is None for value in processor.values()):
        status, line = "info", f"llama.cpp: {system_info.strip(' |')}; this system does not tell what the processor has"
    return Finding(id="provider/llama.cpp", status=status, summary=line, fix=fix, facts=facts)
