"""What inspection of checkpoints and of artifacts share: files, checksums, sums by type, bounded values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from edgekiln.artifact import CHECKSUMS, sha256_file
from edgekiln.errors import ArtifactError, EdgekilnError
from edgekiln.model_config import read_json
from edgekiln.pipelines.inspection import FileFacts, TemplateFacts, TypeFacts
from edgekiln.template_check import template_fault
from edgekiln.terminal import printable
from edgekiln.validators.chat_template import ChatTemplate

_MAX_FILES: Final = 10_000
_MAX_VALUE: Final = 200
_MAX_ENTRIES: Final = 400
_SUM: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_MAX_SUMS_BYTES: Final = 4 << 20


def bounded(text: str) -> str:
    """Return a text from a file, cut and made printable."""
    shown = printable(text[:_MAX_VALUE])
    return shown if len(text) <= _MAX_VALUE else f"{shown}… ({len(text):,} characters)"


def flatten(value: object, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return the scalars of a JSON value by dotted key; lists of scalars as text; at most a few hundred."""
    found: dict[str, str | int | float | bool] = {}
    pending: list[tuple[str, object]] = [(prefix, value)]
    while pending and len(found) < _MAX_ENTRIES:
        key, entry = pending.pop()
        if isinstance(entry, Mapping):
            pending += [(f"{key}.{name}" if key else str(name), part) for name, part in reversed(list(entry.items()))]
        elif isinstance(entry, bool | int | float):
            found[bounded(key)] = entry if not isinstance(entry, int) or abs(entry) < 1 << 63 else bounded(str(entry))
        elif entry is not None:
            found[bounded(key)] = bounded(entry if isinstance(entry, str) else str(entry))
    return found


def model_files(root: Path) -> list[Path]:
    """Return every file below a directory.

    Raises:
        ArtifactError: There are far more than any model has.
    """
    paths = []
    for path in root.rglob("*"):
        if path.is_file():
            paths.append(path)
        if len(paths) > _MAX_FILES:
            raise ArtifactError(f"{root} holds more than {_MAX_FILES} files; name the model's own directory")
    return paths


def describe_files(folder: Path, paths: Iterable[Path], *, hashed: bool) -> tuple[tuple[FileFacts, ...], list[str]]:
    """Return size of each file, and where `hashed` its sha256 and what SHA256SUMS in `folder` says about it.

    Returns:
        The files, and what is wrong with them.
    """
    sums = _checksums(folder) if hashed else {}
    files, problems = [], []
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        digest = sha256_file(path) if hashed else None
        state: Literal["ok", "differs", "not listed"] | None = None
        if sums and name != CHECKSUMS:
            state = "not listed" if name not in sums else "ok" if sums[name] == digest else "differs"
        if state == "differs":
            problems.append(f"{printable(name)} has another sha256 than {CHECKSUMS} says: it was changed or damaged")
        files.append(FileFacts(path=printable(name), size=path.stat().st_size, sha256=digest, checksum=state))
    return tuple(files), problems


def missing_files(folder: Path, files: Iterable[FileFacts]) -> list[str]:
    """Return a sentence for each file that SHA256SUMS lists and that is not among `files`."""
    there = {entry.path for entry in files}
    gone = sorted(name for name in _checksums(folder) if printable(name) not in there)
    return [f"{bounded(name)} is missing, though {CHECKSUMS} lists it" for name in gone[:_MAX_ENTRIES]]


def _checksums(folder: Path) -> dict[str, str]:
    """Return sha256 by name from SHA256SUMS; names are compared with files that are there, never opened."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_SUMS_BYTES:
        raise ArtifactError(f"{path} has more than {_MAX_SUMS_BYTES} bytes, which no list of a model's files needs")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {match[2]: match[1].lower() for match in map(_SUM.fullmatch, lines) if match}


def sum_types(tensors: Iterable[tuple[str, int, int]]) -> tuple[TypeFacts, ...]:
    """Return (type, weights, bytes) of tensors summed by type, the one with most bytes first."""
    sums: dict[str, list[int]] = {}
    for name, weights, nbytes in tensors:
        entry = sums.setdefault(name, [0, 0, 0])
        entry[0] += 1
        entry[1] += weights
        entry[2] += nbytes
    total = sum(nbytes for _, _, nbytes in sums.values())
    facts = [
        TypeFacts(
            type=name,
            tensors=count,
            weights=weights,
            bytes=nbytes,
            share=nbytes / total if total else 0.0,
            bits_per_weight=8 * nbytes / weights if weights else None,
        )
        for name, (count, weights, nbytes) in sums.items()
    ]
    return tuple(sorted(facts, key=lambda fact: (-fact.bytes, fact.type)))


def template_facts(template: ChatTemplate | None) -> TemplateFacts | None:
    """Return what there is to say about a chat template."""
    if template is None:
        return None
    fault = template_fault(template.text)
    return TemplateFacts(
        where=template.where,
        characters=len(template.text),
        tools=template.tools,
        thinking=template.thinking,
        fault=None if fault is None else bounded(fault),
    )


def optional_json(path: Path, problems: list[str], max_bytes: int = 64 << 20) -> dict[str, object]:
    """Return a JSON object, or an empty one where there is none; one that cannot be read is a problem."""
    if not path.is_file():
        return {}
    try:
        return read_json(path, max_bytes)
    except EdgekilnError as error:
        problems.append(str(error))
        return {}


def integer(value: object) -> int | None:
    """Return an integer that JSON and metadata readers can hold, else None."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None
