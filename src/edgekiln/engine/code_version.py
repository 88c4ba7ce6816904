"""The version of a step's code: a digest of the modules that it may run.

From the module of the step all imports of Edgekiln's own modules are followed, those within functions too. A change of
any of them makes a step's results anew; a change elsewhere, or another release that left them alone, does not.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Final

_PACKAGE: Final = "edgekiln"
#: Every form of import in this project, which is checked against Python's own parser in a test.
_IMPORT: Final = re.compile(
    rf"^[ \t]*(?:from[ \t]+({_PACKAGE}(?:\.\w+)*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)"
    rf"|import[ \t]+({_PACKAGE}(?:\.\w+)*))",
    re.MULTILINE,
)
_NAME: Final = re.compile(r"(\w+)(?:[ \t]+as[ \t]+\w+)?[ \t]*(?:,|$|\)|\n|#)")


@functools.cache
def _source(module: str) -> Path | None:
    """Return the file of a module of ours, or None when there is no such module."""
    package, _, name = module.rpartition(".")
    if not package:
        folder = importlib.util.find_spec(module)
        return Path(folder.origin) if folder is not None and folder.origin else None
    parent = _folder(package)
    if parent is None:
        return None
    for path in (parent / f"{name}.py", parent / name / "__init__.py"):
        if path.is_file():
            return path
    return _mapped(module)


@functools.cache
def _folder(package: str) -> Path | None:
    path = _source(package)
    return path.parent if path is not None and path.name == "__init__.py" else None


@functools.cache
def _mapped(module: str) -> Path | None:
    """Return the file of a package that lies elsewhere, as the rooms do in an editable install."""
    if module.count(".") != 1:
        return None
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _imported(text: str) -> set[str]:
    """Return every module of ours that a source may import; names that are no modules do not matter."""
    found: set[str] = set()
    for match in _IMPORT.finditer(text):
        if match[3]:
            found.add(match[3])
            continue
        found.add(match[1])
        found |= {f"{match[1]}.{name}" for name in _NAME.findall(match[2])}
    return found


@functools.cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """Return the digest of a module's source and what it imports."""
    path = _source(module)
    if path is None:
        return "", frozenset()
    source = path.read_bytes()
    imports = {name for name in _imported(source.decode("utf-8")) if _source(name) is not None}
    return hashlib.sha256(source.replace(b"\r\n", b"\n")).hexdigest(), frozenset(imports)


def modules_of(module: str) -> frozenset[str]:
    """Return a module of ours with all that it may import."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or _source(name) is None:
            continue
        seen.add(name)
        package = name.rpartition(".")[0]
        waiting += [*_read(name)[1], *([package] if package else [])]
    return frozenset(seen)


@functools.cache
def code_version(*modules: str, own: str | None = None) -> str:
    """Return the digest of some modules and all that they import, in hex.

    Args:
        modules: Their imports are followed.
        own: A module that counts too, but not what it imports.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    more = (own,) if own is not None else ()
    for module in (*modules, *more):
        if _source(module) is None:
            raise ModuleNotFoundError(f"no module {module}")
    digest = hashlib.sha256()
    for name in sorted(frozenset(more).union(*map(modules_of, modules))):
        digest.update(f"{_read(name)[0]}  {name}\n".encode())
    return digest.hexdigest()
