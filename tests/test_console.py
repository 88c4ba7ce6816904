"""What a person sees while something runs: plain lines, and live ones on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from edgekiln import console as module
from edgekiln.console import Console
from edgekiln.engine.step import Batch, Needs, Step
from edgekiln.engine.survey import Outcome
from edgekiln.errors import StepError
from edgekiln.progress import Progress, span

LAST = {"a": 42.0, "b": 120.0, "c": 60.0}


class Clock:
    """Time that passes when told to."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "_clock", made)
    monkeypatch.setattr(module, "_stamp", lambda: "12:00:00")
    return made


def step(name, *inputs, **more):
    return Step(name, "export", "exporting", inputs={str(n): other for n, other in enumerate(inputs)}, **more)


def survey(console, goals, jobs=2, log=None):
    console.survey(goals, jobs=jobs, last_seconds=lambda step: LAST.get(step.name), log=log or (lambda _: None))


# --- plain lines ------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_every_step_is_one_plain_line(capsys):
    with Console(1) as console, console.step("gguf-cpu-int4", "exporting Q4_0"):
        pass
    shown = capsys.readouterr()
    assert not shown.out
    assert re.fullmatch(r"\d\d:\d\d:\d\d gguf-cpu-int4: exporting Q4_0, \d+\.\d s\n", shown.err)


def test_a_step_that_fails_says_so(capsys):
    with pytest.raises(ValueError, match="x"), Console() as console, console.step("a", "b"):
        raise ValueError("x")
    assert "a: b failed after" in capsys.readouterr().err


def test_names_with_brackets_are_shown_as_they_are(capsys):
    Console().say("[red]name[/red]")
    assert "[red]name[/red]" in capsys.readouterr().err


def test_a_run_in_plain_lines(capsys, clock, tmp_path):
    """The whole story: what was made before, what is made, what fails and why, what is not made therefore."""
    a, b, c, d = step("a"), step("b"), step("c"), step("d")
    after = [step(f"after-{n}", c) for n in range(6)]
    (tmp_path / "c.log").touch()
    with Console() as console:
        survey(console, [a, b, d, *after], log=lambda step: tmp_path / f"{step.name}.log")
        console.expect([b, c, d, *after])
        console.begins(b, 120.0)
        console.begins(c, None)
        console.advances(c, 0.5)
        console.ends(b, Outcome("made", seconds=12.34))
        console.ends(c, Outcome("failed", seconds=83.0, error=StepError("it went wrong")))
        for other in after:
            console.ends(other, Outcome("stopped", error=StepError("it went wrong")))
        console.expect([d])
        console.ends(d, Outcome("skipped", reason="it is not wanted"))
        console.say("the end")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "12:00:00 1 of 10 steps were made before",
        "12:00:00 [2/10] b: exporting, 12.3 s",
        f"12:00:00 [3/10] c: exporting failed after 1 min 23 s: it went wrong; its log is {tmp_path / 'c.log'}",
        "12:00:00 not made therefore: after-0, after-1, after-2, after-3 and 2 more",
        "12:00:00 [10/10] d: skipped: it is not wanted",
        "12:00:00 the end",
    ]


def test_a_run_in_which_all_was_made_before_is_one_line(capsys, clock):
    with Console() as console:
        survey(console, [step("b", step("a"))])
        console.expect([])
    assert capsys.readouterr().err == "12:00:00 2 of 2 steps were made before\n"


def test_what_turns_out_to_be_there_is_counted_and_what_another_engine_made_is_named(capsys, clock):
    a, b, c, d = (step(name) for name in "abcd")
    console = Console()
    survey(console, [a, b, c, d])
    console.expect([a, b, c, d])
    console.begins(b, None)
    console.ends(a, Outcome("made", seconds=1.0))
    console.expect([d])
    console.ends(d, Outcome("hit", seconds=5.0))
    assert capsys.readouterr().err.splitlines() == [
        "12:00:00 [1/4] a: exporting, 1.0 s",
        "12:00:00 2 steps turned out to be there already",
        "12:00:00 [4/4] d: made by another edgekiln",
    ]
    assert console._progress.running() == []


