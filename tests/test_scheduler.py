"""The engine: which steps it makes, in what order, beside what, and how it ends when one of them or the user does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.machine_lock import MachineLock
from edgekiln.engine.run_log import RunLog
from edgekiln.engine.scheduler import Engine, Options
from edgekiln.engine.step import Batch, Needs, Step
from edgekiln.errors import BugError, ChildError, ExitCode, MachineError, StepError, worst
from edgekiln.process import run_task

TASKS = """
import os, signal, time
from pathlib import Path
from edgekiln.process import serve

def hang(request):
    Path(request["pid"]).write_text(str(os.getpid()))
    time.sleep(600)

def die(request):
    os.kill(os.getpid(), signal.SIGKILL) if os.name != "nt" else os._exit(9)

serve({"hang": hang, "die": die})
"""


class Heard:
    """A listener that notes what it is told."""

    def __init__(self):
        self.expected, self.begun, self.ended, self.said, self.shares = [], [], {}, [], []

    def expect(self, steps):
        self.expected.append({step.name for step in steps})

    def begins(self, step, last_seconds):
        self.begun.append((step.name, last_seconds))

    def advances(self, step, share):
        self.shares.append((step.name, share))

    def ends(self, step, outcome):
        assert step.name not in self.ended
        self.ended[step.name] = outcome.ending

    def say(self, text):
        self.said.append(text)


@dataclass
class Room:
    """A cache, and engines on it."""

    root: Path
    locked: bool = True
    made: list[str] = field(default_factory=list)
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def __post_init__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        self.store = LocalStore(self.root / "cache")
        self.memory = HashMemory(self.root / "memory.db")
        self.heard = Heard()

    def engine(self, jobs=2, cores=4, memory_bytes=100, child_seconds=60.0, **options):
        self.heard = Heard()
        return Engine(
            self.store,
            self.memory,
            self.heard,
            lambda step: self.root / "logs" / f"{step.name}.log",
            RunLog(self.root / "run.jsonl"),
            MachineLock(self.root / "state" if self.locked else self.root / "memory.db" / "state"),
            self.root / "scratch",
            Options(jobs, cores, memory_bytes, child_seconds, **options),
        )

    def run(self, *goals, **options):
        """Return how each step ended, by name."""
        self.made.clear()
        outcomes = self.engine(**options).run(goals)
        return {step.name: outcome for step, outcome in outcomes.items()}

    def step(self, name, *inputs, text="", action=None, seconds=0.0, **more):
        """Return a step that writes a file with `text` and what its inputs hold, after `action(work)`."""

        def run(work):
            begin = time.monotonic()
            self.made.append(name)
            if action is not None:
                action(work)
            time.sleep(seconds)
            parts = [text, *((path / "file").read_text() for _, path in sorted(work.inputs.items()))]
            (work.directory / "file").write_text("".join(parts))
            self.spans.append((name, begin, time.monotonic()))

        roles = {f"in{number}": step for number, step in enumerate(inputs)}
        return Step(name, "kind", "making", inputs=roles, parameters={"name": name, "text": text}, run=run, **more)

    def events(self, event):
        lines = (self.root / "run.jsonl").read_text().splitlines()
        return [line["step"] for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """What survives a power loss is the stores' business."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path / "room")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Make the tasks above importable by children; returns an action for each of them."""
    (tmp_path / "scheduler_tasks.py").write_text(TASKS, encoding="utf-8")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def action(task):
        def run(work):
            run_task("scheduler_tasks", task, {"pid": str(tmp_path / "pid")}, log=work.log, limits=work.limits)

        return run

    return action


def fail(_work):
    raise StepError("it went wrong")


def endings(outcomes):
    return {name: outcome.ending for name, outcome in outcomes.items()}


