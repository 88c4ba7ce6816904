"""Every bad input of the table ends with one sentence and the right exit code, and leaves nothing half-written."""

import json
import os
import re
import subprocess
import sys

import pytest

import bad_inputs
from bad_inputs import CASES, DOCUMENT, EXPORT, UNICODE, Case, run_case, run_outside, sentence
from checkpoints import make_checkpoint
from edgekiln.artifact import CHECKSUMS, sha256_file
from edgekiln.checkpoint import open_checkpoint

ALL = {f"{heading}: {name}": (heading, name) for heading, cases in CASES.items() for name in cases}


@pytest.mark.parametrize(("heading", "name"), ALL.values(), ids=ALL)
def test_it_ends_with_one_sentence_and_leaves_nothing(tmp_path, heading, name):
    case = CASES[heading][name]
    if (reason := case.needs()) is not None:
        pytest.skip(reason)
    shown = run_case(case, tmp_path)
    assert shown.code == case.code, shown.errors
    text = sentence(shown, tmp_path)
    assert bool(text) == bool(case.message)
    assert re.search(case.message, text)
    assert shown.errors.count("\nedgekiln: ") + shown.errors.startswith("edgekiln: ") <= 1
    assert "Traceback" not in shown.errors
    assert not bad_inputs.left_behind(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= case.leaves | {"c"}
    assert shown.seconds < case.seconds
    if sys.platform == "linux":  # elsewhere the system's words differ
        assert bad_inputs.row(name, shown.code, text) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_has_the_cases_of_the_table_and_no_others():
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert [name for name in names if name not in {"input", "---"}] == [name for _, name in ALL.values()]


HEADERS = {
    "lists": b'{"__metadata__":[' + b"[]," * 11_000_000 + b"1]}",
    "one long text": '{"__metadata__":{"a":"😀'.encode() + b"x" * 33_000_000 + b'"}}',
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(790_000)) + b"}",
    "tensors": b"{"
    + b",".join(b'"w%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' % number for number in range(99_999))
    + b"}",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_no_header_takes_gigabytes_or_minutes(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    program = (
        "import sys, pathlib\nfrom edgekiln.errors import CheckpointError\nfrom edgekiln.memory import peak_rss_bytes\n"
        "from edgekiln.safetensors import read_index\n"
        "try: read_index(pathlib.Path(sys.argv[1]))\nexcept CheckpointError: pass\nprint(peak_rss_bytes())"
    )
    shown = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, timeout=30)
    assert int(shown.stdout) < 400 << 20


def test_links_that_leave_the_folder_are_followed_as_the_hubs_cache_needs_them(tmp_path):
    blobs = make_checkpoint(tmp_path / "blobs", hidden_size=64, num_layers=1)
    (tmp_path / "snapshot").mkdir()
    for path in blobs.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    assert open_checkpoint(str(tmp_path / "snapshot")).identity == open_checkpoint(str(blobs)).identity


@pytest.mark.skipif(os.name == "nt", reason="POSIX descriptors")
def test_an_artifact_made_with_closed_streams_holds_nothing_that_a_library_printed(tmp_path):
    make_checkpoint(tmp_path / "c", hidden_size=64, num_layers=1)
    for name, redirection in (("a", ""), ("b", "2>&- >&- <&-")):
        command = [sys.executable, "-m", "edgekiln", *EXPORT[:-1], name]
        subprocess.run(["sh", "-c", f'exec "$@" {redirection}', "sh", *command], cwd=tmp_path, check=True)
    assert sha256_file(tmp_path / "a" / CHECKSUMS) == sha256_file(tmp_path / "b" / CHECKSUMS)


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_full_pipe_that_does_not_block_gets_everything(tmp_path):
    import select

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b" " * 4096)
        except BlockingIOError:
            break
    process = subprocess.Popen([sys.executable, "-m", "edgekiln", "schema", "report"], stdout=writing)
    while not os.get_blocking(writing):  # the child made it block, so it is about to write
        assert process.poll() is None, "it ended although nobody read"
        select.select([], [], [], 0.05)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert json.loads(pipe.read())["properties"]
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_json_stays_json_on_a_narrow_console(tmp_path, encoding):
    case = Case(bad_inputs.nothing, 0, "", ("schema", "pipeline"), environment={"PYTHONIOENCODING": encoding})
    wide = run_outside(Case(bad_inputs.nothing, 0, "", case.command, environment={"PYTHONUTF8": "1"}), tmp_path)
    narrow = run_outside(case, tmp_path)
    assert narrow.code == wide.code == 0
    assert list(json.loads(narrow.output)) == list(json.loads(wide.output))


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("arguments", [("plan", "p.yaml"), EXPORT, ("export", "nowhere", *EXPORT[2:])])
def test_a_terminal_of_twenty_columns(tmp_path, arguments):
    import fcntl
    import pty
    import struct
    import termios

    make_checkpoint(tmp_path / "c", hidden_size=64, num_layers=1)
    bad_inputs.project()(tmp_path)
    main_end, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 20, 0, 0))
    command = [sys.executable, "-m", "edgekiln", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=end, stdout=end, stderr=end, env={**environment, "TERM": "xterm"}
    )
    os.close(end)
    shown = bytearray()
    try:
        while piece := os.read(main_end, 4096):
            shown += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(main_end)
    assert process.wait(timeout=60) == (2 if "nowhere" in arguments else 0), shown.decode()
    assert b"Traceback" not in shown
    assert shown