def test_a_log_that_the_error_names_is_not_named_twice(capsys, clock, tmp_path):
    log = tmp_path / "a.log"
    log.touch()
    console = Console()
    survey(console, [step("a")], log=lambda _: log)
    console.ends(step("a"), Outcome("failed", error=StepError(f"it died; its log is {log}")))
    assert capsys.readouterr().err.count("log is") == 1


def test_silence_ends_after_a_minute(capsys, clock):
    a, b = step("a"), step("b")
    console = Console()
    survey(console, [a, b])
    console.expect([a, b])
    console.begins(a, 42.0)
    console.begins(b, 120.0)
    clock.now += 59
    console._output.show()
    assert capsys.readouterr().err == ""
    assert console._output.pause() == 1
    clock.now += 1
    console.advances(b, 0.25)
    for _ in range(2):
        console._output.show()
    assert capsys.readouterr().err == (
        "12:00:00 [0/2] still running: a: exporting (1 min 0 s, last time 42 s), b: exporting (25% 1 min 0 s); "
        "about 3 min left\n"
    )


def test_silence_ends_by_itself(capsys, monkeypatch):
    """In a single command too, while its own thread is busy."""
    monkeypatch.setattr(module, "_SILENT_SECONDS", 0.2)
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.05)
    with Console() as console, console.step("model", "exporting"):
        time.sleep(0.7)
    assert 2 <= capsys.readouterr().err.count("still running: model: exporting (") <= 4


def test_what_would_move_the_cursor_or_tell_a_secret_is_not_shown(capsys, monkeypatch, clock):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    console = Console()
    console.say("\x1b[2J\x07 \u202e hf_abcdefghijklmnop\nsecond line")
    assert capsys.readouterr().err == "12:00:00 \\x1b[2J\\x07 \\u202e ***\nsecond line\n"
    bad = step("a")
    console.begins(Step(bad.name, "export", "\x1b[31mred\n"), None)
    assert [task.label for task in console._progress.running()] == ["a: \\x1b[31mred\\n"]


def test_lines_of_several_threads_are_not_torn(capfd):
    console = Console()
    threads = [threading.Thread(target=lambda: [console.say("x" * 50) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 200
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d x{50}", line) for line in lines)


# --- figures ----------------------------------------------------------------------------------------------------------


def progress_of(*steps, jobs=1):
    clock = Clock()
    progress = Progress(0, clock)
    progress.survey(steps, jobs, lambda step: LAST.get(step.name))
    progress.expect(steps)
    return progress, clock


@pytest.mark.parametrize(
    ("names", "jobs", "alone", "estimate"),
    [
        ("a", 1, "", "about 45 s left"),
        ("ab", 1, "", "about 3 min left"),
        ("ab", 2, "", "about 2 min left"),
        ("ab", 4, "", "about 2 min left"),  # as long as its longest step
        ("abc", 2, "b", "about 3 min left"),  # 120 s alone, then 102 s over two
        ("ax", 1, "", "at least 45 s left"),
        ("xy", 1, "", None),
        ("", 1, "", None),
    ],
)
def test_the_estimate_is_what_is_left_over_the_jobs(names, jobs, alone, estimate):
    progress, _ = progress_of(*(step(name, needs=Needs(alone=name in alone)) for name in names), jobs=jobs)
    assert progress.estimate() == estimate


def test_the_estimate_sinks_while_steps_run_and_is_never_negative():
    a, b, c = step("a"), step("b"), step("c")
    progress, clock = progress_of(a, b, c)
    progress.begin(a, 42.0)
    assert progress.estimate() == "about 4 min left"
    clock.now += 41
    assert progress.estimate() == "about 3 min left"
    clock.now += 10_000
    assert progress.estimate() == "about 3 min left"
    progress.end(a)
    progress.end(c)
    progress.begin(b, 120.0)
    clock.now += 10_000
    assert progress.estimate() is None
    progress.advance(b, 0.99)
    assert progress.estimate() == "about 2 min left"
    clock.now -= 50_000
    assert progress.estimate() is None


def test_a_batch_is_one_line_and_counts_its_time_once():
    batch = Batch("latency of gguf", lambda _: {})
    steps = [step(name, batch=batch, needs=Needs(alone=True)) for name in "ca"]
    progress, _ = progress_of(*steps)
    assert progress.estimate() == "about 60 s left"
    for member in steps:
        progress.begin(member, LAST[member.name])
    assert [task.label for task in progress.running()] == ["latency of gguf: exporting"]
    assert progress.estimate() == "about 60 s left"
    progress.end(steps[0])
    assert progress.done == 1


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -1.0, 0.0, 2.0])
def test_no_share_of_work_upsets_the_figures(share):
    a = step("x")
    progress, clock = progress_of(a)
    progress.begin(a, None)
    progress.advance(a, share)
    progress.advance(step("not running"), 0.5)
    clock.now += 10
    (task,) = progress.running()
    assert task.share is None or 0 <= task.share <= 1
    assert progress.estimate() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7830, "2 h 10 min")],
)
def test_times_are_written_for_people(seconds, text):
    assert span(seconds) == text