def pid_of(path, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError("the child has not begun")


def is_gone(pid, seconds=2.0):
    import psutil

    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# --- what is made -----------------------------------------------------------------------------------------------------


def chain(room, last="c"):
    a = room.step("a", text="a")
    b = room.step("b", a, text="b")
    return a, b, room.step("c", b, text=last)


def test_every_step_is_made_once_and_never_again(room):
    _, _, c = chain(room)
    first = room.run(c)
    assert room.made == ["a", "b", "c"]
    assert endings(first) == {"a": "made", "b": "made", "c": "made"}
    assert (first["c"].path / "file").read_text() == "cba"
    again = room.run(chain(room)[2])
    assert (room.made, endings(again)) == ([], {"a": "hit", "b": "hit", "c": "hit"})
    assert again["c"].path == first["c"].path
    assert room.heard.expected == [set()]
    assert sorted(room.events("made")) == ["a", "b", "c"]


def test_a_shared_input_is_made_once(room):
    a = room.step("a")
    outcomes = room.run(*(room.step(name, a) for name in "bcde"))
    assert sorted(room.made) == ["a", "b", "c", "d", "e"]
    assert set(endings(outcomes).values()) == {"made"}


def test_only_what_is_missing_is_made(room):
    room.run(chain(room)[2])
    outcomes = room.run(chain(room, last="another")[2])
    assert room.made == ["c"]
    assert (outcomes["c"].path / "file").read_text() == "anotherba"


def test_inputs_reach_the_step_as_the_files_that_their_steps_left(room):
    seen = {}
    a, b = room.step("a", text="1"), room.step("b", text="2")
    c = room.step("c", a, b, action=lambda work: seen.update(work.inputs, records=work.records))
    outcomes = room.run(c)
    assert seen == {
        "in0": outcomes["a"].path,
        "in1": outcomes["b"].path,
        "records": {"in0": outcomes["a"].record, "in1": outcomes["b"].record},
    }


@pytest.mark.parametrize("needed", [True, False])
def test_a_result_without_its_files_is_made_anew_only_if_they_are_needed(room, needed):
    _, b, c = chain(room)
    outcomes = room.run(c)
    room.store.drop_files(outcomes["b"].record.key)
    goal = chain(room)[2] if not needed else chain(room, last="another")[2]
    room.run(goal)
    assert room.made == (["b", "c"] if needed else [])
    del b


def test_a_goal_without_its_files_is_made_anew(room):
    outcomes = room.run(chain(room)[2])
    room.store.drop_files(outcomes["c"].record.key)
    assert endings(room.run(chain(room)[2])) == {"a": "hit", "b": "hit", "c": "made"}


def test_an_equal_result_leaves_what_depends_on_it_alone(room):
    """A step whose key changed, and whose bytes did not, costs nothing but itself."""
    a = room.step("a", text="same")
    room.run(room.step("c", room.step("b", a)))
    a = Step("a", "kind", "making", parameters={"other": 1}, run=a.run)
    outcomes = room.run(room.step("c", room.step("b", a)))
    assert room.made == ["a"]
    assert endings(outcomes) == {"a": "made", "b": "hit", "c": "hit"}
    assert room.heard.expected[0] == {"a", "b", "c"}
    assert room.heard.expected[-1] == set()


def test_a_result_that_comes_out_otherwise_when_made_anew_is_not_mixed_with_the_former(room):
    """What depends on it is made anew, with a key of its own."""
    texts = iter("12")
    a = Step("a", "kind", "making", run=lambda work: (work.directory / "file").write_text(next(texts)) and None)
    b = room.step("b", a)
    first = room.run(b)
    room.store.drop_files(first["a"].record.key)
    second = room.run(b, room.step("c", a, text="c"))
    assert [(second[name].path / "file").read_text() for name in "abc"] == ["2", "2", "c2"]
    assert second["b"].record.key != first["b"].record.key
    assert second["b"].record.ingredients.inputs == {"in0": second["a"].record.digest}


def test_a_key_covers_all_inputs_even_if_one_is_looked_at_again_meanwhile(room):
    """A step that comes out otherwise makes the engine look anew; one that runs must not lose its inputs by that."""
    texts, begun = iter("12"), threading.Event()

    def write(work):
        begun.wait(10)
        (work.directory / "file").write_text(next(texts))

    a, other = Step("a", "kind", "making", run=write), room.step("other")
    begun.set()
    first = room.run(a, other)
    room.store.drop_files(first["a"].record.key)
    begun.clear()
    slow = room.step("slow", other, action=lambda _: begun.set(), seconds=0.3)
    outcomes = room.run(slow, a)
    assert outcomes["slow"].record.ingredients.inputs == {"in0": first["other"].record.digest}
    room.run(slow)
    assert room.made == []


def test_fresh_kinds_are_made_whatever_the_store_has(room):
    a = room.step("a")
    b = Step("b", "late", "making", inputs={"a": a}, run=lambda work: (work.directory / "file").touch())
    room.run(b)
    assert endings(room.run(b, fresh=frozenset({"late"}))) == {"a": "hit", "b": "made"}


def test_a_damaged_result_is_made_anew(room):
    outcomes = room.run(room.step("a", text="good"))
    path = outcomes["a"].path / "file"
    path.chmod(0o644)
    path.write_text("evil")
    outcomes = room.run(room.step("a", text="good"))
    assert (room.made, (outcomes["a"].path / "file").read_text()) == (["a"], "good")


def test_volatile_results_serve_this_run_only(room):
    def say_so(work):
        work.volatile = "it was noisy"

    a = room.step("a", text="x", action=say_so)
    for _ in range(2):
        outcomes = room.run(room.step("b", a))
        assert (outcomes["b"].path / "file").read_text() == "x"
        assert "a" in room.made
        assert outcomes["a"].path.is_relative_to(room.root / "scratch")
    assert [record.name for record in room.store.records()] == ["b"]
    assert room.events("volatile") == ["a", "a"]


def test_what_lies_outside_is_made_from_its_input_and_looked_for(room, tmp_path):
    place = tmp_path / "out"

    def publish(work):
        shutil.copytree(work.inputs["in"], place)
        work.place = place

    def graph():
        a = room.step("a", text="x")
        found = lambda _: place if place.exists() else None  # noqa: E731 - next to what it belongs to
        p = Step("p", "publish", "publishing", inputs={"in": a}, run=publish, outside=found)
        return room.step("b", p)

    assert endings(room.run(graph())) == {"a": "made", "p": "made", "b": "made"}
    assert endings(room.run(graph())) == {"a": "hit", "p": "hit", "b": "hit"}
    assert [record.name for record in room.store.records() if record.name == "p"] == []


def test_the_forecast_is_what_a_run_then_does(room):
    _, b, _ = chain(room)
    room.run(b)
    _, _, c = chain(room, last="new")
    d = room.step("d", c)
    found = room.engine().survey.forecast([d])
    assert {step.name: state for step, state in found.items()} == {
        "a": "hit",
        "b": "hit",
        "c": "miss",
        "d": "unknown",
    }


def test_durations_are_remembered_for_the_next_time(room):
    a = room.step("a", seconds=0.05)
    room.run(a)
    assert room.heard.begun == [("a", None)]
    room.run(room.step("a", text="other"))
    ((_, last),) = room.heard.begun
    assert 0.05 <= last < 5


def test_progress_is_told_while_a_step_runs(room):
    def half(work):
        work.share = 0.5
        time.sleep(0.4)

    room.run(room.step("a", action=half), room.step("b", seconds=0.4, progress=lambda _: 0.25))
    assert {("a", 0.5), ("b", 0.25)} <= set(room.heard.shares)


# --- what fails -------------------------------------------------------------------------------------------------------


def test_a_failure_stops_only_what_depends_on_it(room):
    bad = room.step("bad", action=fail)
    after = room.step("after", bad)
    last = room.step("last", after, room.step("beside"))
    outcomes = room.run(last, room.step("good"))
    assert endings(outcomes) == {
        "bad": "failed",
        "after": "stopped",
        "last": "stopped",
        "beside": "made",
        "good": "made",
    }
    assert {str(outcomes[name].error) for name in ("bad", "after", "last")} == {"it went wrong"}
    assert room.heard.ended == endings(outcomes)
    assert not list((room.root / "cache" / "v1" / "partial").iterdir())


def test_what_nobody_needs_any_more_is_not_made(room):
    bad = room.step("bad", action=fail)
    late = room.step("late", room.step("first", seconds=0.3))
    outcomes = room.run(room.step("last", bad, late), jobs=2)
    assert endings(outcomes) == {"bad": "failed", "last": "stopped", "first": "made", "late": "skipped"}
    outcomes = room.run(room.step("last", bad, room.step("beside")), jobs=1)
    assert endings(outcomes) == {"bad": "failed", "last": "stopped", "beside": "skipped"}
    assert worst(o.error.exit_code for o in outcomes.values() if o.error) == ExitCode.STEP_FAILED


def test_a_failure_is_tried_again_by_the_next_run(room):
    assert room.run(room.step("a", action=fail))["a"].ending == "failed"
    assert room.run(room.step("a"))["a"].ending == "made"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (StepError("x"), StepError, ExitCode.STEP_FAILED),
        (MachineError("x"), MachineError, ExitCode.ENVIRONMENT),
        (OSError(28, "No space left on device"), MachineError, ExitCode.ENVIRONMENT),
        (ZeroDivisionError("x"), BugError, ExitCode.BUG),
        (SystemExit(3), BugError, ExitCode.BUG),
    ],
)
def test_every_error_costs_its_step_and_keeps_its_exit_code(room, error, kind, code):
    def stumble(_work):
        raise error

    outcomes = room.run(room.step("a", action=stumble), room.step("b"))
    assert endings(outcomes) == {"a": "failed", "b": "made"}
    assert type(outcomes["a"].error) is kind
    assert outcomes["a"].error.exit_code == code


