"""What Edgekiln's own metadata requires, against what is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Conflict:
    """A requirement that an installed package does not fulfil.

    Attributes:
        package: The package that requires.
        requirement: What it requires, e.g. `tokenizers<0.24`.
        found: The installed version; None where it is missing.
    """

    package: str
    requirement: str
    found: str | None


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements_of(package: str) -> tuple[Requirement, ...]:
    """Return what a distribution requires on this machine, extras left out; nothing if it is not installed."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return ()
    parsed = [Requirement(line) for line in lines]
    return tuple(wanted for wanted in parsed if wanted.marker is None or wanted.marker.evaluate({"extra": ""}))


def fulfils(found: str | None, wanted: Requirement) -> bool:
    """Tell whether an installed version, pre-releases included, is one that a requirement accepts."""
    if found is None:
        return False
    try:
        return wanted.specifier.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return False


def closure(package: str) -> Mapping[str, tuple[Requirement, ...]]:
    """Return the requirements of a distribution and of all that it needs, by canonical name."""
    found: dict[str, tuple[Requirement, ...]] = {}
    waiting = [package]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = requirements_of(name)
            waiting.extend(wanted.name for wanted in found[name])
    return found


def conflicts(package: str) -> Iterator[Conflict]:
    """Yield what does not fit together among the installed packages that `package` needs, itself included."""
    for name, wants in sorted(closure(package).items()):
        for wanted in wants:
            found = installed_version(wanted.name)
            if not fulfils(found, wanted):
                yield Conflict(name, f"{wanted.name}{wanted.specifier}", found)


def read_constraints(path: Path) -> Mapping[str, Requirement]:
    """Return the pins of a constraints file by canonical name; lines that are none are left out."""
    pins: dict[str, Requirement] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        pins[canonicalize_name(wanted.name)] = wanted
    return pins
