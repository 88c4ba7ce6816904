"""The network as it is, against a local server that speaks the Hub's protocol: laws of `edgekiln.hub`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import trustme

from edgekiln import hub_client, hub_files
from edgekiln.artifact import sha256_file
from edgekiln.checkpoint import EMBEDDED, embedded_directory, open_checkpoint
from edgekiln.errors import CheckpointError, EdgekilnError, MachineError, UsageError
from edgekiln.hub import fetch_snapshot
from edgekiln.hub_client import find_endpoint
from edgekiln.process import run_task
from edgekiln.redact import redact, without_secrets
from hub_server import COMMIT, HubServer, Proxy, Repository, running

TOKEN = "hf_" + "plantedTOKEN" * 3
OTHER = "0dd" + "0" * 37
NAME = "org/tiny"
SMALL = {"config.json": b'{"a": 1}', "tokenizer.json": b"{}" * 50, "model.safetensors": bytes(range(256)) * 400}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Lines:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.said, self.shown = [], []
        self.say, self.status = self.said.append, self.shown.append


def clear(monkeypatch):
    for name in (*PROXIES, *CERTIFICATES, "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """Point everything at an empty cache and at nobody; return the seconds that would have been waited."""
    clear(monkeypatch)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    waited = []
    for module in (hub_client, hub_files):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    return waited


@pytest.fixture
def server(waits, monkeypatch):
    with running(HubServer()) as one:
        one.repositories[NAME] = Repository({COMMIT: dict(SMALL)}, {"main": COMMIT, "v1": COMMIT})
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", one.url)
        yield one


def fetch(source=NAME, *, offline=False, listener=None):
    return fetch_snapshot(source, offline=offline, listener=listener)


def content(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def sentence(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    return text


# What is fetched


def test_a_snapshot_has_the_files_of_the_commit_and_nothing_that_can_run(server):
    server.repositories[NAME].commits[COMMIT] |= {"model.bin": b"pickle", "code.py": b"import os", "README.md": b"#"}
    directory, commit = fetch(listener=(lines := Lines()))
    assert commit == COMMIT
    assert content(directory) == SMALL
    assert not any(name in path for path in server.paths() for name in ("model.bin", "code.py", "README"))
    assert lines.said[0].startswith(f"fetching {NAME}@{COMMIT[:7]}: 3 files, 0.1 MB")
    assert len(lines.said) == 2


def test_what_is_cached_is_not_fetched_again_and_huggingface_hub_finds_it(server):
    directory, _ = fetch()
    server.asked.clear()
    assert fetch()[0] == directory
    assert not any("/resolve/" in path for path in server.paths())
    found = huggingface_hub.snapshot_download(NAME, local_files_only=True)
    assert Path(found) == directory
    assert {f.path: f.size for f in huggingface_hub.get_cached_repo_tree(NAME)} == {k: len(v) for k, v in SMALL.items()}


def test_what_huggingface_hub_cached_is_used(server, monkeypatch):
    program = f"import huggingface_hub; huggingface_hub.snapshot_download({NAME!r})"
    environment = {**os.environ, "HF_HUB_CACHE": huggingface_hub.constants.HF_HUB_CACHE, "HF_ENDPOINT": server.url}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    server.asked.clear()
    directory, _ = fetch()
    assert content(directory) == SMALL
    assert not any("/resolve/" in path for path in server.paths())


def test_only_the_commit_that_the_revision_stood_for_is_fetched(server):
    repository = server.repositories[NAME]
    repository.commits[OTHER] = {name: data + b" " for name, data in SMALL.items()}
    answered = server.RequestHandlerClass._api

    def moves(handler, name, kind, revision, query):
        answered(handler, name, kind, revision, query)
        repository.revisions["main"] = OTHER  # somebody pushes as soon as the revision is known

    server.RequestHandlerClass = type("Moving", (server.RequestHandlerClass,), {"_api": moves})
    directory, commit = fetch()
    assert (commit, content(directory)) == (COMMIT, SMALL)
    assert all(COMMIT in path for path in server.paths()[1:])
    assert fetch()[1] == OTHER  # and the next run follows the branch
    assert content(fetch()[0]) == repository.commits[OTHER]


def test_a_commit_given_in_full_needs_no_connection_once_it_is_there(server):
    fetch(f"{NAME}@{COMMIT}")
    server.asked.clear()
    assert fetch(f"hf://{NAME}@{COMMIT}")[1] == COMMIT
    assert not server.asked


def test_a_listing_of_many_pages_is_read_to_its_end(server, monkeypatch):
    monkeypatch.setattr("hub_server.PAGE", 2)
    assert content(fetch()[0]) == SMALL
    assert sum("/tree/" in path for path in server.paths()) == 2


# Offline


@pytest.mark.parametrize("how", ["flag", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_makes_no_connection_even_if_the_cache_is_stale_or_empty(server, monkeypatch, how):
    directory, _ = fetch()
    server.repositories[NAME].commits[OTHER] = {"config.json": b"{}"}
    server.repositories[NAME].revisions["main"] = OTHER
    server.asked.clear()
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected while offline"))
    if how != "flag":
        monkeypatch.setenv(how, "1")
    assert fetch(offline=how == "flag") == (directory, COMMIT)
    with pytest.raises(MachineError, match="not in the local Hub cache"):
        fetch("org/other", offline=how == "flag")
    assert not server.asked


def test_a_snapshot_that_is_not_whole_is_not_taken_for_whole(server, waits):
    server.faults.damaged = {"model.safetensors"}
    with pytest.raises(MachineError):
        fetch()
    with pytest.raises(MachineError, match="run once without --offline"):
        fetch(f"{NAME}@{COMMIT}", offline=True)


def test_a_cached_file_that_was_cut_short_is_found_and_mended(server):
    directory, _ = fetch()
    os.truncate((directory / "model.safetensors").resolve(), 1000)
    with pytest.raises(MachineError, match=r"model.safetensors .* damaged .* 1000 bytes instead of 102400"):
        fetch(offline=True)
    assert content(fetch()[0]) == SMALL


# A slow and a breaking connection


def test_a_broken_connection_is_continued_where_it_broke(server, waits):
    server.faults.break_after = 30_000
    directory, _ = fetch(listener=(lines := Lines()))
    assert content(directory) == SMALL
    ranges = [one.headers.get("range") for one in server.asked if "model.safetensors" in one.path]
    assert ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]
    assert server.sent == sum(map(len, SMALL.values()))  # no byte came twice
    assert waits == [1, 2, 4]
    assert "30.0 kB of 102.4 kB are here, going on in 1 s" in lines.said[1]


def test_a_connection_that_breaks_always_is_given_up_and_the_next_run_goes_on(server, waits):
    server.faults.break_after = 10_000
    with pytest.raises(MachineError) as caught:
        fetch()
    assert re.search(r"model.safetensors: .* broke; 60.0 kB of 102.4 kB are here and are kept", sentence(caught))
    assert waits == [1, 2, 4, 8, 8]
    server.faults.break_after, server.asked[:] = None, []
    assert content(fetch()[0]) == SMALL
    assert [one.headers.get("range") for one in server.asked if "model" in one.path.rpartition("/")[2]] == [
        "bytes=60000-"
    ]


def test_progress_earns_more_tries(server, waits, monkeypatch):
    monkeypatch.setattr(hub_files, "_PROGRESS_BYTES", 5000)
    server.faults.break_after = 5000
    assert content(fetch()[0]) == SMALL
    assert set(waits) == {1}
    assert len(waits) == 20


def test_a_server_that_ignores_the_range_sends_the_whole_again(server):
    server.faults.break_after, server.faults.breaks, server.faults.ignore_range = 30_000, 1, True
    assert content(fetch()[0]) == SMALL


def test_a_connection_that_stalls_is_dropped_in_the_stated_time(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    server.faults.stall_after = 90_000
    begin = time.monotonic()
    directory, _ = fetch(listener=(lines := Lines()))
    assert content(directory) == SMALL  # the second try asks for the rest only
    assert 1 <= time.monotonic() - begin < 5
    assert "sent nothing for 1 s; 90.0 kB of 102.4 kB are here" in lines.said[1]


def test_a_connection_that_drips_is_dropped(server, waits, monkeypatch):
    monkeypatch.setattr(hub_files, "_WINDOW_SECONDS", 0.05)
    monkeypatch.setattr(hub_files, "_SLOWEST", 1 << 30)
    server.faults.delay, server.faults.chunk = 0.02, 1024
    with pytest.raises(MachineError, match="sends less than"):
        fetch()


def test_a_slow_connection_is_waited_for_and_shown(server, monkeypatch):
    monkeypatch.setattr(hub_files, "_SHOW_SECONDS", 0.05)
    server.faults.delay, server.faults.chunk = 0.05, 20_000
    assert content(fetch(listener=(lines := Lines()))[0]) == SMALL
    assert any(re.fullmatch(r"fetching model.safetensors: [\d.]+ kB of 102.4 kB", text) for text in lines.shown)


def test_a_fetch_that_is_killed_goes_on_in_the_next_run(server, tmp_path):
    server.faults.stall_after = 50_000
    program = f"from edgekiln.hub import fetch_snapshot; fetch_snapshot({NAME!r}, offline=False)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": server.url}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    blobs = tmp_path / "cache" / "models--org--tiny" / "blobs"
    deadline = time.monotonic() + 20
    while not any(part.stat().st_size == 50_000 for part in blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.wait()
    server.faults.stall_after, server.asked[:] = None, []
    assert content(fetch()[0]) == SMALL
    assert "bytes=50000-" in [one.headers.get("range") for one in server.asked]
    assert not list(blobs.glob("*.incomplete"))


# What a server may do wrong


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_named_and_never_kept(server, name):
    server.faults.damaged = {name}
    with pytest.raises(MachineError) as caught:
        fetch()
    assert sentence(caught).startswith(f"{name} of {NAME}@{COMMIT[:7]} arrived damaged")
    server.faults.damaged = set()
    assert content(fetch()[0]) == SMALL


def test_a_beginning_that_a_crash_damaged_is_fetched_again_whole(server):
    server.faults.break_after = 10_000
    with pytest.raises(MachineError):
        fetch()
    (part,) = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*.incomplete")
    part.write_bytes(b"\0" * part.stat().st_size)
    server.faults.break_after = None
    assert content(fetch()[0]) == SMALL


@pytest.mark.parametrize("size", [10, 102_401])
def test_a_size_that_is_not_true_ends_the_fetch(server, size):
    server.faults.sizes = {"model.safetensors": size}
    with pytest.raises(MachineError, match="longer than the 10 bytes" if size == 10 else "less of a file"):
        fetch()


@pytest.mark.parametrize(
    "path",
    ["../x.json", "a/../../x.json", "/etc/x.json", "..\\x.json", "C:x.json", "a//x.json", "x\n.json", "./x.json"],
)
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_written(server, path, tmp_path):
    server.faults.renamed = {"tokenizer.json": path}
    with pytest.raises(CheckpointError, match="no name inside a folder"):
        fetch()
    assert not list(tmp_path.rglob("*"))


def add_files(server):
    server.repositories[NAME].commits[COMMIT] |= {f"{number}.txt": b"" for number in range(18)}


def endless(server):
    server.faults.next_link = f"{server.url}/api/models/{NAME}/tree/{COMMIT}?recursive=true"


def elsewhere(server):
    server.faults.next_link = server.other_url + "/api/x"


TOO_LONG = hub_files.MAX_SMALL_FILE + 1
LIMITS = {
    "files": (add_files, CheckpointError, "more than 20 files"),
    "endless pages": (endless, CheckpointError, "more than 20 files"),
    "pages elsewhere": (elsewhere, MachineError, "sends us to 127.0.0.1"),
    "tokenizer": (lambda s: s.faults.sizes.update({"tokenizer.json": TOO_LONG}), CheckpointError, "needs more than"),
    "answer": (lambda s: setattr(s.faults, "padding", 17 << 20), MachineError, "more than 16 MiB"),
    "disk": (lambda s: s.faults.sizes.update({"model.safetensors": 1 << 60}), MachineError, "GB free; free space"),
    "circles": (lambda s: setattr(s.faults, "api_redirect", s.url), MachineError, "in circles"),
    "no config": (lambda s: s.repositories[NAME].commits[COMMIT].pop("config.json"), CheckpointError, "no config.json"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_a_server_sends_is_bounded(server, monkeypatch, case):
    prepare, kind, message = LIMITS[case]
    monkeypatch.setattr(hub_files, "MAX_FILES", 20)
    prepare(server)
    with pytest.raises(kind, match=message):
        fetch()
    assert not any("/resolve/" in path for path in server.paths())


# Whom the Hub lets in


def private(server, **rest):
    server.repositories["org/private"] = Repository({COMMIT: dict(SMALL)}, {"main": COMMIT}, token=TOKEN, **rest)


ACCESS = {
    "missing": (
        None,
        "org/none",
        CheckpointError,
        "no repository 'org/none', or it is private and HF_TOKEN is not set",
    ),
    "missing, with a token": (TOKEN, "org/none", CheckpointError, "or it is private and the token does not open it"),
    "private": (None, "org/private", CheckpointError, "HF_TOKEN is not set"),
    "another's": ("hf_otherotherother", "org/private", CheckpointError, "the token does not open it"),
    "wrong token": ("hf_wrongwrongwrong", NAME, MachineError, "does not accept the token; renew HF_TOKEN"),
    "revision": (None, f"{NAME}@nope", CheckpointError, "'org/tiny' has no revision 'nope'"),
    "commit": (None, f"{NAME}@{OTHER}", CheckpointError, "has no revision '0dd0000'"),
}


@pytest.mark.parametrize("case", ACCESS)
def test_who_is_not_let_in_reads_why(server, monkeypatch, case):
    token, source, kind, message = ACCESS[case]
    private(server)
    server.tokens.add("hf_otherotherother")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=re.escape(message)) as caught:
        fetch(source)
    assert token is None or token not in sentence(caught)


@pytest.mark.parametrize("token", [None, "hf_otherotherother"])
def test_a_gated_repository_says_where_its_terms_are(server, monkeypatch, token):
    private(server, gated=True)
    server.tokens.add("hf_otherotherother")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MachineError, match=re.escape(f"accept its terms at {server.url}/org/private and set HF_TOKEN")):
        fetch("org/private")


@pytest.mark.parametrize("place", ["HF_TOKEN", "file"])
def test_the_token_opens_what_is_private_and_goes_to_the_hub_alone(server, monkeypatch, place):
    private(server)
    if place == "file":
        Path(huggingface_hub.constants.HF_TOKEN_PATH).write_text(TOKEN + "\n")
    else:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.faults.redirect = server.other_url
    assert content(fetch("org/private")[0]) == SMALL
    elsewhere = [one for one in server.asked if one.headers["host"].startswith("127.0.0.1")]
    assert {"/cdn/" in one.path for one in elsewhere} == {True}
    assert len(elsewhere) == 2  # both large files
    for one in server.asked:
        assert (one.headers.get("authorization") == f"Bearer {TOKEN}") is (one not in elsewhere)
        assert TOKEN not in one.path
    assert TOKEN not in "".join(str(one.headers) for one in elsewhere)


def test_the_token_does_not_follow_a_redirect_of_the_api(server, monkeypatch):
    private(server)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(HubServer()) as thief:
        server.faults.api_redirect = thief.url
        with pytest.raises(EdgekilnError):
            fetch("org/private")
        assert thief.asked
        assert TOKEN not in str([one.headers for one in thief.asked])


def test_no_token_is_sent_where_the_user_says_so(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    fetch()
    assert not any("authorization" in one.headers for one in server.asked)


STATUS = {
    "rate limit": (
        [(429, {"Retry-After": "3600"})],
        [],
        r"no more requests for now \(429, for 3600 s\); try again in 3600 s",
    ),
    "rate limit for ever": ([(429, {})] * 9, [1, 2, 4], r"\(429\); try again later"),
    "trouble": ([(503, {})] * 9, [1, 2, 4], r"has trouble of its own \(503\); try again later"),
    "no hub": ([(404, {})], [], "is HF_ENDPOINT the address of a Hub"),
    "login page": ([(200, {"Content-Type": "text/html"})], [], "answers without JSON"),
    "forbidden": ([(403, {})], [], "forbids reading"),
    "teapot": ([(418, {})], [], "answers 418"),
    "redirect to nowhere": ([(302, {})], [], "answers 302"),
}


@pytest.mark.parametrize("case", STATUS)
def test_an_answer_that_is_no_success_is_one_sentence(server, waits, case):
    answers, expected, message = STATUS[case]
    server.faults.answers = list(answers)
    with pytest.raises(MachineError, match=message) as caught:
        fetch()
    sentence(caught)
    assert waits == expected


def test_a_short_wait_that_the_hub_asks_for_is_waited(server, waits):
    server.faults.answers = [(429, {"Retry-After": "7"}), (502, {})]
    assert content(fetch()[0]) == SMALL
    assert waits == [7, 2]


# What lies between


def test_a_name_that_is_not_known_and_a_port_that_is_closed(waits, monkeypatch):
    for endpoint, why in {
        "http://hub.invalid": "the name hub.invalid is not known",
        "http://127.0.0.1:9": "127.0.0.1:9 refuses the connection",
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(MachineError, match=f"cannot be reached: {why}; check the network and HF_ENDPOINT"):
            fetch()
    assert not waits


def test_a_hub_that_is_down_names_what_the_cache_has(server, monkeypatch):
    fetch()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match=f"--offline takes commit {COMMIT[:7]} of it, which is in the cache"):
        fetch()


@pytest.mark.parametrize(
    "endpoint", ["hub.corp", "ftp://hub", "https://", "http://[x", "http://hub:99999", f"x://u:{TOKEN}@hub"]
)
def test_an_endpoint_that_is_no_address_is_a_usage_error(waits, monkeypatch, endpoint):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="HF_ENDPOINT") as caught:
        fetch()
    sentence(caught)


def test_a_password_in_the_endpoint_is_sent_as_such_and_never_shown(server, monkeypatch):
    address = server.url.replace("://", f"://user:{TOKEN}@")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_anotheranother")
    with pytest.raises(MachineError) as caught:
        fetch()  # the server knows no such login
    assert "user" not in sentence(caught)
    assert {one.headers["authorization"].split()[0] for one in server.asked} == {"Basic"}
    assert find_endpoint().url == server.url


@pytest.mark.parametrize("bypass", [False, True])
def test_a_proxy_is_used_unless_no_proxy_says_otherwise(server, monkeypatch, bypass):
    with running(Proxy()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:sesame123@"))
        if bypass:
            monkeypatch.setenv("NO_PROXY", "localhost")
        assert content(fetch()[0]) == SMALL
        assert len(proxy.asked) == (0 if bypass else len(server.asked))
        assert bypass or proxy.asked[0].headers["proxy-authorization"].startswith("Basic")
    assert "sesame123" not in str([one.headers for one in server.asked])


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(waits, monkeypatch, authority):
    with running(HubServer(authority.issue_cert("localhost", "127.0.0.1"))) as one:
        one.repositories[NAME] = Repository({COMMIT: dict(SMALL)}, {"main": COMMIT})
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", one.url)
        yield one


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_of_ones_own_authority_is_trusted_when_named(secure, authority, monkeypatch, tmp_path, variable):
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv(variable, str(bundle))
    with running(Proxy()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert content(fetch()[0]) == SMALL
        assert {one.method for one in proxy.asked} == {"CONNECT"}


def test_a_certificate_that_nobody_vouches_for_is_refused(secure):
    with pytest.raises(MachineError, match=r"certificate of localhost:\d+ is not trusted .* set SSL_CERT_FILE"):
        fetch()
    assert not secure.asked


@pytest.mark.parametrize("made", [None, b"no certificate"])
def test_a_bundle_that_cannot_be_read_is_named(secure, monkeypatch, tmp_path, made):
    bundle = tmp_path / "ca.pem"
    if made:
        bundle.write_bytes(made)
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        clear(monkeypatch)
        monkeypatch.setenv(variable, str(bundle))
        with pytest.raises(MachineError, match=f"set {variable} to a PEM file"):
            fetch()


@pytest.mark.parametrize(("status", "fix"), [(407, "user:password@ into HTTPS_PROXY"), (403, "NO_PROXY")])
def test_a_proxy_that_refuses_is_named(secure, monkeypatch, status, fix):
    with running(Proxy()) as proxy:
        proxy.refuse = status
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", "://me:sesame123@"))
        with pytest.raises(MachineError, match="does not let us through") as caught:
            fetch()
    assert fix in sentence(caught)
    assert "sesame123" not in sentence(caught)


@pytest.mark.parametrize("proxy", ["http://me:sesame123@127.0.0.1:9", "socks5://me:sesame123@127.0.0.1:9", "x://[y"])
def test_a_proxy_that_is_not_there_is_named_without_its_password(server, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(MachineError, match="proxy") as caught:
        fetch()
    assert "sesame123" not in sentence(caught)


# The cache


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(MachineError, match="cannot be written .* set HF_HOME or HF_HUB_CACHE"):
        fetch()


def test_a_full_disk_is_said_and_a_complete_cache_may_be_read_only(server, monkeypatch):
    directory, _ = fetch()
    opened = Path.open

    def refuse(path, mode="r", *rest, **more):
        if set(mode) & set("wax+") and "cache" in path.parts:
            raise OSError(28 if "incomplete" in path.name else 30, "refused")
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: path.open("w"))
    (Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--org--tiny" / "refs" / "main").unlink()
    assert fetch() == (directory, COMMIT)
    (directory / "model.safetensors").resolve().unlink()
    monkeypatch.setattr(hub_files.HubCache, "note_listing", lambda *_: None)
    with pytest.raises(MachineError, match="is full; free space, or set HF_HOME"):
        fetch()


def test_where_links_cannot_be_made_the_files_are_there_all_the_same(server, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError(1, "no privilege")))
    assert content(fetch()[0]) == SMALL
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no such thing")))
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    assert content(fetch()[0]) == SMALL


@pytest.mark.parametrize("source", ["a--b/c", "org/x.git", "org/x@../../etc", "org/x@/etc", "org/x@a..b", "org/x@a b"])
def test_a_name_or_revision_that_is_a_path_is_a_usage_error(waits, source):
    with pytest.raises(UsageError, match="no Hub id"):
        fetch(source, offline=True)


# Secrets


def test_redaction_takes_out_what_is_secret_and_nothing_else(monkeypatch):
    clear(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "plainsecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ssw0rd@proxy:3128")
    shown = redact(
        "plainsecret https://u:pw@h/x?a=1&X-Amz-Signature=deadbeef&b=2 Bearer abc.def-ghi hf_abcdefghij p@ssw0rd"
    )
    assert shown == "*** https://***@h/x?a=1&X-Amz-Signature=***&b=2 Bearer *** *** ***"
    assert redact("org/name@main at /home/me, 12.5 MB") == "org/name@main at /home/me, 12.5 MB"


def test_children_get_no_secret(monkeypatch):
    kept = {"PATH": "/bin", "HTTP_PROXY": "http://proxy:1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": "/x"}
    secret = {
        "HF_TOKEN": "x",
        "HUGGING_FACE_HUB_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "https_proxy": "http://me:pw@proxy",
        "HF_ENDPOINT": "https://me:pw@hub",
    }
    assert without_secrets(kept | secret) == kept


# From end to end


def edgekiln(*arguments, cwd, environment):
    return subprocess.run(
        [sys.executable, "-m", "edgekiln", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={
            **{k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}},
            **environment,
        },
    )


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A Hub that serves the embedded checkpoint to one token, and the environment of who has it."""
    clear(monkeypatch)
    with running(HubServer()) as one:
        one.repositories[NAME] = Repository.of(embedded_directory(), token=TOKEN)
        one.faults.redirect = one.other_url
        yield one, {"HF_ENDPOINT": one.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}