def test_a_bug_leaves_its_traceback_in_the_log_of_its_step(room):
    room.run(room.step("a", action=lambda _: 1 / 0))
    assert "ZeroDivisionError" in (room.root / "logs" / "a.log").read_text()


def test_a_step_is_skipped_for_a_reason_with_what_depends_on_it(room):
    a = room.step("a", text="no")
    b = room.step("b", a, skip=lambda inputs: "not today" if (inputs["in0"] / "file").read_text() == "no" else None)
    outcomes = room.run(room.step("d", room.step("c", b)))
    assert endings(outcomes) == {"a": "made", "b": "skipped", "c": "stopped", "d": "stopped"}
    assert {outcomes[name].reason for name in "bcd"} == {"not today"}
    assert [outcomes[name].error for name in "bcd"] == [None] * 3


def test_an_optional_input_that_fails_is_gone_without_and_the_result_is_not_kept(room):
    roles = {"in0": room.step("bad", action=fail), "in1": room.step("good", text="g")}
    last = room.step("last")
    last = Step("last", "kind", "making", inputs=roles, optional=frozenset({"in0"}), run=last.run)
    outcomes = room.run(last)
    assert endings(outcomes) == {"bad": "failed", "good": "made", "last": "made"}
    assert (outcomes["last"].path / "file").read_text() == "g"
    assert [record.name for record in room.store.records()] == ["good"]