# --- a terminal -------------------------------------------------------------------------------------------------------

STORY = """
import sys, time
from pathlib import Path
from edgekiln.console import Console
from edgekiln.engine.survey import Outcome
from edgekiln.engine.step import Needs, Step
from edgekiln.errors import StepError
from edgekiln.standard_streams import prepare_streams

prepare_streams()
name = "onnx-cpu-int{}.export"
steps = [Step(name.format(n), "export", "exporting \\u6a21\\u578b Q4_0", needs=Needs(alone=n == 9)) for n in range(10)]
begin = time.process_time()
try:
    with Console() as console:
        console.survey(steps, jobs=2, last_seconds=lambda _: 42.0, log=lambda _: Path("nowhere"))
        console.expect(steps[1:])
        console.begins(steps[1], 42.0)
        console.begins(steps[2], None)
        console.advances(steps[2], 0.5)
        console.status("fetching model.safetensors: 1 GB of 2 GB")
        time.sleep(0.6)
        console.ends(steps[1], Outcome("made", seconds=1.2))
        console.ends(steps[2], Outcome("failed", seconds=1.2, error=StepError("it went wrong")))
        console.say("a path that is longer than forty columns: /" + "x" * 50)
        if sys.argv[1:] == ["hang"]:
            console.begins(steps[3], 42.0)
            for _ in range(6000):  # a signal may reach another thread, and then no sleep ends early
                time.sleep(0.01)
except KeyboardInterrupt:
    sys.exit(130)
"""
needs_pty = pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")


