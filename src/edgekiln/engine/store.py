"""The interface of every store: where records and results of finished steps are kept.

A store never shows a result that is not whole. What makes one machine's store one for many machines is another
implementation of these few methods; nothing in the engine knows where results lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from edgekiln.engine.record import Record

#: Is told in one sentence what was found damaged, or cannot be kept.
Complaint: TypeAlias = Callable[[str], None]


@dataclass
class Claim:
    """The right to make one step, and the place to make it in; nobody else makes it meanwhile.

    Attributes:
        key: The step's.
        directory: Gets the step's files; what is in it becomes the result.
        journal: A file beside it for whoever can resume: what of the files is done.
        hashes: sha256 by path below `directory`, where the maker took them already.
    """

    key: str
    directory: Path
    journal: Path
    hashes: dict[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Keeps the results of steps by key."""

    def find(self, key: str) -> Record | None:
        """Return the record of a finished step, or None; its files may be gone."""
        ...

    def open(self, record: Record) -> Path | None:
        """Return a local directory with the files of a finished step, checked; None when they are gone or damaged.

        What is damaged is reported and removed, so that the step is made again. Nothing in the directory may change.
        """
        ...

    def claim(self, key: str, *, resumable: bool) -> AbstractContextManager[Claim | None]:
        """Give the right to make a step, or None while another engine makes it.

        Args:
            key: The step's.
            resumable: The directory holds what an earlier attempt left; otherwise it is empty. Left by an interrupt it
                stays for the next attempt; left by any other exception it is removed.

        Raises:
            MachineError: Nothing can be written.
        """
        ...

    def put(self, claim: Claim, record: Record) -> Path:
        """Keep what a claim's directory holds, all of it at once, and return where it lies now.

        Raises:
            MachineError: The disk is full or cannot be written.
        """
        ...

    def records(self) -> Iterator[Record]:
        """Yield every record, in no order."""
        ...

    def drop_files(self, key: str) -> None:
        """Forget the files of a step, not that it was made."""
        ...

    def remove(self, key: str) -> None:
        """Forget a step."""
        ...

    def using(self) -> AbstractContextManager[None]:
        """Keep everybody from removing results while an engine runs."""
        ...
