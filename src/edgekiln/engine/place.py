"""Where the cache lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.store import Complaint, Store


def open_store(
    environment: Mapping[str, str], complain: Complaint, scratch: Path, *, offline: bool
) -> tuple[Store, HashMemory]:
    from platformdirs import user_cache_path

    place = Path(environment.get("EDGEKILN_CACHE") or user_cache_path("edgekiln", appauthor=False))
    store = LocalStore(place, complain)
    return store, HashMemory(store.root / "memory.sqlite")


@contextmanager
def use(store: Store) -> Iterator[None]:
    yield
