"""Looking after the cache: what is in it, whether it is what was put there, and what may go.

A cache that is shared between machines is looked after where it lies; what is seen and removed here is this machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.kept_files import remove_tree
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.place import MEMORY, cache_directory, open_to_read, open_to_remove
from edgekiln.engine.record import Record
from edgekiln.errors import ExitCode, MachineError
from edgekiln.table import table

_SCHEMA: Final = "edgekiln.cache/1"
#: The time of last use is known to within an hour, see `LocalStore.last_use`.
_HOUR: Final = 3600.0
_READERS: Final = 4
_AGES: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


@dataclass(frozen=True)
class Shown:
    """What a command prints, and how it ends."""

    text: str
    exit_code: ExitCode = ExitCode.PASSED


@dataclass(frozen=True)
class _Result:
    """A result in the cache.

    Attributes:
        record: What it is.
        last_use: Seconds since the epoch, to within an hour.
        files: Bytes of each of its files by the number that the file system knows it by.
    """

    record: Record
    last_use: float
    files: Mapping[tuple[int, int], int]

    @property
    def size(self) -> int:
        """Bytes of its files, shared ones too."""
        return sum(self.files.values())


def list_cache(environment: Mapping[str, str], *, as_json: bool) -> Shown:
    """Return every result with its size and when it was last used; the newest comes first.

    Raises:
        MachineError: No place for a cache is known.
    """
    complaints: list[str] = []
    store = open_to_read(environment, complaints.append)
    results = [] if store is None else sorted(_results(store), key=lambda each: -each.last_use)
    total = _total(results)
    place = cache_directory(environment)
    if as_json:
        rows = [_json(result) for result in results]
        document = {"schema": _SCHEMA, "directory": str(place), "bytes": total, "results": rows, "damaged": complaints}
        return Shown(json.dumps(document, indent=2))
    columns = (("kind", False), ("name", False), ("size", True), ("last used", True), ("key", False))
    cells = [
        (each.record.kind, each.record.name, _size(each), _age(each.last_use), each.record.key[:12]) for each in results
    ]
    lines = [table(columns, cells)] if cells else []
    lines += [f"{complaint}." for complaint in complaints]
    return Shown("\n".join([*lines, f"{len(results)} results, {_bytes(total)} in {place}"]))


def verify_cache(environment: Mapping[str, str], *, as_json: bool) -> Shown:
    """Hash every file of every result; remove what is not what was put there.

    Raises:
        MachineError: No place for a cache is known.
    """
    damaged: list[str] = []
    store = open_to_read(environment, damaged.append, writing=True)
    records = [] if store is None else [record for record in store.records() if store.has_files(record.key)]
    if store is not None:
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
            faults = list(pool.map(store.fault, records))
        damaged += [
            _deal_with(store, record, fault)
            for record, fault in zip(records, faults, strict=True)
            # An engine may have removed it meanwhile.
            if fault is not None and store.find(record.key) is not None
        ]
    code = ExitCode.STEP_FAILED if damaged else ExitCode.PASSED
    if as_json:
        document = {"schema": _SCHEMA, "checked": len(records), "damaged": damaged}
        return Shown(json.dumps(document, indent=2), code)
    summary = f"{len(records)} results checked, {len(damaged) or 'none'} damaged"
    return Shown("\n".join([*(f"{each}." for each in damaged), summary]), code)


def _deal_with(store: LocalStore, record: Record, fault: str) -> str:
    store.remove_damaged(record)
    end = "cannot be removed, since the cache is read-only" if store.read_only else "was removed; it is made again"
    return f"{record.name} ({record.key[:12]}): {fault}; the result {end}"


def collect_garbage(environment: Mapping[str, str], max_bytes: int, *, dry_run: bool) -> Shown:
    """Remove what killed runs left, then what was not used for longest, until at most `max_bytes` are left.

    Of what was used in the same hour the largest goes first, since it frees most.

    Raises:
        MachineError: An engine uses the cache, or it cannot be written.
    """
    store = open_to_remove(environment, lambda _: None)
    if store is None:
        return Shown(f"no cache in {cache_directory(environment)}")
    with contextlib.nullcontext() if dry_run else store.alone():
        left = list(store.root.joinpath("partial").iterdir()) if dry_run else _remove_abandoned(store)
        if not dry_run:
            store.sweep()
        results = list(_results(store))
        before = _total(results)
        gone, remain = _choose(results, max_bytes)
        if not dry_run:
            for result in gone:
                store.remove(result.record.key)
            store.sweep()
            memory = HashMemory(store.root / MEMORY)
            memory.forget_missing()
            memory.close()
    would = "would be " if dry_run else ""
    lines = [f"{would}removed: {each.record.name} ({each.record.key[:12]}), {_size(each)}" for each in gone]
    if left:
        lines.append(f"{would}removed: what {len(left)} killed steps left")
    lines.append(
        f"{len(gone)} of {len(results)} results {would}removed ({_bytes(before - remain)}); {_bytes(remain)} "
        f"{'would remain' if dry_run else 'remain'} of at most {_bytes(max_bytes)}"
    )
    return Shown("\n".join(lines))


def _remove_abandoned(store: LocalStore) -> list[Path]:
    removed = []
    for place in store.abandoned():
        try:
            remove_tree(place)
        except OSError as error:
            raise MachineError(f"{place} cannot be removed: {error.strerror}; check its permissions") from None
        removed.append(place)
    return removed


def _choose(results: list[_Result], max_bytes: int) -> tuple[list[_Result], int]:
    """Return what has to go so that at most `max_bytes` are left, and how many are left then."""
    names = Counter(file for result in results for file in result.files)
    sizes = {file: size for result in results for file, size in result.files.items()}
    total, gone = _total(results), []
    for result in sorted(results, key=lambda each: (each.last_use // _HOUR, -each.size)):
        if total <= max_bytes:
            break
        names.subtract(result.files.keys())
        total -= sum(sizes[file] for file in result.files if names[file] == 0)
        gone.append(result)
    return gone, total


def _total(results: Iterable[_Result]) -> int:
    """Return the bytes of all files; what results share counts once."""
    return sum({file: size for result in results for file, size in result.files.items()}.values())


def _results(store: LocalStore) -> list[_Result]:
    return [_Result(record, store.last_use(record.key), _files(store, record)) for record in store.records()]


def _files(store: LocalStore, record: Record) -> dict[tuple[int, int], int]:
    """Return the bytes of a result's files, its entry among them, by device and inode."""
    found = {}
    for path in store.paths(record):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[status.st_dev, status.st_ino] = status.st_size
    return found


def _json(result: _Result) -> dict[str, object]:
    return {
        "kind": result.record.kind,
        "name": result.record.name,
        "key": result.record.key,
        "bytes": result.size,
        "last_used": datetime.fromtimestamp(result.last_use, UTC).isoformat(timespec="minutes"),
        "seconds": result.record.seconds,
    }


def _age(moment: float) -> str:
    seconds = datetime.now(UTC).timestamp() - moment
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return "now"


def _size(result: _Result) -> str:
    return _bytes(result.size)


def _bytes(size: int) -> str:
    """Return a size for people, rounded."""
    value, name = float(size), "B"
    for unit in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, name = value / 1000, unit
    return f"{value:.0f} {name}" if name == "B" or value >= 99.95 else f"{value:.1f} {name}"