def test_a_hub_id_exports_the_same_bytes_cold_and_offline(world, tmp_path):
    server, environment = world
    arguments = ["export", f"{NAME}@main", "--format", "gguf", "--precision", "q8_0"]
    cold = edgekiln(*arguments, "--out", "cold", cwd=tmp_path, environment=environment)
    assert cold.returncode == 0, cold.stderr
    assert "fetching org/tiny@c0ffee0" in cold.stderr
    assert "\r" not in cold.stderr
    server.asked.clear()
    server.shutdown()
    server.server_close()
    again = edgekiln(*arguments, "--offline", "--out", "again", cwd=tmp_path, environment=environment)
    assert again.returncode == 0, again.stderr
    cold_files, again_files = ({p.name: sha256_file(p) for p in (tmp_path / n).iterdir()} for n in ("cold", "again"))
    assert cold_files == again_files
    checkpoint = json.loads((tmp_path / "cold" / "manifest.json").read_text())["checkpoint"]
    assert (checkpoint["name"], checkpoint["revision"]) == (f"{NAME}@main", COMMIT)
    assert checkpoint["identity"] == open_checkpoint(EMBEDDED).identity
    unreachable = edgekiln(*arguments, "--out", "third", cwd=tmp_path, environment=environment)
    assert unreachable.returncode == 5
    assert "--offline takes commit c0ffee0" in unreachable.stderr


