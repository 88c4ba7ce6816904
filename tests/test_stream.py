"""A task that talks: messages in order both ways, what it prints in the log, and every way it can go wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgekiln.errors import StepError, UnsupportedError
from edgekiln.process import Limits
from edgekiln.stream import open_stream

MODULE = """
import os, sys, time
from pathlib import Path
from edgekiln.errors import UnsupportedError
from edgekiln.process import serve
from edgekiln.stream import open_channel

def echo(request):
    channel = open_channel()
    while (message := channel.receive()) is not None:
        print("printed", flush=True)
        os.write(1, b"written to 1\\n")
        os.system("echo from a child of the child")
        channel.send({"got": message, "stdin": os.read(0, 10).decode()})
    return {}

def count(request):
    channel = open_channel()
    channel.receive()
    for number in range(100_000):
        channel.send({"number": number})
        if channel.interrupted():
            break
    channel.send({"end": number})
    channel.receive()
    return {}

def refuse(request):
    channel = open_channel()
    channel.send({"before": True})
    raise UnsupportedError("this one cannot")

def die(request):
    open_channel().send({"before": True})
    os._exit(9)

def silent(request):
    open_channel()
    Path(request["pid"]).write_text(str(os.getpid()))
    time.sleep(60)

def grow(request):
    open_channel()
    hoard = bytearray(400 << 20)
    hoard[::4096] = b"x" * len(hoard[::4096])
    time.sleep(60)

def chatter(request):
    channel = open_channel()
    hoard = []
    while True:
        if len(hoard) < 200:
            hoard.append(b"x" * (2 << 20))
        channel.send({"more": True})
        time.sleep(0.01)

def babble(request):
    print("no message", flush=True)
    time.sleep(60)

def done(request):
    open_channel()
    return {}

if __name__ == "__main__":
    serve({n: globals()[n] for n in ("echo", "count", "refuse", "die", "silent", "grow", "chatter", "babble", "done")})
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "talk_tasks.py").write_text(MODULE)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def begin(task: str, request: dict[str, object] | None = None, **limits: object):
        bounds = Limits(**{"seconds": 60, **limits})  # type: ignore[arg-type]
        return open_stream("talk_tasks", task, request or {}, log=tmp_path / "log", limits=bounds)

    return begin


def test_messages_go_both_ways_and_chatter_goes_to_the_log(start, tmp_path, capfd):
    with start("echo") as stream:
        for text in ("ü", "line\nend", "\u2028", "x" * 100_000):
            stream.send({"text": text})
            assert stream.receive() == {"got": {"text": text}, "stdin": ""}
    log = (tmp_path / "log").read_text()
    assert log.count("printed") == log.count("written to 1") == log.count("from a child of the child") == 4
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_stops_what_runs_and_nothing_later(start):
    with start("count") as stream:
        stream.send({"go": True})
        assert stream.receive() == {"number": 0}
        stream.interrupt()
        last = {}
        while "end" not in last:
            last = stream.receive()
        assert last["end"] < 99_999


def test_a_task_that_ends_well_says_so(start):
    with start("done") as stream:
        assert stream.receive() is None


def test_an_error_of_the_task_comes_after_its_messages(start):
    with start("refuse") as stream:
        assert stream.receive() == {"before": True}
        with pytest.raises(UnsupportedError, match="this one cannot"):
            stream.receive()


def test_a_task_that_dies_is_an_error_and_sending_to_it_is_not(start):
    with start("die") as stream:
        stream.receive()
        with pytest.raises(StepError, match="exit code 9 without a result"):
            stream.receive()
        stream.send({"any": 1})


def test_silence_is_ended_in_time_with_the_child(start, tmp_path):
    import psutil

    begin = time.monotonic()
    with (
        start("silent", {"pid": str(tmp_path / "pid")}) as stream,
        pytest.raises(StepError, match="said nothing for 3"),
    ):
        stream.receive(3)
    assert time.monotonic() - begin < 20
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_growing_task_is_ended(start):
    with start("grow", memory_bytes=200 << 20) as stream, pytest.raises(StepError, match="used more than 200 MiB"):
        stream.receive()


def test_a_growing_task_is_ended_though_it_never_stops_talking(start):
    with start("chatter", memory_bytes=200 << 20) as stream, pytest.raises(StepError, match="used more than 200 MiB"):
        for _ in range(500):
            stream.receive()


def test_a_reader_left_behind_ends_quietly(start):
    with start("count") as stream:
        stream.send({"go": True})
        deadline = time.monotonic() + 20
        while not stream._incoming.full():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while stream._incoming.get(timeout=20) is not None:  # makes room, and the pipe is closed by now
        pass


def test_what_is_no_message_is_an_error(start):
    with start("babble") as stream, pytest.raises(StepError, match="something else than messages"):
        stream.receive()


def test_leaving_the_block_ends_the_child_and_leaves_nothing(start, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    with start("count") as stream:
        stream.send({"go": True})
        stream.receive()
    assert not list(scratch.iterdir())