SECRET = "hf_abcdefghijklmnopqrstuvwxyz012345"  # noqa: S105 - planted
BUG = """
import sys
import edgekiln.pipelines.targets as t
from edgekiln.__main__ import main
def broken(path):
    raise RuntimeError(sys.argv[1])
t.load_targets = broken
main(["targets", "--targets", "mein geheimes Projekt/targets.yaml"])
"""
MESSAGES = {
    "absolute path": "cannot parse /home/anna/secret/model.gguf",
    "quoted path with blanks": "no such file: '/home/anna/my secret/model'",
    "windows path": r"bad C:\Users\anna\secret\x",
    "relative path of an argument": "mein geheimes Projekt/targets.yaml is secret",
    "token": f"401 for {SECRET}",
    "address": "https://anna:secret@host/x",
    "escape": "\x1b[2Jsecret"[:4],
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_report_of_a_bug_names_the_place_and_nothing_of_the_user(tmp_path, message):
    shown = subprocess.run(
        [sys.executable, "-c", BUG, message],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_TOKEN": SECRET},
    )
    assert shown.returncode == 70
    lines = shown.stderr.splitlines()
    assert lines[0].startswith("edgekiln: a bug in Edgekiln: RuntimeError: ")
    assert "in broken" in lines[1]
    assert lines[2] == "  command edgekiln targets --targets"
    assert re.fullmatch(r"  edgekiln \S+, Python 3\.\S+, \w+ \w+", lines[3])
    assert len(lines) == 5
    for private in ("anna", "my secret", "geheim", SECRET, "\x1b", str(tmp_path)):
        assert private not in shown.stderr


BUILD = (*bad_inputs.BUILD, "--json")


@pytest.mark.slow
def test_a_whole_build_in_a_folder_with_blanks_and_unicode_and_without_a_home(tmp_path):
    folder = UNICODE
    (tmp_path / folder).mkdir()
    case = Case(bad_inputs.project(), 0, "", BUILD, environment={"HOME": "-"})
    shown = run_case(case, tmp_path / folder)
    report = json.loads((tmp_path / folder / "out" / "report.json").read_bytes().decode("utf-8"))
    (build,) = report["builds"]
    assert shown.code in {0, 1}, shown.errors + str(build["reason"])  # random weights may miss a gate
    assert build["parity"] is not None
    assert not bad_inputs.left_behind(tmp_path / folder)
