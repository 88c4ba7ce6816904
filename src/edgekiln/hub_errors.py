"""What a Hub, a proxy and a network can answer instead of a file, as sentences with the way out."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from edgekiln.errors import CheckpointError, EdgekilnError, MachineError
from edgekiln.redact import redact

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS: Final = 10.0
_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})

#: Answers by X-Error-Code or, where that says nothing, by status.
_REFUSALS: Final[Mapping[str | int, tuple[type[EdgekilnError], str]]] = MappingProxyType(
    {
        "GatedRepo": (
            MachineError,
            "{subject!r} is gated; accept its terms at {url}/{subject} and set HF_TOKEN to a token of that account",
        ),
        "RevisionNotFound": (CheckpointError, "the repository {subject!r} has no revision {revision!r}"),
        "EntryNotFound": (MachineError, "{host} lists a file of {subject!r} that it does not have; try another mirror"),
        416: (MachineError, "{host} has less of a file of {subject!r} than it lists; try another mirror"),
        403: (MachineError, "{host} forbids reading {subject!r}; give the token of HF_TOKEN the right to read it"),
        407: (MachineError, "the proxy on the way to {host} wants a login; put user:password@ into HTTPS_PROXY"),
    }
)
_OTHERWISE: Final = (
    MachineError,
    "{host} answers {status} when asked for {subject!r}; is HF_ENDPOINT the address of a Hub?",
)


class TransientError(MachineError):
    """A failure that may be gone at the next try.

    Attributes:
        wait: Seconds that the server asked for, or None.
        unreachable: No connection came about.
    """

    def __init__(self, message: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait, self.unreachable = wait, unreachable


@dataclass(frozen=True)
class Endpoint:
    """Where the Hub is, and what opens it.

    Attributes:
        url: Address without credentials and without a slash at the end.
        authorization: Value of the header that goes to this very origin and nowhere else, or None.
    """

    url: str
    authorization: str | None

    @property
    def host(self) -> str:
        """Name and port, for sentences."""
        return urlsplit(self.url).netloc

    def owns(self, url: str) -> bool:
        """Tell whether `url` has this scheme, host and port."""
        return _origin(url) == _origin(self.url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def host_of(url: str) -> str:
    """Return name and port of an address, without a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def refusal(response: httpx2.Response, wanted: str, endpoint: Endpoint) -> EdgekilnError:
    """Turn an answer that is no success into the error for it.

    Args:
        response: The answer.
        wanted: `org/name@revision`.
        endpoint: The Hub, which may not be who answered.
    """
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    subject, _, revision = wanted.partition("@")
    if not endpoint.owns(str(response.url)):
        # Addresses of a CDN are signed and go out of date; the next try gets a new one.
        host = host_of(str(response.url))
        return TransientError(f"{host} answers {status} for a file of {subject!r}", wait=_retry_after(response))
    if status in _TRANSIENT_STATUS:
        return _later(response, endpoint.host)
    if code == "RepoNotFound" or (status == 401 and code not in _REFUSALS):
        return _no_access(status, code, subject, endpoint)
    kind, sentence = _REFUSALS.get(code) or _REFUSALS.get(status) or _OTHERWISE
    values = {"subject": subject, "revision": revision, "host": endpoint.host, "url": endpoint.url, "status": status}
    return kind(sentence.format(**values))


def _no_access(status: int, code: str, subject: str, endpoint: Endpoint) -> EdgekilnError:
    """Tell a wrong token from a repository that is not there; the Hub answers 401 to both."""
    if endpoint.authorization is None:
        return CheckpointError(f"the Hub has no repository {subject!r}, or it is private and HF_TOKEN is not set")
    if status == 401 and code != "RepoNotFound":
        return MachineError(
            f"{endpoint.host} does not accept the token; renew HF_TOKEN (or run `hf auth login`), "
            "or unset it for what is public"
        )
    return CheckpointError(f"the Hub has no repository {subject!r}, or it is private and the token does not open it")


def _later(response: httpx2.Response, host: str) -> TransientError:
    wait, status = _retry_after(response), response.status_code
    until = f", for {wait:g} s" if wait is not None else ""
    if status == 429:
        return TransientError(f"{host} takes no more requests for now (429{until})", wait=wait)
    return TransientError(f"{host} has trouble of its own ({status}{until})", wait=wait)


def _retry_after(response: httpx2.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def broken(error: Exception, url: str, stall_seconds: float) -> EdgekilnError:
    """Turn an exception of httpx2's into the error for it.

    Args:
        error: What was raised instead of an answer, or while its body came.
        url: What was asked for.
        stall_seconds: How long a read waits.
    """
    import httpx2

    host, proxy = host_of(url), _proxy_of(url)
    through = f" through the proxy {proxy}" if proxy else ""
    match error:
        case httpx2.ProxyError():
            return _proxy_refusal(error, host, proxy)
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return _unreachable(error, host, proxy, through)
        case httpx2.TimeoutException():
            return TransientError(f"{host}{through} sent nothing for {stall_seconds:g} s")
        case httpx2.TransportError() if not isinstance(error, httpx2.UnsupportedProtocol):
            return TransientError(f"the connection to {host}{through} broke")
        case _:
            return MachineError(f"{host} sends what cannot be understood ({redact(str(error))}); check HF_ENDPOINT")


def _proxy_of(url: str) -> str | None:
    """Name the proxy that `url` is asked through, without its password."""
    proxies = getproxies()
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all")
    return host_of(proxy if "://" in proxy else f"//{proxy}") if proxy and not proxy_bypass(host_of(url)) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what lies beneath it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _unreachable(error: Exception, host: str, proxy: str | None, through: str) -> EdgekilnError:
    """Say why no connection came about."""
    beneath = list(_causes(error))
    if tls := next((one for one in beneath if isinstance(one, ssl.SSLError)), None):
        return MachineError(_tls_sentence(tls, host, through))
    first = proxy or host
    if any(isinstance(one, TimeoutError) for one in beneath) or "timed out" in str(error):
        why = f"no connection within {CONNECT_SECONDS:g} s"
    elif any(isinstance(one, socket.gaierror) for one in beneath):
        why = f"the name {first.rpartition(':')[0] or first} is not known"
    elif any(isinstance(one, ConnectionRefusedError) for one in beneath):
        why = f"{first} refuses the connection"
    else:
        why = redact(str(error))
    check = "HTTPS_PROXY" if proxy else "HF_ENDPOINT"
    return TransientError(
        f"the Hub {host} cannot be reached{through}: {why}; check the network and {check}", unreachable=True
    )


def _proxy_refusal(error: Exception, host: str, proxy: str | None) -> EdgekilnError:
    said = redact(str(error)).strip() or "no reason given"
    fix = "put user:password@ into HTTPS_PROXY" if "407" in said else "check HTTPS_PROXY, or add the host to NO_PROXY"
    return MachineError(f"the proxy {proxy or 'of this environment'} does not let us through to {host} ({said}); {fix}")


def _tls_sentence(error: ssl.SSLError, host: str, through: str) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = error.reason or redact(str(error))
        return f"{host}{through} does not speak TLS with us ({reason}); check that HF_ENDPOINT is right about https"
    return (
        f"the certificate of {host}{through} is not trusted ({error.verify_message}); set SSL_CERT_FILE or "
        "REQUESTS_CA_BUNDLE to a PEM file with the authority that signed it"
    )