def test_a_fault_of_the_engine_itself_ends_the_children(room, tasks, tmp_path):
    def burst(work):
        pid_of(tmp_path / "pid")
        raise RuntimeError("in the deciding thread")

    hanging = room.step("a", action=tasks("hang"), progress=burst)
    with pytest.raises(RuntimeError, match="deciding thread"):
        room.run(hanging)
    assert is_gone(int((tmp_path / "pid").read_text()))


# --- children ---------------------------------------------------------------------------------------------------------


def test_a_child_that_dies_costs_its_step(room, tasks):
    outcomes = room.run(room.step("a", action=tasks("die")), room.step("b"))
    assert endings(outcomes) == {"a": "failed", "b": "made"}
    assert isinstance(outcomes["a"].error, ChildError)
    assert str(room.root / "logs" / "a.log") in str(outcomes["a"].error)


@pytest.mark.parametrize("limit", ["step", "process"])
def test_a_child_that_hangs_is_ended_when_its_time_is_up(room, tasks, tmp_path, limit):
    needs = Needs(seconds=1.0) if limit == "step" else Needs()
    begin = time.monotonic()
    outcomes = room.run(
        room.step("a", action=tasks("hang"), needs=needs), child_seconds=1.0 if limit == "process" else 60.0
    )
    assert time.monotonic() - begin < 3
    assert outcomes["a"].ending == "failed"
    assert "1 s" in str(outcomes["a"].error)
    assert is_gone(pid_of(tmp_path / "pid"))


