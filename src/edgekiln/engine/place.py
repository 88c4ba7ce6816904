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
from edgekiln.engine.local_store import LocalStore, complain_to_nobody
from edgekiln.engine.read_only_store import ReadOnlyStore
from edgekiln.engine.store import Complaint, Store
from edgekiln.errors import MachineError

VARIABLE: Final = "EDGEKILN_CACHE"
_MEMORY: Final = "memory.sqlite"


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
    memory = HashMemory(near.root / _MEMORY)
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
    return ReadOnlyStore(base, made), HashMemory(base.root / _MEMORY)


def open_directory(environment: Mapping[str, str]) -> LocalStore:
    """Return the local part of the user's cache, to look after it.

    Raises:
        MachineError: It cannot be written.
    """
    return LocalStore(cache_directory(environment), complain_to_nobody)


def use(store: Store) -> AbstractContextManager[None]:
    """Keep everybody from removing results of a store while an engine runs."""
    return store.using()