PIPELINE = """
schema: edgekiln.pipeline/1
name: one
builds:
  - target: gguf-cpu
    precisions: [int8]
"""


@pytest.fixture
def traces(world, tmp_path):
    """Where whatever is written goes, and a function that fails for every file and line with the token in it."""
    _, environment = world
    places = [tmp_path / "work", tmp_path / "scratch", Path(environment["HF_HOME"])]
    for place in places:
        place.mkdir()
    environment |= {"TMPDIR": str(places[1]), "EDGEKILN_DEBUG": "1", "HF_DEBUG": "1"}

    def check(run):
        assert TOKEN not in run.stdout + run.stderr
        written = [path for place in places for path in place.rglob("*") if path.is_file()]
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
        return written

    return places[0], check


def failures(server):
    """What is changed in the environment, what goes wrong at the server, and what is said about it."""
    secret = server.url.replace("://", f"://user:{TOKEN}@")
    return [
        ({}, {"damaged": {"model.safetensors"}}, "arrived damaged"),
        ({}, {"answers": [(403, {"X-Error-Message": f"token {TOKEN} has no rights"})]}, "forbids"),
        ({"HF_TOKEN": TOKEN + "\u2026"}, {}, "HF_TOKEN holds"),
        ({"HF_ENDPOINT": secret}, {}, "does not accept"),
        ({"HF_ENDPOINT": f"{secret}:x"}, {}, "HF_ENDPOINT is"),
        (
            {"HF_ENDPOINT": "http://h.invalid", "HTTP_PROXY": f"http://u:{TOKEN}@127.0.0.1:9"},
            {},
            "the proxy 127.0.0.1:9",
        ),
    ]