def test_fail_fast_ends_the_rest_within_two_seconds(room, tasks, tmp_path):
    failed_at = []

    def fail_when_the_other_runs(_work):
        pid_of(tmp_path / "pid")
        failed_at.append(time.monotonic())
        raise MachineError("no more disk")

    steps = [room.step("a", action=tasks("hang")), room.step("b", action=fail_when_the_other_runs), room.step("c")]
    outcomes = room.run(*steps, fail_fast=True, jobs=2)
    assert time.monotonic() - failed_at[0] < 2
    assert endings(outcomes) == {"a": "stopped", "b": "failed", "c": "stopped"}
    assert {outcome.error.exit_code for outcome in outcomes.values()} == {ExitCode.ENVIRONMENT}
    assert all("no more disk" in str(outcome.error) for outcome in outcomes.values())
    assert is_gone(pid_of(tmp_path / "pid"))


SCRIPT = """
import json, os, sys, time
from pathlib import Path
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.machine_lock import MachineLock
from edgekiln.engine.run_log import RunLog
from edgekiln.engine.scheduler import Engine, Options
from edgekiln.engine.step import Needs, Step
from edgekiln.process import run_task

root, what = Path(sys.argv[1]), sys.argv[2]

class Quiet:
    def expect(self, steps): pass
    def begins(self, step, last_seconds): pass
    def advances(self, step, share): pass
    def ends(self, step, outcome): pass
    def say(self, text): print(text, flush=True)

def timed(name, seconds, *inputs, alone=False):
    def run(work):
        begin = time.monotonic()
        time.sleep(seconds)
        (work.directory / "file").write_text(name)
        line = json.dumps([name, os.getpid(), alone, begin, time.monotonic()])
        with (root / "spans").open("a") as file:
            file.write(line + "\\n")
    return Step(name, "kind", "making", inputs={str(n): i for n, i in enumerate(inputs)},
                parameters={"name": name}, run=run, needs=Needs(alone=alone))

def hang(work):
    run_task("scheduler_tasks", "hang", {"pid": str(root / "pid")}, log=work.log, limits=work.limits)

if what == "hang":
    goals = [Step("a", "kind", "making", run=hang), timed("b", 0.0)]
else:
    first = [timed(f"a{n}", 0.1) for n in range(4)]
    goals = [timed(f"m{n}", 0.1, step, alone=True) for n, step in enumerate(first)]
    goals += [timed(f"b{n}", 0.1, step) for n, step in enumerate(first)]

engine = Engine(LocalStore(root / "cache"), HashMemory(root / f"memory{os.getpid()}.db"), Quiet(),
                lambda step: root / "logs" / f"{os.getpid()}" / f"{step.name}.log", RunLog(root / "run.jsonl"),
                MachineLock(root / "state"), root / "scratch", Options(2, 4, 100, 60.0))
try:
    outcomes = engine.run(goals)
except KeyboardInterrupt:
    print({step.name: outcome.ending for step, outcome in engine.outcomes().items()})
    sys.exit(130)
print({outcome.ending for outcome in outcomes.values()} <= {"made", "hit"})
"""


