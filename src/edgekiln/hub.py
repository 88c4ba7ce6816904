"""Resolving a Hub id to a local snapshot that holds nothing but configuration, weights and tokenizer files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgekiln.errors import CheckpointError, MachineError, UsageError

#: Everything a checkpoint may consist of. No pickle (.bin, .pt) and no code (.py) is ever fetched.
ALLOWED_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def parse_hub_id(source: str) -> tuple[str, str | None] | None:
    """Return (repository, revision) if `source` reads as `[hf://]org/name[@revision]`, else None."""
    name, _, revision = source.removeprefix("hf://").partition("@")
    return (name, revision or None) if _HUB_ID.fullmatch(name) else None


def hub_is_offline(offline: bool) -> bool:
    """Tell whether the network is off limits, by our flag or by HF_HUB_OFFLINE."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def fetch_snapshot(source: str, *, offline: bool) -> tuple[Path, str]:
    """Return (directory, commit) of a Hub repository, from the local cache when offline.

    Raises:
        UsageError: `source` is no Hub id.
        CheckpointError: The Hub has no such repository or revision.
        MachineError: Offline and not in the cache, or the Hub cannot be reached.
    """
    parsed = parse_hub_id(source)
    if parsed is None:
        raise UsageError(f"{source!r} is no Hub id; write org/name or org/name@revision")
    repository, revision = parsed
    offline = hub_is_offline(offline)

    import httpx2  # what huggingface_hub speaks HTTP with
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(ALLOWED_PATTERNS),
                local_files_only=offline,
            )
        )
    except HFValidationError as error:
        raise UsageError(f"{source!r} is no Hub id: {error}") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"the repository {repository!r} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"the Hub has no repository {repository!r}, or it is private and HF_TOKEN is not set"
        ) from None
    except LocalEntryNotFoundError:
        if offline:
            raise MachineError(
                f"{source!r} is not in the local Hub cache and the network is off; "
                "run once without --offline and HF_HUB_OFFLINE, or give a local directory"
            ) from None
        raise MachineError(f"the Hub cannot be reached to fetch {source!r}; check the network or HF_ENDPOINT") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise MachineError(f"fetching {source!r} from the Hub failed: {type(error).__name__}: {error}") from None
    return path, path.name
