"""Doctor: which devices of the catalogue this machine can validate for, and how."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from edgekiln.errors import UsageError
from edgekiln.host import hardware_names
from edgekiln.pipelines.findings import Fact, Finding, Status
from edgekiln.pipelines.targets import Target, load_targets
from edgekiln.requirements import installed_version

Kind: TypeAlias = Literal["native", "other-machine", "stand-in", "blocked", "unsupported"]
#: What every validation needs; what a format needs beside that and the package of the target's runtime follows.
_EVERYTHING: Final = ("numpy", "tokenizers", "torch", "transformers")
_OF_ONNX: Final = ("mobius-onnx", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai")
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"onnx": _OF_ONNX, "foundry-local": _OF_ONNX, "gguf": ("gguf", "llama-cpp-python")}
)
_LINES: Final[Mapping[Kind, tuple[Status, str, str | None]]] = {
    "native": ("ok", "validated here as on the device", None),
    "other-machine": (
        "info",
        "validated here in the device's runtime, on another machine: absolute speeds are not judged",
        None,
    ),
    "stand-in": ("info", "exported here and validated in a stand-in runtime; reports say which", None),
    "blocked": ("warning", "not before what they need is mended", None),
    "unsupported": ("info", "cannot be exported; `edgekiln targets NAME` says why and what to do instead", None),
}


def _kind(target: Target, broken: Mapping[str, str], names: str) -> tuple[Kind, str | None]:
    """Return what can be done for a target here, and the reason where it is not everything.

    Args:
        target: The device profile.
        broken: What does not work, by package.
        names: What this machine is called.
    """
    if target.unsupported is not None:
        return "unsupported", target.unsupported
    package = target.runtime.facts.package
    needed = {package, *_EVERYTHING, *_NEEDED[target.format]}
    if lacking := sorted(needed & set(broken)):
        return "blocked", f"{', '.join(lacking)}: does not work, see above"
    found = installed_version(package) or "missing"
    if target.runtime.facts.stand_in is None and not target.runtime.accepts(found):
        return "blocked", f"install {package}{target.runtime.version}, found {found}"
    if target.stand_in is not None:
        return "stand-in", target.stand_in
    here = target.is_this_machine(platform.machine(), names)
    return ("native", None) if here else ("other-machine", None)


def target_findings(path: Path | None, broken: Mapping[str, str]) -> Iterator[Finding]:
    """Sort the catalogue's targets by what this machine can do for them.

    Args:
        path: A targets file; None for the one that builds would use.
        broken: What does not work, by package.
    """
    try:
        catalogue = load_targets(path)
    except UsageError as error:
        advice = "correct it, or name another one with --targets"
        yield Finding(id="target/catalogue", status="problem", summary=str(error).splitlines()[0], fix=advice)
        return
    sorted_targets: dict[Kind, dict[str, str | None]] = {kind: {} for kind in _LINES}
    here = hardware_names()
    for name, target in catalogue.targets.items():
        kind, reason = _kind(target, broken, here)
        sorted_targets[kind][name] = reason
    for group, names in sorted_targets.items():
        if names:
            status, line, fix = _LINES[group]
            if group == "blocked":
                fix = "; ".join(sorted({why for why in names.values() if why}))
            facts: dict[str, Fact] = dict(names)
            summary = f"{line}: {', '.join(names)}"
            yield Finding(id=f"target/{group}", status=status, summary=summary, fix=fix, facts=facts)
