"""What is kept about a finished step: from what it was made, and which files it left."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from edgekiln.artifact import FileEntry

RECORD_SCHEMA: Final = "edgekiln.step/1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: A path that stays inside of a directory on every system: no part is `.` or `..`, nothing of Windows' drives and
#: separators, nothing that ends a text in C.
_PATH: Final = re.compile(r"(?!\.{1,2}(?:/|\Z))[^/\\:\0]+(?:/(?!\.{1,2}(?:/|\Z))[^/\\:\0]+)*")


class Ingredients(BaseModel):
    """Everything that decides a step's result; its digest is the step's key.

    Attributes:
        kind: What the step does: `reference`, `export`, …
        code: Digest of the modules that do it, see `edgekiln.engine.code_version`.
        tools: Version and digest of every library that touches the result, by name.
        inputs: Digest of the content of everything that is read, by name.
        parameters: All else, JSON-serializable.
    """

    kind: str
    code: str
    tools: dict[str, str]
    inputs: dict[str, str]
    parameters: dict[str, object]

    model_config = ConfigDict(frozen=True, extra="ignore")

    @cached_property
    def key(self) -> str:
        """sha256 over all of it, in hex; the order of mappings does not matter."""
        return hashlib.sha256(_canonical(self.model_dump()).encode()).hexdigest()


class Record(BaseModel):
    """A finished step.

    Attributes:
        schema_id: Kind and version of this document.
        key: Of its ingredients.
        name: What the step was called in the run that made it, e.g. `onnx-cpu-int4.export`.
        ingredients: What it was made from.
        files: Every file of its directory, sorted by path.
        seconds: How long it ran.
        peak_memory_bytes: Highest memory of its processes that was seen; 0 where none was looked at.
    """

    schema_id: Literal["edgekiln.step/1"] = RECORD_SCHEMA
    key: str
    name: str
    ingredients: Ingredients
    files: tuple[FileEntry, ...]
    seconds: float
    peak_memory_bytes: int = 0

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("files")
    @classmethod
    def _lie_inside(cls, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """Refuse a path that leads out of the directory on any system, or occurs twice."""
        for entry in files:
            if _PATH.fullmatch(entry.path) is None:
                raise ValueError(f"{entry.path!r} is no path inside of a directory")
        if len({entry.path for entry in files}) != len(files):
            raise ValueError("a path occurs twice")
        return files

    @cached_property
    def digest(self) -> str:
        """sha256 over names and sha256 of all files: equal results have equal digests, whatever they came from."""
        return content_digest({entry.path: entry.sha256 for entry in self.files})

    @property
    def kind(self) -> str:
        """What the step does."""
        return self.ingredients.kind

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def content_digest(files: Mapping[str, str]) -> str:
    """Return one sha256 over the sha256 of files by path, in hex."""
    listing = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def differences(made: Ingredients, wanted: Ingredients) -> list[str]:
    """Return one line for everything in which two lists of ingredients differ: why one is no hit for the other."""
    lines = []
    if made.kind != wanted.kind:
        lines.append(f"kind: {made.kind} then, {wanted.kind} now")
    if made.code != wanted.code:
        lines.append(f"code of the step: {made.code[:12]} then, {wanted.code[:12]} now (another version of Edgekiln)")
    groups: tuple[tuple[str, Mapping[str, object], Mapping[str, object]], ...] = (
        ("tool", made.tools, wanted.tools),
        ("input", made.inputs, wanted.inputs),
        ("parameter", made.parameters, wanted.parameters),
    )
    for title, *sides in groups:
        then, now = (dict(_leaves(side)) for side in sides)
        lines += [
            f"{title} {name}: {_short(then.get(name))} then, {_short(now.get(name))} now"
            for name in sorted(then.keys() | now.keys())
            if _canonical(then.get(name)) != _canonical(now.get(name))
        ]
    return lines


def _leaves(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yield what is in a mapping and in those within it, with its place: `scheme.precision`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _canonical(value: object) -> str:
    """Return a value as it lies in a file: a tuple is a list there."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _short(value: object) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return f"{text[:12]}…" if _SHA256.fullmatch(text) else text