def start(tmp_path, what):
    (tmp_path / "engine_script.py").write_text(SCRIPT, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "engine_script.py"), str(tmp_path), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=os.name != "nt",
    )


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_ends_everything_within_two_seconds(tmp_path, tasks):
    with start(tmp_path, "hang") as running:
        child = pid_of(tmp_path / "pid")
        begin = time.monotonic()
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
        assert time.monotonic() - begin < 2
    assert running.returncode == 130
    assert output == "{'a': 'stopped', 'b': 'made'}\n"
    assert is_gone(child, seconds=0.0)


def test_two_engines_on_one_cache_make_each_step_once_and_never_measure_beside_each_other(tmp_path):
    engines = [start(tmp_path, "many") for _ in range(2)]
    for engine in engines:
        output, _ = engine.communicate(timeout=60)
        assert engine.returncode == 0, output
        assert output.splitlines()[-1] == "True"
    spans = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    assert sorted(name for name, *_ in spans) == [f"{letter}{n}" for letter in "abm" for n in range(4)]
    for one, other in itertools.combinations(spans, 2):
        if one[2] or other[2]:
            assert not overlap(one[3:], other[3:])


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


# --- side by side -----------------------------------------------------------------------------------------------------


def test_steps_run_side_by_side(room):
    barrier = threading.Barrier(3, timeout=10)
    steps = [room.step(name, action=lambda _: barrier.wait()) for name in "abc"]
    assert set(endings(room.run(*steps, jobs=3)).values()) == {"made"}


@pytest.mark.parametrize("needs", [Needs(memory_bytes=40), Needs(cores=2), Needs(alone=True)])
@pytest.mark.parametrize("locked", [True, False])
def test_no_more_run_side_by_side_than_there_is_room_for(tmp_path, needs, locked):
    """Whether or not there is a lock to keep other engines out."""
    room = Room(tmp_path / "room", locked=locked)
    names = "abcde"
    limits = {"jobs": 5, "cores": 4, "memory_bytes": 100}
    steps = [room.step(name, needs=needs if name < "d" else Needs(), seconds=0.05) for name in names]
    room.run(*steps, **limits)
    check_limits(room.spans, {step.name: step.needs for step in steps}, limits)


def test_a_step_that_needs_more_than_there_is_runs_by_itself(room):
    steps = [room.step(name, needs=Needs(1000, 99), seconds=0.05) for name in "ab"]
    assert set(endings(room.run(*steps)).values()) == {"made"}
    (one, other) = room.spans
    assert not overlap(one[1:], other[1:])


def batch_of(room, names, failing=(), broken=False, alone=True):
    """Return steps that are made together."""

    def run(works):
        room.made.append("+".join(work.step.name for work in works))
        for work in works:
            (work.directory / "file").write_text(work.step.name)
        if broken:
            raise StepError("all of it")
        return {work: StepError(work.step.name) for work in works if work.step.name in failing}

    batch = Batch("together", run)
    return [
        Step(name, "kind", "measuring", parameters={"name": name}, batch=batch, needs=Needs(alone=alone))
        for name in names
    ]


def test_a_batch_makes_what_is_missing_together_and_each_failure_is_its_own(room):
    room.run(*batch_of(room, "ab"))
    assert room.made == ["a+b"]
    outcomes = room.run(*batch_of(room, "abcd", failing="c"))
    assert room.made == ["c+d"]
    assert endings(outcomes) == {"a": "hit", "b": "hit", "c": "failed", "d": "made"}
    outcomes = room.run(*batch_of(room, "abcd", broken=True))
    assert endings(outcomes) == {"a": "hit", "b": "hit", "c": "failed", "d": "hit"}