class Terminal:
    """Runs the story on a pseudo-terminal and reads what it writes there."""

    def __init__(self, *arguments, story=STORY, columns=100, rows=24, **environment):
        import fcntl
        import pty
        import struct
        import termios

        self._outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        unwanted = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
        kept = {name: value for name, value in os.environ.items() if name not in unwanted}
        self.process = subprocess.Popen(
            [sys.executable, "-c", story, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=inner,
            env={**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
            start_new_session=True,
        )
        os.close(inner)
        self.raw = b""

    def until(self, text=None):
        """Read up to and with `text`, or to the end."""
        try:
            while text is None or text not in self.raw:
                piece = os.read(self._outer, 4096)
                if not piece:
                    break
                self.raw += piece
        except OSError:  # Linux's way to say that the other end is closed
            pass
        return self

    def finish(self):
        self.until()
        os.close(self._outer)
        output, _ = self.process.communicate(timeout=30)
        assert output == b""
        return self.raw.decode()


def picture(raw):
    """Return the lines that a terminal shows after what was written to it, and whether its cursor shows."""
    lines, row, column, shown = [""], 0, 0, True
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", raw):
        if piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif piece == "\r":
            column = 0
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column] + piece + lines[row][column + len(piece) :]
            column += len(piece)
        elif piece.endswith("A"):
            row -= int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece in {"\x1b[?25l", "\x1b[?25h"}:
            shown = piece.endswith("h")
        else:
            assert piece.endswith("m"), piece
    return [line for line in lines if line], shown


LEFT = [
    "1 of 10 steps were made before",
    "[2/10] onnx-cpu-int1.export: exporting 模型 Q4_0, 1.2 s",
    "[3/10] onnx-cpu-int2.export: exporting 模型 Q4_0 failed after 1.2 s: it went wrong",
    f"a path that is longer than forty columns: /{'x' * 50}",
]


@pytest.fixture(scope="module")
def told():
    """What the story writes to an ordinary terminal."""
    return Terminal().finish()


@needs_pty
def test_a_terminal_shows_what_runs_and_keeps_what_ended(told):
    raw = told
    during, hidden = picture(re.sub(r"\r(\x1b\[\d*[AK])+$", "", raw.partition("[2/10]")[0]))
    assert during[0] == LEFT[0]
    assert re.fullmatch(r"onnx-cpu-int1\.export: exporting 模型 Q4_0  [01] s, last time 42 s", during[1])
    assert re.fullmatch(r"onnx-cpu-int2\.export: exporting 模型 Q4_0  █{6}░{6} 50% [01] s", during[2])
    assert during[3] == "fetching model.safetensors: 1 GB of 2 GB"
    assert re.fullmatch(r"1 of 10 steps · 2 running · (about|at least) \d min left", during[4])
    assert not hidden
    assert picture(raw) == (LEFT, True)


@needs_pty
def test_no_color_is_respected(told):
    assert "\x1b[2m" in told
    raw = Terminal(NO_COLOR="1").finish()
    assert not re.findall(r"\x1b\[[0-9;]*m", raw)
    assert picture(raw) == (LEFT, True)


@needs_pty
@pytest.mark.parametrize("columns", [40, 12])
def test_a_narrow_terminal_gets_no_line_that_wraps_but_those_that_stay(columns):
    from rich.cells import cell_len

    raw = Terminal(columns=columns).finish()
    painted = {re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", raw)} - set(LEFT)
    assert any("onnx-cpu" in line for line in painted)
    assert all(cell_len(line) < columns for line in painted)
    assert picture(raw) == (LEFT, True)


@needs_pty
def test_a_low_terminal_is_not_overfull():
    raw = Terminal(rows=4).finish()
    assert "and 1 more" in raw
    assert picture(raw) == (LEFT, True)


@needs_pty
def test_a_narrow_encoding_gets_no_character_that_it_has_not():
    raw = Terminal(PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C").finish()
    assert raw.isascii()
    assert "######------ 50%" in raw
    assert " | 2 running | " in raw
    assert picture(raw)[1]


@needs_pty
@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(term):
    raw = Terminal(TERM=term).finish()
    assert "\x1b" not in raw
    assert [line[9:] for line in raw.splitlines()] == LEFT


@needs_pty
def test_ctrl_c_leaves_the_terminal_clean():
    terminal = Terminal("hang").until(b"int3.export: exporting")
    assert not picture(terminal.raw.decode())[1]
    terminal.process.send_signal(signal.SIGINT)
    raw = terminal.finish()
    assert terminal.process.returncode == 130
    assert picture(raw) == (LEFT, True)


STORM = """
import time
from edgekiln import console as module
from edgekiln.console import Console

quick = module._Screen.__rich_console__

def slow(*arguments):
    yield from quick(*arguments)
    time.sleep(0.003)

module._Screen.__rich_console__ = slow
module._REFRESH_SECONDS = 0.0
with Console() as console, console.step("model", "exporting"):
    for number in range(60):
        console.status("a picture of another height")
        time.sleep(0.004)
        console.say(f"line {number}")
"""


@needs_pty
def test_no_line_is_lost_between_pictures():
    lines, _ = picture(Terminal(story=STORM).finish())
    assert lines[:-1] == [f"line {number}" for number in range(60)]


@needs_pty
def test_a_measurement_is_disturbed_less_often(monkeypatch):
    monkeypatch.setattr(sys, "stderr", type("T", (), {"isatty": lambda _: True, "encoding": "utf-8"})())
    monkeypatch.setenv("TERM", "xterm")
    progress, _ = progress_of(step("a"))
    screen = module._screen(progress)
    assert screen.pause() == 0.5
    progress.begin(step("a", needs=Needs(alone=True)), None)
    assert screen.pause() >= 2
