"""Making results for tests of stores, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekiln.artifact import list_files
from edgekiln.engine.record import Ingredients, Record
from edgekiln.engine.store import Claim, Store

FILES = {"model.bin": b"weights" * 1000, "sub/config.json": b"{}"}


def ingredients(name: str = "a", **changes: object) -> Ingredients:
    values = {
        "kind": "export",
        "code": "c" * 64,
        "tools": {"python": "3.11.7", "gguf": "0.19"},
        "inputs": {"checkpoint": "d" * 64},
        "parameters": {"name": name, "group_size": 32, "kept": [1, 2.5, None, True]},
    }
    return Ingredients.model_validate({**values, **changes})


def key(name: str = "a") -> str:
    return ingredients(name).key


def fill(directory: Path, files: Mapping[str, bytes] = FILES) -> None:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)


def record_of(directory: Path, name: str = "a", seconds: float = 1.5) -> Record:
    made = ingredients(name)
    return Record(key=made.key, name=f"{name}.export", ingredients=made, files=list_files(directory), seconds=seconds)


def keep(store: Store, claim: Claim, name: str = "a", files: Mapping[str, bytes] = FILES) -> Record:
    """Fill a claim and put it."""
    fill(claim.directory, files)
    record = record_of(claim.directory, name)
    store.put(claim, record)
    return record


def make(store: Store, name: str = "a", files: Mapping[str, bytes] = FILES) -> Record:
    """Let a store have a result."""
    with store.claim(key(name), resumable=False) as claim:
        assert claim is not None
        return keep(store, claim, name, files)


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
