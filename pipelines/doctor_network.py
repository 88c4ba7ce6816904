"""Doctor: the settings that decide how checkpoints are fetched. No connection is made, and no secret is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgekiln.hub import hub_is_offline
from edgekiln.pipelines.findings import Finding

_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_ENDPOINT: Final = "https://huggingface.co"


def bare_address(text: str) -> str:
    """Return an address without credentials, query and fragment, whatever else is wrong with it.

    A password may hold any character, so everything before the last `@` goes, even where that takes the host's
    beginning with it.
    """
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    rest = text[scheme.end() if scheme else 0 :].rpartition("@")[2]
    return (scheme[0] if scheme else "") + re.split(r"[?#\s]", rest, maxsplit=1)[0]


def _given(environment: Mapping[str, str], name: str) -> str | None:
    """Return a variable that may be written in capitals or not."""
    return environment.get(name) or environment.get(name.lower()) or None


def _proxies(environment: Mapping[str, str]) -> Finding:
    found = {name: bare_address(value) for name in _PROXIES if (value := _given(environment, name))}
    facts: dict[str, Any] = dict(found)
    if not found:
        return Finding(id="network/proxy", status="info", summary="no proxy is set", facts=facts)
    line = ", ".join(f"{name} {address}" for name, address in found.items())
    if exceptions := _given(environment, "NO_PROXY"):
        facts["NO_PROXY"] = ", ".join(bare_address(part.strip()) for part in exceptions.split(","))
        line += f", NO_PROXY {facts['NO_PROXY']}"
    if "HTTPS_PROXY" not in found and "ALL_PROXY" not in found:
        fix = "set HTTPS_PROXY too: the Hub is reached by https"
        return Finding(id="network/proxy", status="warning", summary=line, fix=fix, facts=facts)
    return Finding(id="network/proxy", status="info", summary=line, facts=facts)


def _certificates(environment: Mapping[str, str]) -> Finding:
    found = {name: environment[name] for name in _CERTIFICATES if environment.get(name)}
    missing = [f"{name} names {path}" for name, path in found.items() if not Path(path).exists()]
    facts: dict[str, Any] = dict(found)
    if missing:
        line = f"{', '.join(missing)}, which does not exist: no secure connection will come about"
        fix = "correct the path or unset the variable"
        return Finding(id="network/certificates", status="warning", summary=line, fix=fix, facts=facts)
    line = ", ".join(f"{name} {path}" for name, path in found.items()) or "the built-in certificates are used"
    return Finding(id="network/certificates", status="info", summary=line, facts=facts)


def _has_saved_token(environment: Mapping[str, str]) -> bool:
    """Tell whether `hf auth login` left a token; it is not read."""
    if path := environment.get("HF_TOKEN_PATH"):
        return Path(path).is_file()
    home = environment.get("HF_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache" / "huggingface").joinpath("token").is_file()
    except (RuntimeError, OSError):
        return False


def network_findings(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Describe proxies, certificates and the Hub's settings.

    Args:
        environment: The process's environment.
    """
    yield _proxies(environment)
    yield _certificates(environment)
    endpoint = environment.get("HF_ENDPOINT")
    facts: dict[str, Any] = {
        "endpoint": bare_address(endpoint) if endpoint else _ENDPOINT,
        "endpoint_is_set": bool(endpoint),
        "offline": hub_is_offline(offline=False),
        "token": "environment"
        if any(environment.get(name) for name in _TOKENS)
        else "file"
        if _has_saved_token(environment)
        else "none",
    }
    token = {"environment": "HF_TOKEN is set", "file": "a saved token is used", "none": "no token"}[facts["token"]]
    line = f"checkpoints come from {facts['endpoint']}, {token}"
    if facts["offline"]:
        line = f"HF_HUB_OFFLINE is set: Hub checkpoints come from the local cache only ({facts['endpoint']}, {token})"
    yield Finding(id="network/hub", status="info", summary=line, facts=facts)
