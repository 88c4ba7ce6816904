"""Keeping secrets out of sight: out of every line that is printed, and out of the environment of children.

A token reaches a log by way of an address (`https://user:secret@host`), of a header in somebody's error message, or
of a child that prints its environment. So text is cleaned where it leaves the process, and children get none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

MASK: Final = "***"

#: Variables whose value is a secret. No native runtime of ours needs any of them.
_SECRET_NAME: Final = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|(?:API|ACCESS|PRIVATE)_?KEY)$", re.IGNORECASE
)
#: Variables that hold an address, which may hold a password.
_ADDRESS_NAME: Final = re.compile(r"(?:_PROXY|_ENDPOINT|_INDEX_URL)$", re.IGNORECASE)
_SHORTEST: Final = 6  # masking shorter values would blacken ordinary words

_PATTERNS: Final = (
    (re.compile(r"(?<=://)[^\s/'\"]*@"), f"{MASK}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"), MASK),
    (
        re.compile(r"([?&][^\s=&?]*(?:token|signature|sig|secret|key|credential|policy)=)[^\s&'\"]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
)

#: Secrets that came from elsewhere than the environment, such as the file that `hf auth login` writes.
_remembered: set[str] = set()


def remember_secret(value: str) -> None:
    """Mask `value` from now on wherever `redact` is used."""
    if len(value) >= _SHORTEST:
        _remembered.add(value)


def _has_password(value: str) -> bool:
    return "@" in value.partition("://")[2] or ("://" not in value and "@" in value)


def _known(environment: Mapping[str, str]) -> set[str]:
    """Return every secret that is known, longest parts included."""
    found = set(_remembered)
    for name, value in environment.items():
        if _SECRET_NAME.search(name):
            found.add(value.strip())
        elif _ADDRESS_NAME.search(name) and _has_password(value):
            userinfo = value.rpartition("@")[0].rpartition("://")[2]
            password = userinfo.partition(":")[2] or userinfo
            found |= {userinfo, password, unquote(password)}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def redact(text: str) -> str:
    """Return `text` without secrets: tokens, passwords in addresses, signatures of addresses."""
    for secret in sorted(_known(os.environ), key=len, reverse=True):
        text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a child that has no business with any account."""
    return {
        name: value
        for name, value in environment.items()
        if not _SECRET_NAME.search(name) and not (_ADDRESS_NAME.search(name) and _has_password(value))
    }
