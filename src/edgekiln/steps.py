"""Steps and the store: what a build is made of.

A step is a value: what it does, from which inputs, with which parameters. Its key covers all of that, so that equal
steps are the same step, and a store makes each one at most once. The store here keeps a run's results in one local
directory; caching across runs and machines is another store behind the same two methods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgekiln.artifact import staged


@dataclass(frozen=True)
class Step:
    """One unit of work with one output directory.

    Attributes:
        kind: What it does: `reference`, `export`, `validate`.
        inputs: Identities of what it reads: the checkpoint's, keys of other steps.
        parameters: Everything else that decides its result, JSON-serializable.
        run: Fills an empty directory; not part of the key.
    """

    kind: str
    inputs: tuple[str, ...]
    parameters: Mapping[str, object]
    run: Callable[[Path], None] = field(compare=False)

    @property
    def key(self) -> str:
        """sha256 over kind, inputs and parameters."""
        value = [self.kind, self.inputs, dict(self.parameters)]
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Store(Protocol):
    """Keeps the results of steps."""

    def get(self, step: Step) -> Path:
        """Return the directory with the result of `step`, running it if it is not there. Treat it as read-only."""
        ...


class LocalStore:
    """Results in one local directory, each visible only when it is whole."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, step: Step) -> Path:
        """Return the directory with the result of `step`, running it if it is not there."""
        path = self.root / step.kind / step.key[:32]
        if not path.exists():
            with staged(path) as directory:
                step.run(directory)
        return path