def test_a_batch_waits_for_all_its_members_but_not_for_those_that_cannot_be_made(room):
    first, slow, bad = room.step("first"), room.step("slow", seconds=0.3), room.step("bad", action=fail)
    steps = [
        dataclasses.replace(step, inputs={"in": other})
        for step, other in zip(batch_of(room, "abc", alone=False), (first, slow, bad), strict=True)
    ]
    outcomes = room.run(*steps, jobs=3)
    assert room.made[-1] == "a+b"
    assert endings(outcomes) == {
        "first": "made", "slow": "made", "bad": "failed", "a": "made", "b": "made", "c": "stopped",
    }  # fmt: skip


def test_a_batch_that_would_wait_for_itself_is_refused(room):
    first, last = batch_of(room, "ab")
    between = room.step("between", first)
    with pytest.raises(ValueError, match="b depends on another step of its batch"):
        room.run(dataclasses.replace(last, inputs={"in": between}))


def test_what_cannot_be_kept_fails_by_itself_in_a_batch(room, monkeypatch):
    put = LocalStore.put

    def full(self, claim, record):
        if record.name == "b":
            raise MachineError("the disk is full")
        return put(self, claim, record)

    monkeypatch.setattr(LocalStore, "put", full)
    assert endings(room.run(*batch_of(room, "ab"))) == {"a": "made", "b": "failed"}


@st.composite
def graphs(draw):
    """Draw steps, limits, which steps an earlier run made, whether some are a batch, whether the machine has locks."""
    count = draw(st.integers(1, 9))
    steps = [
        (
            draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set(),
            draw(st.sampled_from([0, 40, 70, 150])),
            draw(st.integers(1, 5)),
            draw(st.sampled_from([False, False, False, True])),
        )
        for number in range(count)
    ]
    limits = {"jobs": draw(st.integers(1, 4)), "cores": 4, "memory_bytes": 100}
    return steps, limits, draw(st.sets(st.integers(0, count - 1), max_size=2)), draw(st.booleans()), draw(st.booleans())


@settings(max_examples=25, database=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_limits_hold_and_every_step_is_made_once_whatever_the_graph(drawn):
    described, limits, earlier, together, locked = drawn
    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder), locked)
        steps, needs, runs, measured = [], {}, {}, []
        batch = Batch("measurements", lambda works: dict(filter(None, (runs[work.step.name](work) for work in works))))
        for number, (inputs, memory, cores, alone) in enumerate(described):
            name = f"s{number}"
            needs[name] = Needs(memory, cores, alone)
            step = room.step(name, *(steps[i] for i in sorted(inputs)), needs=needs[name], seconds=0.002)
            measured.append(any(measured[i] for i in inputs))
            if together and alone and not measured[-1]:
                runs[name], step = step.run, dataclasses.replace(step, run=None, batch=batch)
                measured[-1] = True
            steps.append(step)
        if earlier:
            room.run(*(steps[i] for i in earlier), **limits)
        outcomes = room.run(*steps, **limits)
        assert {outcome.ending for outcome in outcomes.values()} <= {"made", "hit"}
        assert sorted(name for name, *_ in room.spans) == sorted(step.name for step in steps)
        check_limits(room.spans, needs, limits)
        room.memory.close()


def check_limits(spans, needs, limits):
    for _, moment, _ in spans:
        busy = [needs[name] for name, begin, end in spans if begin <= moment < end]
        if len(busy) > 1:
            assert not any(each.alone for each in busy)
            assert len(busy) <= limits["jobs"]
            assert sum(each.memory_bytes for each in busy) <= limits["memory_bytes"]
            assert sum(each.cores for each in busy) <= limits["cores"]
