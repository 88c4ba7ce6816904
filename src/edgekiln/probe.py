"""Importing a library in a process of its own, to see whether it works here.

A broken native library may crash the interpreter, print, or hang; none of that reaches the one who asks.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

from edgekiln.errors import EdgekilnError
from edgekiln.process import Json, Limits, Task, run_task, serve

#: Importing a library may take this long on a cold disk.
SECONDS: Final = 90.0


def _onnxruntime(module: ModuleType) -> Json:
    return {"providers": list(module.get_available_providers())}


def _genai(module: ModuleType) -> Json:
    asked = {"cuda": "is_cuda_available", "dml": "is_dml_available", "webgpu": "is_webgpu_available"}
    present = {name: getattr(module, function, None) for name, function in asked.items()}
    return {"providers": ["cpu", *(name for name, function in present.items() if function and function())]}


def _llama(module: ModuleType) -> Json:
    # Fills in what the backends know of themselves; it computes nothing yet.
    module.llama_backend_init()
    return {
        "system_info": module.llama_print_system_info().decode("utf-8", "replace"),
        "gpu_offload": bool(module.llama_supports_gpu_offload()),
    }


def _torch(module: ModuleType) -> Json:
    return {"threads": module.get_num_threads(), "cuda": bool(module.cuda.is_available()), "build": module.__version__}


#: What else to ask a library that was imported.
_QUESTIONS: Final[Mapping[str, Callable[[Any], Json]]] = MappingProxyType(
    {"onnxruntime": _onnxruntime, "onnxruntime_genai": _genai, "llama_cpp": _llama, "torch": _torch}
)


def _import_one(name: str) -> Json:
    begin = time.perf_counter()
    try:
        module = importlib.import_module(name)
        seconds = time.perf_counter() - begin
        facts = _QUESTIONS[name](module) if name in _QUESTIONS else {}
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything, and that is what was asked for
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
    return {"seconds": round(seconds, 3), "facts": facts}


def _import(request: Json) -> Json:
    """Import `modules` one after the other; answer what is to be known of each, or why it failed."""
    return {name: _import_one(name) for name in request["modules"]}


def _run(modules: Sequence[str], directory: Path) -> Json:
    log = directory / f"{modules[0]}.log"
    request = {"modules": list(modules)}
    try:
        return run_task("edgekiln.probe", "import", request, log=log, limits=Limits(seconds=SECONDS))
    except EdgekilnError as error:
        sentence = str(error).partition("; its log is ")[0].replace("import (probe)", "importing it")
        printed = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        last = next((line.strip()[:300] for line in reversed(printed) if line.strip()), "")
        return {name: {"error": f"{sentence}: {last}" if last else sentence} for name in modules}


def probe(modules: Sequence[str], directory: Path) -> dict[str, Json]:
    """Import modules in a fresh interpreter, or one each if one of them ends it.

    Args:
        modules: Import names.
        directory: Folder for the logs of what they print.

    Returns:
        By module `seconds` and `facts` when it works, else `error`, one sentence.
    """
    found = _run(modules, directory)
    if len(modules) > 1 and all("error" in answer for answer in found.values()):
        for name in modules:
            found |= _run([name], directory)
    return found


TASKS: Final[Mapping[str, Task]] = MappingProxyType({"import": _import})

if __name__ == "__main__":
    serve(TASKS)
