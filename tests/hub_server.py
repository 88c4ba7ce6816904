"""A small local server that speaks the Hub's protocol, and a forward proxy; both record what they are asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee00" * 5
PAGE = 1000


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    """What the server has under one name: commits of files, and names of commits."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    token: str | None = None
    gated: bool = False

    @classmethod
    def of(cls, directory: Path, **rest: Any) -> Repository:
        files = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
        return cls({COMMIT: files}, {"main": COMMIT}, **rest)


@dataclass
class Faults:
    """What goes wrong. Bodies of files only, but for `answers`."""

    chunk: int = 1 << 16
    delay: float = 0.0  # seconds after each chunk
    break_after: int | None = None  # bytes of a body after which the connection closes
    breaks: int = 1 << 30  # how often it does
    stall_after: int | None = None  # bytes of a body after which nothing comes any more
    damaged: set[str] = field(default_factory=set)  # files with one bit turned
    sizes: dict[str, int] = field(default_factory=dict)  # sizes in the listing that are not true
    renamed: dict[str, str] = field(default_factory=dict)  # paths in the listing that are not true
    ignore_range: bool = False
    redirect: str | None = None  # base address of the place where large files are
    api_redirect: str | None = None  # base address that the API redirects to
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # given to the next requests, in turn
    padding: int = 0  # bytes of white space before each JSON answer
    next_link: str | None = None  # a Link header of the listing
    linked_etag: bool = True


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    """Return the id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors") or path == "tokenizer.json"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        body = b" " * self.server.faults.padding + json.dumps(value).encode()
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, body)

    def _error(self, status: int, code: str, message: str = "") -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message or code}, b'{"error":"no"}')

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if server.faults.answers:
            status, headers = server.faults.answers.pop(0)
            self._send(status, headers)
            return
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if parts[:2] == ["api", "models"] and len(parts) >= 6:
                self._api("/".join(parts[2:4]), parts[4], parts[5], urllib.parse.parse_qs(url.query))
            elif parts[0] == "cdn":
                self._file(server.large[parts[1]], parts[2], {})
            elif len(parts) >= 5 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._error(404, "")

    def _repository(self, name: str) -> Repository | None:
        """Return it, or answer as the Hub does for what is missing, private or gated."""
        repository = self.server.repositories.get(name)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = {r.token for r in self.server.repositories.values() if r.token} | self.server.tokens
        if given and given not in known:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repository is None:
            self._error(404 if given else 401, "RepoNotFound" if given else "", "Repository not found")
        elif repository.gated and (not given or given != repository.token):
            self._error(403 if given else 401, "GatedRepo", "Access to this model is restricted")
        elif repository.token and given != repository.token:
            self._error(404 if given else 401, "RepoNotFound" if given else "", "Repository not found")
        else:
            return repository
        return None

    def _api(self, name: str, kind: str, revision: str, query: dict[str, list[str]]) -> None:
        faults = self.server.faults
        if faults.api_redirect:
            self._send(307, {"Location": faults.api_redirect + self.path})
            return
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound", "Invalid rev id: " + revision)
        elif kind == "revision":
            self._json({"id": name, "sha": commit, "siblings": []})
        else:
            entries = [self._entry(path, data) for path, data in repository.commits[commit].items()]
            begin, url_path = int(query.get("cursor", ["0"])[0]), self.path.split("?")[0]
            more = {}
            if begin + PAGE < len(entries):
                more = {"Link": f'<{self.server.url}{url_path}?recursive=true&cursor={begin + PAGE}>; rel="next"'}
            if faults.next_link:
                more = {"Link": f'<{faults.next_link}>; rel="next"'}
            self._json(entries[begin : begin + PAGE], more)

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        faults = self.server.faults
        size = faults.sizes.get(path, len(data))
        entry: dict[str, Any] = {
            "type": "file",
            "oid": blob_id(data),
            "size": size,
            "path": faults.renamed.get(path, path),
        }
        if _is_large(path):
            entry |= {"lfs": {"oid": _sha(data), "size": size, "pointerSize": 134}, "oid": "0" * 40}
        return entry

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.revisions.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            self._error(404, "RevisionNotFound")
            return
        path = {new: old for old, new in self.server.faults.renamed.items()}.get(path, path)
        data = files.get(path)
        if data is None:
            self._error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(data)}"'}
        if _is_large(path):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{_sha(data)}"'}
            if self.server.faults.redirect:
                self.server.large[_sha(data)] = data
                place = f"{self.server.faults.redirect}/cdn/{_sha(data)}/{urllib.parse.quote(path)}?signature=s1gned"
                self._send(302, {**headers, "Location": place})
                return
        self._file(data, path, headers)

    def _file(self, data: bytes, path: str, headers: dict[str, str]) -> None:
        faults = self.server.faults
        if path in faults.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin, status = 0, 200
        if (wanted := self.headers.get("Range")) and not faults.ignore_range:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            if begin >= len(data):
                self._send(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = {**headers, "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
            status = 206
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data) - begin), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self._body(data[begin:])

    def _body(self, data: bytes) -> None:
        faults, sent = self.server.faults, 0
        breaks = faults.break_after is not None and faults.breaks > 0
        limit = faults.break_after if breaks and faults.break_after is not None else len(data)
        limit = min(limit, len(data) if faults.stall_after is None else faults.stall_after)
        while sent < min(limit, len(data)):
            piece = data[sent : min(sent + faults.chunk, limit)]
            self.server.sent += len(piece)  # before the client has it, and may look
            self.wfile.write(piece)
            self.wfile.flush()
            sent += len(piece)
            time.sleep(faults.delay)
        if sent < len(data) and faults.stall_after is not None:
            self.server.closing.wait(30)
        if sent < len(data):
            faults.breaks -= 1
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class HubServer(ThreadingHTTPServer):
    """Serves `repositories` at `url`, on loopback; use `hub_server` to start one."""

    daemon_threads = True

    def __init__(self, certificate: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.large: dict[str, bytes] = {}
        self.sent = 0
        self.closing = threading.Event()
        self._secure = certificate is not None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is what these tests are about."""

    @property
    def url(self) -> str:
        """The address under the name `localhost`."""
        return f"http{'s' if self._secure else ''}://localhost:{self.server_address[1]}"

    @property
    def other_url(self) -> str:
        """The same server as another host."""
        return self.url.replace("localhost", "127.0.0.1")

    def paths(self, method: str = "GET") -> list[str]:
        return [one.path for one in self.asked if one.method == method]


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if hasattr(server, "closing"):
            server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output clean."""

    def _refused(self) -> bool:
        self.server.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.refuse:
            self.send_response(self.server.refuse)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return bool(self.server.refuse)

    def do_CONNECT(self) -> None:
        if self._refused():
            return
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            self._pump(far)
        self.close_connection = True

    def _pump(self, far: socket.socket) -> None:
        pairs = {self.connection: far, far: self.connection}
        while True:
            ready, _, _ = select.select(list(pairs), [], [], 10)
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    return
                pairs[one].sendall(data)
            if not ready:
                return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._refused():
            return
        url = urllib.parse.urlsplit(self.path)
        with socket.create_connection((str(url.hostname), int(url.port or 80))) as far:
            path = url.path + (f"?{url.query}" if url.query else "")
            lines = [f"{self.command} {path} HTTP/1.1"]
            lines += [
                f"{k}: {v}" for k, v in self.headers.items() if not k.lower().startswith(("proxy-", "connection"))
            ]
            far.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
            while data := far.recv(1 << 16):
                self.wfile.write(data)
        self.close_connection = True


class Proxy(ThreadingHTTPServer):
    """A forward proxy on loopback that records what it is asked; `refuse` is a status to answer instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.asked: list[Asked] = []
        self.refuse = 0

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is none of the proxy's business."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