def test_a_planted_token_is_nowhere_to_be_found(world, traces):
    server, environment = world
    work, check = traces
    export = ["export", NAME, "--format", "gguf", "--precision", "q8_0", "--out", "x"]
    for change, faults, said in failures(server):
        server.faults.__init__(**faults)
        run = edgekiln("--debug", *export, cwd=work, environment={**environment, **change})
        assert run.returncode in {2, 5}, run.stderr
        assert said in run.stderr
        assert "Traceback" in run.stderr
        check(run)
    server.faults.__init__(redirect=server.other_url)
    run = edgekiln("--debug", *export, cwd=work, environment=environment)
    assert run.returncode == 0, run.stderr
    assert any(path.name == "manifest.json" for path in check(run))


@pytest.mark.slow
def test_a_planted_token_is_in_no_report_and_no_log_of_a_build(world, traces):
    _, environment = world
    work, check = traces
    (work / "p.yaml").write_text(PIPELINE)
    settings = ["greedy_tokens=4", "prefill_tokens=16, 4", "decode_tokens=8, 2", "max_repeats=3"]
    small = [part for setting in settings for part in ("--set", setting)]
    run = edgekiln("build", "p.yaml", "--checkpoint", NAME, *small, cwd=work, environment=environment)
    names = {path.name for path in check(run)}
    assert {"report.json", "report.md", "manifest.json", "reference.log"} <= names, run.stderr


def test_a_child_sees_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:{TOKEN}@proxy")
    (tmp_path / "shows.py").write_text(
        "import os\nfrom edgekiln.process import serve\n"
        "if __name__ == '__main__': serve({'show': lambda _: dict(os.environ)})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = run_task("shows", "show", {}, log=tmp_path / "log")
    assert TOKEN not in str(seen)
    assert seen.get("HF_HUB_DISABLE_IMPLICIT_TOKEN") == "1"
