"""Where the cache lies, and which store it is.

`EDGEKILN_CACHE` names a directory or an address that fsspec knows; otherwise it is where this system keeps caches. A
cache that cannot be written is no reason not to build: what can be read of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from edgekiln.engine.fsspec_store import FsspecStore
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.read_only_store import ReadOnlyStore
from edgekiln.engine.store import Complaint, Store
from edgekiln.errors import MachineError

VARIABLE: Final = "EDGEKILN_CACHE"
#: What is remembered of files and durations, beside the entries.
MEMORY: Final = "memory.sqlite"


def cache_url(environment: Mapping[str, str]) -> str | None:
    """Return the address of a cache that is shared between machines, or None."""
    value = environment.get(VARIABLE, "")
    return value if "://" in value else None


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return the directory of the cache, or of the near side of a shared one.

    Raises:
        MachineError: There is no home to put it into.
    """
    value = environment.get(VARIABLE, "")
    try:
        if value and "://" not in value:
            return Path(value).expanduser().absolute()
        from platformdirs import user_cache_path

        return user_cache_path("edgekiln", appauthor=False)
    except (RuntimeError, OSError) as error:  # no home, or no working directory
        raise MachineError(f"no place for the cache is known ({error}); set {VARIABLE} to a directory") from None


def open_store(
    environment: Mapping[str, str], complain: Complaint, scratch: Path, *, offline: bool
) -> tuple[Store, HashMemory]:
    """Return the user's cache, and what is remembered beside it.

    Args:
        environment: Has `EDGEKILN_CACHE`, or not.
        complain: Is told what is wrong with the cache.
        scratch: A directory for what is made where the cache cannot be written; it goes with the run.
        offline: A cache that needs a connection is refused.

    Raises:
        MachineError: A shared cache cannot be reached, or not even `scratch` can be written.
    """
    try:
        near = LocalStore(cache_directory(environment), complain)
    except MachineError as error:
        return _instead(environment, error, complain, scratch, offline=offline)
    memory = HashMemory(near.root / MEMORY)
    url = cache_url(environment)
    return near if url is None else FsspecStore(url, near, complain, offline=offline), memory


def _instead(
    environment: Mapping[str, str], error: MachineError, complain: Complaint, scratch: Path, *, offline: bool
) -> tuple[Store, HashMemory]:
    """Return what serves where the cache cannot be written."""
    made = LocalStore(scratch, complain)
    if (url := cache_url(environment)) is not None:
        complain(f"what is fetched from {url} is not kept on this machine: {error}")
        return FsspecStore(url, made, complain, offline=offline), HashMemory(None)
    try:
        base = LocalStore(cache_directory(environment), complain, read_only=True)
    except MachineError:
        complain(f"nothing is cached: {error}")
        return made, HashMemory(None)
    complain(f"the cache is only read, and what is made now is not kept: {error}")
    return ReadOnlyStore(base, made), HashMemory(base.root / MEMORY)


def open_to_read(environment: Mapping[str, str], complain: Complaint, *, writing: bool = False) -> LocalStore | None:
    """Return what of the user's cache lies on this machine, to look at it, or None where there is none.

    Args:
        environment: Has `EDGEKILN_CACHE`, or not.
        complain: Is told what is damaged.
        writing: What is found damaged may be removed, where it can be.

    Raises:
        MachineError: No place for a cache is known.
    """
    place = cache_directory(environment)
    try:
        store = LocalStore(place, complain, read_only=True)
    except MachineError:
        return None
    try:
        return LocalStore(place, complain) if writing else store
    except MachineError:
        return store


def open_to_remove(environment: Mapping[str, str], complain: Complaint) -> LocalStore | None:
    """Return what of the user's cache lies on this machine, to remove of it, or None where there is none.

    Raises:
        MachineError: It cannot be written.
    """
    place = cache_directory(environment)
    return LocalStore(place, complain) if place.exists() else None


def use(store: Store) -> AbstractContextManager[None]:
    """Keep everybody from removing results of a store while an engine runs."""
    return store.using()
