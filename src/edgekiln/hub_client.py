"""Talking to a Hub: one HTTP client whose every failure is a sentence.

`huggingface_hub` says where the Hub, its cache and the token are; the requests are ours. Version 2.4 drops what it
buffered (up to 10 MiB) whenever a connection breaks, deletes partial files, follows `Retry-After` for as long as a
server likes, reads answers of any size, and serves an older copy when the Hub answers with an error.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from edgekiln import __version__
from edgekiln.errors import MachineError, UsageError
from edgekiln.hub_errors import CONNECT_SECONDS, Endpoint, TransientError, broken, host_of, refusal
from edgekiln.redact import redact, remember_secret

if TYPE_CHECKING:
    import httpx2

_MAX_REDIRECTS: Final = 8
_MAX_ANSWER: Final = 16 << 20  # a page of a thousand files takes half a MiB
_ANSWER_SECONDS: Final = 60.0
_LONGEST_WAIT: Final = 30.0  # seconds that we wait for a server that asks for patience
_CA_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Patience:
    """Counts failures in a row and waits between tries: 1, 2, 4, 8, 8 … seconds, or what the server asks for.

    Args:
        tries: Tries in a row that may fail.
        connections: The same, of failures to connect at all.
    """

    def __init__(self, tries: int = 6, connections: int = 6) -> None:
        self._tries, self._connections = tries, connections
        self._failures = 0

    def after(self, error: TransientError, *, progress: bool = False) -> float:
        """Return the seconds to wait after `error`, or raise it when it is no use to go on."""
        self._failures = 1 if progress else self._failures + 1
        allowed = self._connections if error.unreachable else self._tries
        wait = min(8.0, 2.0 ** (self._failures - 1)) if error.wait is None else error.wait
        if self._failures >= allowed or wait > _LONGEST_WAIT:
            raise error
        return wait


def find_endpoint() -> Endpoint:
    """Return the Hub of HF_ENDPOINT with the user's token, or with the credentials in that address.

    Raises:
        UsageError: HF_ENDPOINT is no address.
    """
    from huggingface_hub import constants

    url = constants.ENDPOINT.rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise UsageError(f"HF_ENDPOINT is {redact(url)!r}, which is no address; write https://host, or unset it")
    userinfo, _, host = parts.netloc.rpartition("@")
    if not userinfo:
        return Endpoint(url, f"Bearer {token}" if (token := _find_token()) else None)
    remember_secret(userinfo)
    remember_secret(userinfo.partition(":")[2])
    basic = base64.b64encode(unquote(userinfo).encode()).decode()
    return Endpoint(f"{parts.scheme}://{host}{parts.path}", f"Basic {basic}")


def _find_token() -> str | None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    token = get_token()
    if token is not None:
        remember_secret(token)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("HF_TOKEN holds characters that no token has; copy it again")
    return token


def _tls_context() -> ssl.SSLContext:
    """Return what certificates are checked against: SSL_CERT_FILE and SSL_CERT_DIR or the system's, and then more.

    httpx2 knows the first two only; REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE are what companies set.
    """
    import httpx2

    variable = "SSL_CERT_FILE"
    try:
        context = httpx2.create_ssl_context()
        for variable in _CA_VARIABLES:
            if place := os.environ.get(variable):
                is_folder = os.path.isdir(place)  # noqa: PTH112 - a str is what the next line takes
                context.load_verify_locations(None if is_folder else place, place if is_folder else None)
    except (OSError, ssl.SSLError) as error:  # a missing file, or one that holds no certificate
        raise MachineError(
            f"the certificates in {os.environ.get(variable, variable)} cannot be read ({error.strerror or error}); "
            f"set {variable} to a PEM file of the authorities to trust, or unset it"
        ) from None
    return context


class HubClient:
    """Requests to one Hub; use `open_client`. Redirects are followed, the token is not taken along.

    Attributes:
        endpoint: The Hub.
        stall_seconds: Without a byte for so long, a connection counts as dead.
    """

    def __init__(self, endpoint: Endpoint, client: httpx2.Client, stall_seconds: float) -> None:
        self.endpoint, self._client, self.stall_seconds = endpoint, client, stall_seconds

    @contextmanager
    def stream(self, url: str, subject: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Open a GET request, and yield its successful answer with the body unread.

        Args:
            url: Where from.
            subject: What is asked for, for sentences: `org/name@revision`.
            headers: Headers beside those that every request has.

        Raises:
            TransientError: Trying again may help.
            CheckpointError: The Hub has no such thing.
            MachineError: It cannot be had otherwise.
        """
        import httpx2

        try:
            for _ in range(_MAX_REDIRECTS):
                mine = {"Accept-Encoding": "identity", **(headers or {})}
                if self.endpoint.authorization and self.endpoint.owns(url):
                    mine["Authorization"] = self.endpoint.authorization
                with self._client.stream("GET", url, headers=mine) as response:
                    if response.has_redirect_location:
                        url = _follow(url, response.headers["Location"])
                        continue
                    if not response.is_success:
                        raise refusal(response, subject, self.endpoint)
                    if response.headers.get("Content-Encoding", "identity") != "identity":
                        raise MachineError(
                            f"{host_of(url)} sends {subject} compressed, though asked not to; mend the proxy"
                        )
                    yield response
                    return
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise broken(error, url, self.stall_seconds) from None
        raise MachineError(f"{self.endpoint.host} redirects in circles when asked for {subject}; check HF_ENDPOINT")

    def json(self, path: str, subject: str) -> tuple[Any, str | None]:
        """Return the JSON answer of the API, and the address of its next page, if there is one.

        Raises:
            CheckpointError: The Hub has no such thing.
            MachineError: It cannot be had.
        """
        patience = Patience(tries=4, connections=1)
        while True:
            try:
                return self._json_once(path, subject)
            except TransientError as error:
                time.sleep(patience.after(error))

    def _json_once(self, path: str, subject: str) -> tuple[Any, str | None]:
        url = urljoin(self.endpoint.url + "/", path)
        body, deadline = bytearray(), time.monotonic() + _ANSWER_SECONDS
        with self.stream(url, subject) as response:
            for piece in response.iter_raw():
                body += piece
                if len(body) > _MAX_ANSWER:
                    raise MachineError(f"{self.endpoint.host} describes {subject} in more than {_MAX_ANSWER >> 20} MiB")
                if time.monotonic() > deadline:
                    raise TransientError(f"{self.endpoint.host} takes more than {_ANSWER_SECONDS:g} s for an answer")
            following = response.links.get("next", {}).get("url")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise MachineError(
                f"{self.endpoint.host} answers without JSON when asked for {subject}; is HF_ENDPOINT a Hub, "
                "or does a proxy want a login?"
            ) from None
        if following is None:
            return value, None
        following = urljoin(url, following)
        if not self.endpoint.owns(following):
            raise MachineError(f"{self.endpoint.host} sends us to {host_of(following)} for the rest of {subject}")
        return value, following


@contextmanager
def open_client() -> Iterator[HubClient]:
    """Yield a client for the Hub of HF_ENDPOINT, through the proxies of the environment.

    Raises:
        UsageError: HF_ENDPOINT or HF_TOKEN makes no sense.
        MachineError: The certificates or the proxy cannot be used.
    """
    import httpx2
    from huggingface_hub import constants

    endpoint = find_endpoint()
    stall = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    context = _tls_context()
    try:
        client = httpx2.Client(
            verify=context,
            timeout=httpx2.Timeout(stall, connect=min(stall, CONNECT_SECONDS)),
            headers={"User-Agent": f"edgekiln/{__version__}"},
        )
    except ImportError:
        raise MachineError("a SOCKS proxy needs one more package: pip install socksio, or set HTTPS_PROXY") from None
    except (ValueError, httpx2.InvalidURL) as error:
        raise MachineError(
            f"the proxy of this environment cannot be used ({redact(str(error))}); "
            "set HTTPS_PROXY to http://host:port, or unset it"
        ) from None
    with client:
        yield HubClient(endpoint, client, stall)


def _follow(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise MachineError(f"{host_of(url)} redirects to {redact(location[:80])!r}, which is no address") from None
