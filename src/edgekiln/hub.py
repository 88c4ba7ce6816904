"""Resolving a Hub id to a local snapshot that holds nothing but configuration, weights and tokenizer files."""

from __future__ import annotations

import contextlib
import os
import re
import time
from fnmatch import fnmatchcase
from pathlib import Path

from edgekiln.errors import CheckpointError, MachineError, UsageError
from edgekiln.hub_client import HubClient, open_client
from edgekiln.hub_errors import TransientError
from edgekiln.hub_files import (
    MAX_SMALL_FILE,
    HubCache,
    HubFile,
    Listener,
    Silence,
    check_path,
    list_files,
    resolve_commit,
)
from edgekiln.redact import redact

#: Everything a checkpoint may consist of. No pickle (.bin, .pt) and no code (.py) is ever fetched.
ALLOWED_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_BAD_NAME = re.compile(r"--|\.\.|(?:\.git|[.-])$")  # huggingface_hub refuses these too
_REVISION = re.compile(r"[A-Za-z0-9_](?:[\w.+-]|/(?=[A-Za-z0-9_])){0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def parse_hub_id(source: str) -> tuple[str, str | None] | None:
    """Return (repository, revision) if `source` reads as `[hf://]org/name[@revision]`, else None."""
    name, _, revision = source.removeprefix("hf://").partition("@")
    return (name, revision or None) if _HUB_ID.fullmatch(name) else None


def hub_is_offline(offline: bool) -> bool:
    """Tell whether the network is off limits, by our flag, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    return offline or any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE_VARIABLES)


def fetch_snapshot(source: str, *, offline: bool, listener: Listener | None = None) -> tuple[Path, str]:
    """Return (directory, commit) of a Hub repository, from the local cache when offline.

    The revision is resolved to a commit once, and files of that commit only are fetched. What is in the cache is not
    fetched again; a commit given in full that is there needs no connection. Offline means no connection at all.

    Args:
        source: `[hf://]org/name[@revision]`.
        offline: Use the cache only.
        listener: Is told how it goes on.

    Raises:
        UsageError: `source` is no Hub id, or HF_ENDPOINT no address.
        CheckpointError: The Hub has no such repository or revision, or it holds what no checkpoint does.
        MachineError: Offline and not in the cache; or the Hub cannot be reached, refuses, or sends damaged files; or
            the cache has no room or cannot be written.
    """
    repository, revision = _parse(source)
    if hub_is_offline(offline):
        return _from_cache(source, repository, revision)
    if _COMMIT.fullmatch(revision) and (known := _cached(repository, revision)):
        return known
    try:
        with open_client() as client:
            return _fetch(client, repository, revision, listener or Silence())
    except TransientError as error:
        known = _cached(repository, revision)
        again = (
            ""
            if error.unreachable
            else "; try again later"
            if error.wait is None
            else f"; try again in {error.wait:g} s"
        )
        way_out = f"; --offline takes commit {known[1][:7]} of it, which is in the cache" if known else again
        raise MachineError(f"fetching {source!r} failed: {error}{way_out}") from None


def _parse(source: str) -> tuple[str, str]:
    parsed = parse_hub_id(source)
    if parsed is None:
        raise UsageError(f"{redact(source)!r} is no Hub id; write org/name or org/name@revision")
    repository, revision = parsed[0], parsed[1] or "main"
    if _BAD_NAME.search(repository):
        raise UsageError(
            f"{redact(source)!r} is no Hub id: no name has '--' or '..' in it, or ends with '.git', . or -"
        )
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith((".", ".lock", "/")):
        raise UsageError(f"{redact(source)!r} is no Hub id: a revision is a branch, a tag or a commit")
    return repository, revision


def _cache_root() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _wanted(files: tuple[HubFile, ...]) -> list[HubFile]:
    return [file for file in files if _is_wanted(file.path)]


def _is_wanted(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in ALLOWED_PATTERNS)


def _fetch(client: HubClient, repository: str, revision: str, listener: Listener) -> tuple[Path, str]:
    commit = revision if _COMMIT.fullmatch(revision) else resolve_commit(client, repository, revision)
    cache = HubCache(_cache_root(), repository)
    files = list_files(client, repository, commit)
    wanted = _wanted(files)
    _check_checkpoint(repository, commit, wanted)
    missing = [file for file in wanted if not cache.has(commit, file)]
    if missing:
        cache.check_space(missing)
        cache.note_listing(commit, files)  # first: a fetch that is interrupted leaves no snapshot that looks whole
        _fetch_files(client, cache, commit, missing, listener)
        cache.note_revision(revision, commit)
    else:
        with contextlib.suppress(MachineError):  # a cache that has all of it may be read-only
            cache.note_revision(revision, commit)
    return cache.snapshot(commit), commit


def _fetch_files(client: HubClient, cache: HubCache, commit: str, missing: list[HubFile], listener: Listener) -> None:
    name, megabytes = f"{cache.repository}@{commit[:7]}", cache.missing_bytes(missing) / 1e6
    begin = time.monotonic()
    listener.say(f"fetching {name}: {len(missing)} files, {megabytes:.1f} MB, from {client.endpoint.host}")
    for file in sorted(missing, key=lambda file: (file.size, file.path)):  # what is small may show what is wrong
        cache.add(client, commit, file, listener)
    listener.say(f"fetched {name}, {time.monotonic() - begin:.1f} s; it is in {cache.root}")


def _check_checkpoint(repository: str, commit: str, wanted: list[HubFile]) -> None:
    """Refuse before anything is fetched what could not be opened afterwards."""
    if not any(file.path == "config.json" for file in wanted):
        raise CheckpointError(f"{repository}@{commit[:7]} has no config.json, so it is no checkpoint")
    for file in wanted:
        check_path(file.path, repository)
        if file.size > MAX_SMALL_FILE and not file.path.endswith(".safetensors"):
            raise CheckpointError(
                f"{file.path} of {repository} has {file.size} bytes; no such file needs more than {MAX_SMALL_FILE}"
            )


def _cached(repository: str, revision: str) -> tuple[Path, str] | None:
    """Return the snapshot of a revision if all of it is in the cache."""
    try:
        return _from_cache(f"{repository}@{revision}", repository, revision)
    except MachineError:
        return None


def _from_cache(source: str, repository: str, revision: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        path = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(ALLOWED_PATTERNS), local_files_only=True
            )
        )
    except IncompleteSnapshotError:
        raise MachineError(
            f"{source!r} is only in part in the local Hub cache and the network is off; run once without --offline "
            "and HF_HUB_OFFLINE to complete it"
        ) from None
    except LocalEntryNotFoundError:
        raise MachineError(
            f"{source!r} is not in the local Hub cache and the network is off; "
            "run once without --offline and HF_HUB_OFFLINE, or give a local directory"
        ) from None
    except OSError as error:
        raise MachineError(f"the Hub cache {_cache_root()} cannot be read: {error.strerror or error}") from None
    _check_sizes(path, source, repository)
    return path, path.name


def _check_sizes(snapshot: Path, source: str, repository: str) -> None:
    """Find files that were cut short, by a crash say, where the listing of the commit is there."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        listed = get_cached_repo_tree(repository, revision=snapshot.name)
    except CachedRepoTreeNotFoundError:
        return
    for entry in listed:
        path = snapshot / entry.path
        if _is_wanted(entry.path) and path.is_file() and path.stat().st_size != entry.size:
            raise MachineError(
                f"{entry.path} of {source!r} is damaged in the local Hub cache: {path.stat().st_size} bytes instead of "
                f"{entry.size}; run once without --offline and HF_HUB_OFFLINE to mend it"
            )
