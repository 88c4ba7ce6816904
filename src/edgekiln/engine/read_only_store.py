"""A cache that can only be read: what is there is used, what is made meanwhile is kept elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.record import Record
from edgekiln.engine.store import Claim


class ReadOnlyStore:
    """Results of a store that is only read, under those of one that may be written.

    Args:
        base: Opened with `read_only`.
        scratch: Gets what is made.
    """

    def __init__(self, base: LocalStore, scratch: LocalStore) -> None:
        self._base, self._scratch = base, scratch
        self._removed: set[str] = set()

    def find(self, key: str) -> Record | None:
        """Return the record of a finished step, or None."""
        if (record := self._scratch.find(key)) is not None or key in self._removed:
            return record
        return self._base.find(key)

    def open(self, record: Record) -> Path | None:
        """Return the directory of a finished step, checked."""
        if self._scratch.find(record.key) is not None:
            return self._scratch.open(record)
        return None if record.key in self._removed else self._base.open(record)

    def claim(self, key: str, *, resumable: bool) -> AbstractContextManager[Claim | None]:
        """Give the right to make a step. See `Store.claim`."""
        return self._scratch.claim(key, resumable=resumable)

    def put(self, claim: Claim, record: Record) -> Path:
        """Keep what a claim's directory holds, for this run."""
        return self._scratch.put(claim, record)

    def records(self) -> Iterator[Record]:
        """Yield every record that can be read."""
        made = set()
        for record in self._scratch.records():
            made.add(record.key)
            yield record
        for record in self._base.records():
            if record.key not in made | self._removed:
                yield record

    def drop_files(self, key: str) -> None:
        """Forget the files of a step that this run made; the others cannot be removed."""
        self._scratch.drop_files(key)

    def remove(self, key: str) -> None:
        """Forget a step in this run."""
        self._removed.add(key)
        self._scratch.remove(key)

    def using(self) -> AbstractContextManager[None]:
        """Do nothing: no lock can be taken on what cannot be written."""
        return contextlib.nullcontext()
