"""Faults that builds survive, each brought about for real: `edgekiln build` runs as a process with a cache of its own.

What is measured is beside the point, so most measurements are played (`injected/sitecustomize.py`); exports are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest

from checkpoints import make_checkpoint
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.record import Record
from least import ASSIGNMENTS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its processes take no signals")
INJECTED = Path(__file__).parent / "injected"
#: Random weights are worse to quantize than those of a model.
GATES = "gates: ['mean_kld <= 9', 'top1_agreement >= 0', 'perplexity_ratio <= 9']"
INT4, INT8, FP16, Q4_K_M, ONNX = (
    f"{{target: {target}, precision: {precision}, {GATES}}}"
    for target, precision in (
        ("gguf-cpu", "int4"),
        ("gguf-cpu", "int8"),
        ("gguf-cpu", "fp16"),
        ("gguf-cpu", "q4_k_m"),
        ("onnx-cpu", "int4"),
    )
)
PLAYED = ("reference", "validate", "latency")


@dataclass
class Ended:
    """How a build ended."""

    code: int
    said: str


@dataclass
class Room:
    """Where builds of one test run: a folder with caches, output folders and a pipeline.

    Attributes:
        root: The folder.
        builds: Those of the pipeline.
        checkpoint: What is built.
        injected: Variables of `injected/sitecustomize.py`.
    """

    root: Path
    builds: tuple[str, ...] = (INT4,)
    checkpoint: str = "tiny-qwen3"
    injected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def environment(self, cache: str, played: tuple[str, ...], injected: dict[str, str]) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEKILN_", "INJECT_"))}
        return {
            **own,
            "PYTHONPATH": os.pathsep.join([str(INJECTED), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "EDGEKILN_CACHE": str(self.root / cache),
            "EDGEKILN_STATE": str(self.root / "state"),
            "INJECT_PLAYED": " ".join(played),
            **self.injected,
            **injected,
        }

    def command(self, out: str, options: tuple[str, ...]) -> list[str]:
        pipeline = self.root / "p.yaml"
        lines = "".join(f"  - {build}\n" for build in self.builds)
        pipeline.write_text(f"schema: edgekiln.pipeline/1\nname: p\nbuilds:\n{lines}")
        settings = [part for each in ASSIGNMENTS for part in ("--set", each)]
        where = ["--checkpoint", self.checkpoint, "--out", str(self.root / out)]
        return [sys.executable, "-m", "edgekiln", "build", str(pipeline), *where, *settings, *options]

    @contextlib.contextmanager
    def start(
        self,
        *options: str,
        out: str = "out",
        cache: str = "cache",
        played: tuple[str, ...] = PLAYED,
        inside: tuple[str, ...] = (),
        prepare: Callable[[], None] | None = None,
        **injected: str,
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a build; `inside` is a command that starts it, `prepare` is called in its process."""

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # who tests in the background ignores it
            if prepare is not None:
                prepare()

        with subprocess.Popen(
            [*inside, *self.command(out, options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
            env=self.environment(cache, played, injected),
            start_new_session=True,
            preexec_fn=begin,  # noqa: PLW1509 - nothing else runs in this process
        ) as running:
            try:
                yield running
            finally:
                running.kill()  # does nothing to one that has ended

    def build(self, *options: str, **more: object) -> Ended:
        with self.start(*options, **more) as running:  # type: ignore[arg-type]
            said, _ = running.communicate(timeout=120)
        return Ended(running.returncode, said)

    def events(self, out: str = "out") -> list[dict[str, object]]:
        path = self.root / out / "logs" / "run.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def last(self, event: str, out: str = "out") -> list[str]:
        """Names of the steps that an event happened to in the last run that has any events."""
        events = self.events(out)
        return [str(each["step"]) for each in events if each["run"] == events[-1]["run"] and each["event"] == event]

    def count(self, out: str = "out") -> int:
        return len(self.events(out))

    def since(self, number: int, event: str, out: str = "out") -> set[str]:
        """Names of the steps that an event happened to after the first `number` events."""
        return {str(each["step"]) for each in self.events(out)[number:] if each["event"] == event}

    def report(self, out: str = "out") -> dict[str, object]:
        found = json.loads((self.root / out / "report.json").read_text())
        assert isinstance(found, dict)
        return found

    def reasons(self, out: str = "out") -> dict[str, str | None]:
        return {build["id"]: build["reason"] for build in self.report(out)["builds"]}  # type: ignore[attr-defined]

    def artifacts(self, out: str = "out") -> dict[str, bytes]:
        """Every file of every published artifact."""
        places = (self.root / out).glob("*/[0-9a-f]*/*")
        return {path.relative_to(self.root / out).as_posix(): path.read_bytes() for path in places}

    def store(self, cache: str = "cache") -> LocalStore:
        return LocalStore(self.root / cache)

    def kinds(self, cache: str = "cache") -> list[str]:
        return sorted(record.ingredients.kind for record in self.store(cache).records())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A room in which everything was made once, undisturbed."""
    room = Room(tmp_path_factory.mktemp("made"), (INT4, INT8, ONNX))
    ended = room.build()
    assert ended.code == 0, ended.said
    return room


@pytest.fixture
def room(made: Room, tmp_path: Path) -> Iterator[Room]:
    """An empty room; what was left running in it is ended."""
    yield Room(tmp_path / "room")
    for process in psutil.process_iter(["cmdline"]):
        if any(str(tmp_path) in part for part in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def warm(made: Room, room: Room) -> Room:
    """A room with a cache that has everything."""
    subprocess.run(["cp", "-a", made.root / "cache", room.root / "cache"], check=True)
    store = room.store()
    assert all(store.open(record) for record in store.records())  # which learns how the copies look
    return room


def expected(made: Room, *builds: str) -> dict[str, bytes]:
    """What an undisturbed run published of some builds, of one with 4 bits unless others are named."""
    builds = builds or ("gguf-cpu-int4",)
    return {path: content for path, content in made.artifacts().items() if path.partition("/")[0] in builds}


def tasks_of(engine: subprocess.Popen[str], task: str) -> list[psutil.Process]:
    """Children of an engine that do a task."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(engine.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                paths = [Path(part) for part in child.cmdline() if part.endswith("request.json")]
                if paths and json.loads(paths[0].read_text())["task"] == task:
                    found.append(child)
    return found


def asked(child: psutil.Process) -> dict[str, object]:
    (path,) = (part for part in child.cmdline() if part.endswith("request.json"))
    request = json.loads(Path(path).read_text())["request"]
    assert isinstance(request, dict)
    return request


def wait_for(what: Callable[[], object], engine: subprocess.Popen[str], seconds: float = 60.0) -> object:
    """Return what a function returns as soon as it is something, while an engine runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        if engine.poll() is not None:
            pytest.fail(f"the build ended: {engine.stdout.read() if engine.stdout else ''}")
        time.sleep(0.01)
    pytest.fail("it did not happen")


# --- killed


def assert_nothing_was_done_twice(room: Room, out: str = "out") -> None:
    """From the run log and the logs of steps alone: no step began again after it was made, nor a tensor when whole."""
    done: set[object] = set()
    keys: dict[object, object] = {}
    for event in room.events(out):
        if event["event"] in {"begin", "made"}:
            assert event["step"] not in done, event
        if event["event"] == "made":
            done.add(event["step"])
        if event["event"] == "begin":
            assert keys.setdefault(event["step"], event["key"]) == event["key"]
    totals: dict[object, int] = {}
    for log in (room.root / out / "logs").glob("*.export.log"):
        lines = log.read_text().splitlines()
        tensors = Counter(line for line in lines if line.startswith("done: "))
        counts = [tuple(map(int, line.split()[:3:2])) for line in lines if line.endswith("tensors were done before")]
        assert set(tensors.values()) == {1}, log
        (total,) = {of for _, of in counts}
        totals[log.stem] = total
        # One may be noted in the journal and not yet in the log when its process ends.
        assert total - len(counts) < len(tensors) <= total
        assert [before for before, _ in counts] == sorted(before for before, _ in counts)
    for event in room.events(out):
        if event["event"] == "resumed":
            assert event["done_before"] + event["done_now"] == totals[event["step"]]  # type: ignore[operator]


def kill_at_random(
    room: Room, wanted: int, moment: Callable[[int], float], artifacts: dict[str, bytes], **more: object
) -> int:
    """Kill the engine of one build after another; each build is started again until it gets to its end.

    Args:
        room: Where.
        wanted: Kills in all.
        moment: Returns how long the next engine may run, given how many were killed.
        artifacts: What every build has to publish.
        more: Options of `Room.start`.

    Returns:
        How many exports went on where a killed one was.
    """
    kills = resumed = number = 0
    while kills < wanted:
        number += 1
        names = {"out": f"out{number}", "cache": f"cache{number}"}
        ended = False
        while not ended:
            with room.start(**names, **more) as engine:  # type: ignore[arg-type]
                try:
                    said, _ = engine.communicate(timeout=moment(kills) if kills < wanted else 300.0)
                    ended = True
                except subprocess.TimeoutExpired:
                    engine.kill()  # only the engine: its children have to notice
                    kills += 1
        assert engine.returncode == 0, said
        assert room.artifacts(names["out"]) == artifacts
        assert_nothing_was_done_twice(room, names["out"])
        resumed += sum(event["event"] == "resumed" for event in room.events(names["out"]))
        shutil.rmtree(room.root / names["cache"])
    return resumed


def test_killed_a_dozen_times_at_random_it_ends_with_the_same_bytes_and_does_nothing_twice(
    room: Room, made: Room
) -> None:
    room.builds = (INT4, ONNX)
    instants = random.Random(4)  # noqa: S311 - instants, no secrets
    artifacts = expected(made, "gguf-cpu-int4", "onnx-cpu-int4")

    def moment(kills: int) -> float:  # most come early, so that it does not take long
        return instants.uniform(0.2, 7.0 if kills % 4 == 3 else 2.5)

    # Whether one of a dozen falls into an export is chance: going on with one has tests of its own, and the slow one.
    kill_at_random(room, 12, moment, artifacts, INJECT_WRITE_SECONDS="0.02", INJECT_PLAYED_SECONDS="0.05")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_a_hundred_times_at_random_it_ends_with_the_same_bytes_and_does_nothing_twice(
    room: Room, tmp_path: Path
) -> None:
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"KILL_SEED={seed} repeats the moments")
    instants = random.Random(seed)  # noqa: S311
    room.checkpoint = str(make_checkpoint(tmp_path / "c", num_layers=4, shards=3))
    room.builds = (INT4, INT8, ONNX)
    slow = {"played": ("validate", "latency"), "INJECT_WRITE_SECONDS": "0.05"}
    begin = time.monotonic()
    undisturbed = room.build(out="undisturbed", cache="other", **slow)
    duration = time.monotonic() - begin
    assert undisturbed.code == 0, undisturbed.said
    artifacts = room.artifacts("undisturbed")
    resumed = kill_at_random(room, 100, lambda _: instants.uniform(0.1, 0.8 * duration), artifacts, **slow)
    print(f"{resumed} exports went on where a killed one was")
    assert resumed > 10


# --- the disk is full, or cannot be written

#: Gives a folder little room, runs a command, gives it more, and runs it again; what was there is copied out each time.
LITTLE_ROOM = """
size=$1 place=$2; shift 2
mount -t tmpfs -o "size=$size" tmpfs "$place" || exit 77
"$@"; echo "the first ended with $?"
cp -a "$place" "$place.first"
mount -o remount,size=500m "$place" || exit 77
"$@"; code=$?
cp -a "$place" "$place.second"
exit $code
"""
READ_ONLY = 'place=$1; shift; mount --bind "$place" "$place" && mount -o remount,bind,ro "$place" || exit 77; exec "$@"'


def inside(script: str, *arguments: object) -> tuple[str, ...]:
    """A command that runs another with mounts of its own; skips the test where that is not allowed."""
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    prefix = (unshare or "", "--mount", "--map-root-user")
    if unshare is None or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    return (*prefix, "sh", "-c", script, "sh", *map(str, arguments))


def assert_sums_hold(directory: Path) -> None:
    sums = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=directory, check=False)
    assert sums.returncode == 0


def test_a_cache_that_is_full_in_the_middle_of_a_write_costs_a_step_and_with_room_the_next_run_goes_on(
    room: Room, made: Room
) -> None:
    room.builds = (INT4, FP16)
    (room.root / "cache").mkdir()
    ended = room.build("--jobs", "1", inside=inside(LITTLE_ROOM, "6m", room.root / "cache"))
    assert "the first ended with 5" in ended.said
    assert "the disk is full; free space or let EDGEKILN_CACHE name" in ended.said
    first = room.store("cache.first")
    assert [record.name for record in first.records() if record.ingredients.kind == "export"] == [
        "gguf-cpu-int4.export"
    ]
    assert [record for record in first.records() if first.fault(record)] == []
    assert ended.code == 0, ended.said
    begun = Counter(event["step"] for event in room.events() if event["event"] == "begin")
    assert (begun["gguf-cpu-int4.export"], begun["gguf-cpu-int4.baseline.export"]) == (1, 2)
    assert expected(made).items() <= room.artifacts().items()
    for latest in room.root.glob("out/*/latest"):
        assert_sums_hold(latest)
    second = room.store("cache.second")
    assert [record for record in second.records() if second.fault(record)] == []


def test_an_output_folder_that_is_full_keeps_what_was_made_in_the_cache(room: Room, made: Room) -> None:
    (room.root / "out").mkdir()
    ended = room.build(inside=inside(LITTLE_ROOM, "2m", room.root / "out"))
    assert "the first ended with 5" in ended.said
    assert "the disk is full; free space or choose another --out" in ended.said
    assert room.artifacts("out.first") == {}
    assert ended.code == 0, ended.said
    assert room.last("begin", "out.second")[0] == "gguf-cpu-int4.publish"
    assert not any("export" in name for name in room.last("begin", "out.second"))
    assert room.artifacts("out.second") == expected(made)


def test_a_limit_on_the_size_of_files_costs_the_steps_that_reach_it(room: Room) -> None:
    import resource

    ended = room.build(prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20)))
    assert ended.code == 5, ended.said
    assert "no file of that size; let EDGEKILN_CACHE name another directory" in str(room.reasons()["gguf-cpu-int4"])
    assert "export" not in room.kinds()
    assert room.artifacts() == {}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cache_that_can_only_be_read_is_used_and_not_written(warm: Room, made: Room) -> None:
    before = content(warm.root / "cache")
    warm.builds = (INT4, Q4_K_M)
    ended = warm.build(inside=inside(READ_ONLY, warm.root / "cache"))
    assert ended.code == 0, ended.said
    assert ended.said.count("the cache is only read, and what is made now is not kept") == 1
    assert warm.since(0, "begin") == {
        "gguf-cpu-int4.publish",
        *(f"gguf-cpu-q4-k-m.{kind}" for kind in ("export", "publish", "validate", "latency")),
    }
    assert expected(made).items() <= warm.artifacts().items()
    assert content(warm.root / "cache") == before


def test_without_a_cache_that_can_be_written_everything_is_made(room: Room, made: Room) -> None:
    (room.root / "cache").mkdir()
    ended = room.build(inside=inside(READ_ONLY, room.root / "cache"))
    assert ended.code == 0, ended.said
    assert ended.said.count("nothing is cached: cannot write") == 1
    assert room.artifacts() == expected(made)
    assert list((room.root / "cache").iterdir()) == []


# --- others at the cache


def test_two_engines_on_one_cache_make_each_step_once_and_nothing_runs_beside_a_measurement(
    room: Room, made: Room
) -> None:
    room.builds = (INT4, INT8)
    spans = room.root / "spans"
    slow = {"INJECT_WRITE_SECONDS": "0.01", "INJECT_PLAYED_SECONDS": "0.1", "INJECT_SPANS": str(spans)}
    with room.start(out="a", **slow) as one, room.start(out="b", **slow) as other:  # type: ignore[arg-type]
        engines = (one, other)
        said = [engine.communicate(timeout=120)[0] for engine in engines]
    assert [engine.returncode for engine in engines] == [0, 0], said
    times = Counter(
        event["step"]
        for out in ("a", "b")
        for event in room.events(out)
        if event["event"] == "made" and event["kind"] != "publish"
    )
    assert len(times) == 9
    assert set(times.values()) == {1}
    ran = [json.loads(line) for line in spans.read_text().splitlines()]
    # Three rounds of two artifacts, their baseline and the reference; a file that stays cached has no cold load.
    assert Counter(what for what, *_ in ran)["latency"] == 3 * 4
    measured = [span for span in ran if span[0] in ("latency", "cold load")]
    for span in measured:
        _, begin, end = span
        assert [each for each in ran if each[1] < end and begin < each[2]] == [span]
    assert room.artifacts("a") == room.artifacts("b")
    assert expected(made).items() <= room.artifacts("a").items()


def damage(store: LocalStore, record: Record, how: str) -> None:
    """Damage the result of a step, or its record, as a failing disk or a careless program does."""
    entry = store.root / "entries" / record.key[:2] / f"{record.key}.json"
    largest = max(record.files, key=lambda file: file.size)
    path = store.root / "results" / record.key[:2] / record.key / largest.path
    match how:
        case "flipped":
            status = path.stat()
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.seek(largest.size // 2)
                byte = file.read(1)[0]
                file.seek(largest.size // 2)
                file.write(bytes([byte ^ 1]))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "truncated":
            path.chmod(0o644)
            os.truncate(path, largest.size // 2)
        case "missing":
            path.unlink()
        case "record truncated":
            os.truncate(entry, entry.stat().st_size // 2)
        case "record of another":
            entry.write_text(entry.read_text().replace(record.key, "0" * 64))


DAMAGE = {
    "gguf-cpu-int4.export": "flipped",
    "gguf-cpu-int4.baseline.export": "truncated",
    "gguf-cpu-int4.validate": "record truncated",
    "gguf-cpu-int8.export": "missing",
    "gguf-cpu-int8.validate": "record of another",
}


def test_what_is_damaged_in_the_cache_is_found_said_and_made_again(warm: Room, made: Room) -> None:
    warm.builds = (INT4, INT8)
    records = {record.name: record for record in warm.store().records()}
    for name, how in DAMAGE.items():
        damage(warm.store(), records[name], how)
    ended = warm.build("--from", "latency")  # which needs everything
    assert ended.code == 0, ended.said
    for said in (
        "model-Q4_0.gguf of gguf-cpu-int4.export has other bytes than were put there",
        "model-F16.gguf of gguf-cpu-int4.baseline.export has ",
        "model-Q8_0.gguf of gguf-cpu-int8.export cannot be read",
        f"{records['gguf-cpu-int4.validate'].key}.json is damaged",
        f"{records['gguf-cpu-int8.validate'].key}.json is damaged",
    ):
        assert ended.said.count(said) == 1, (said, ended.said)
    again = {name for name in warm.since(0, "made") if not name.endswith((".publish", ".latency"))}
    assert again == set(DAMAGE)
    assert warm.artifacts() == expected(made, "gguf-cpu-int4", "gguf-cpu-int8")
    store = warm.store()
    assert {record.name: record.key for record in store.records()} == {n: r.key for n, r in records.items()}
    assert [record for record in store.records() if store.fault(record)] == []


def test_what_another_version_left_is_neither_taken_nor_destroyed(room: Room, made: Room) -> None:
    assert room.build(INJECT_CODE="0" * 64).code == 0  # entries whose code has another digest
    cache = room.root / "cache"
    shutil.copytree(cache / "v1", cache / "v2")  # another layout
    foreign = {name: held for name, held in content(cache).items() if "lock" not in name and "sqlite" not in name}
    for record in made.store().records():  # entries of another schema under the very keys
        entry, result = (f"v1/{folder}/{record.key[:2]}/{record.key}" for folder in ("entries", "results"))
        (cache / f"{entry}.json").parent.mkdir(exist_ok=True)
        theirs = (made.root / "cache" / f"{entry}.json").read_text()
        (cache / f"{entry}.json").write_text(theirs.replace('"edgekiln.step/1"', '"edgekiln.step/2"'))
        shutil.copytree(made.root / "cache" / result, cache / result)
    ended = room.build(out="mine")
    assert ended.code == 0, ended.said
    assert len(room.since(0, "made", "mine")) == 7
    assert room.artifacts("mine") == expected(made)
    assert foreign.items() <= content(cache).items()
    assert sum('"edgekiln.step/2"' in path.read_text() for path in (cache / "v1" / "entries").glob("*/*")) == 7


def test_a_clock_that_jumps_back_costs_nothing(warm: Room, made: Room) -> None:
    month = 30 * 86400.0
    for path in (warm.root / "cache").rglob("*"):  # as if they had been made by the clock of before
        os.utime(path, (time.time() + month, time.time() + month))
    warm.builds = (INT4, Q4_K_M)
    assert warm.build(INJECT_CLOCK_SECONDS=str(-month)).code == 0
    assert warm.since(0, "made") == {
        "gguf-cpu-int4.publish",
        *(f"gguf-cpu-q4-k-m.{kind}" for kind in ("export", "publish", "validate", "latency")),
    }
    number = warm.count()
    assert warm.build().code == 0
    assert warm.since(number, "begin") == set()
    assert expected(made).items() <= warm.artifacts().items()


# --- what is read, and what reads it


def has_done_some(room: Room, name: str, out: str = "out") -> bool:
    """Whether an export has done a few tensors, by its log."""
    path = room.root / out / "logs" / f"{name}.export.log"
    return path.exists() and path.read_text().count("done: ") > 2


def test_a_checkpoint_that_changes_while_it_is_read_is_found_and_nothing_of_it_kept(room: Room, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", shards=2)
    room.checkpoint = str(checkpoint)
    shard = checkpoint / "model-00002-of-00002.safetensors"
    for how in ("in place", "by a rename"):
        with room.start(out=how, INJECT_WRITE_SECONDS="0.05") as engine:
            wait_for(partial(has_done_some, room, "gguf-cpu-int4", how), engine)
            if how == "in place":
                with shard.open("r+b") as file:
                    file.seek(-1000, os.SEEK_END)
                    file.write(bytes(1000))
            else:
                (tmp_path / "new").write_bytes(shard.read_bytes()[:-2000] + bytes(2000))
                (tmp_path / "new").replace(shard)
            said, _ = engine.communicate(timeout=60)
        assert engine.returncode == 4, said
        assert f"{shard} was changed while the checkpoint was read" in str(room.reasons(how)["gguf-cpu-int4"])
        assert set(room.kinds()) <= {"reference"}  # which was made before
        assert list((room.root / "cache" / "v1" / "partial").iterdir()) == []
        assert room.artifacts(how) == {}
    assert room.build().code == 0
    assert room.build("--no-cache", out="undisturbed").code == 0
    assert room.artifacts() == room.artifacts("undisturbed") != {}


def test_a_step_that_hangs_is_ended_when_its_time_is_up_and_goes_on_in_the_next_run(room: Room, made: Room) -> None:
    room.builds = (INT4, INT8)
    with room.start("--set", "step_timeout_seconds=6", INJECT_WRITE_SECONDS="0.01") as engine:
        wait_for(partial(has_done_some, room, "gguf-cpu-int4"), engine)
        (child,) = (each for each in tasks_of(engine, "export") if asked(each)["requested"] == "int4")
        child.suspend()
        said, _ = engine.communicate(timeout=60)
    assert engine.returncode == 4, said
    assert not child.is_running()
    reasons = room.reasons()
    assert reasons["gguf-cpu-int8"] is None
    assert "6 s" in str(reasons["gguf-cpu-int4"])
    assert "gguf-cpu-int4.export.log" in str(reasons["gguf-cpu-int4"])
    assert room.build().code == 0
    assert room.last("resumed") == ["gguf-cpu-int4.export"]
    assert not any("int8" in name for name in room.last("begin"))
    assert expected(made).items() <= room.artifacts().items()


def test_a_child_that_dies_costs_its_build_and_the_next_run_goes_on(room: Room, made: Room) -> None:
    room.builds = (INT4, INT8, FP16)

    def validating() -> list[psutil.Process]:
        return [each for each in tasks_of(engine, "structure") if "gguf-cpu-int8" in str(asked(each))]

    with room.start(INJECT_NOT_PLAYED="gguf-cpu-int8", INJECT_WRITE_SECONDS="0.01") as engine:
        wait_for(partial(has_done_some, room, "gguf-cpu-int4"), engine)
        (child,) = (each for each in tasks_of(engine, "export") if asked(each)["requested"] == "int4")
        child.kill()
        wait_for(validating, engine)[0].kill()  # type: ignore[index]
        said, _ = engine.communicate(timeout=60)
    assert engine.returncode == 4, said
    reasons = room.reasons()
    assert reasons["gguf-cpu-fp16"] is None
    for name in ("int4", "int8"):
        assert "was killed by SIGKILL without a result" in str(reasons[f"gguf-cpu-{name}"])
    assert room.build().code == 0
    assert room.last("resumed") == ["gguf-cpu-int4.export"]
    assert set(room.last("begin")) == {
        *(f"gguf-cpu-int4.{kind}" for kind in ("export", "publish", "validate", "latency")),
        "gguf-cpu-int8.validate",
        "gguf-cpu-int8.latency",
    }
    assert expected(made).items() <= room.artifacts().items()


# --- interrupted

#: What is under way when Ctrl-C comes: what is played then, and a task of it.
PHASES = {
    "reference": (("validate", "latency"), "reference"),
    "export": (PLAYED, "export"),
    "latency": (("reference", "validate"), "load"),
}


def interrupt(room: Room, phase: str) -> None:
    """Interrupt a build in a phase; it ends in time with all its children and says so."""
    played, task = PHASES[phase]
    with room.start(played=played, INJECT_WRITE_SECONDS="0" if phase == "latency" else "0.05") as engine:
        wait_for(lambda: tasks_of(engine, task), engine)
        if phase == "export":
            wait_for(partial(has_done_some, room, "gguf-cpu-int4"), engine)
        children = psutil.Process(engine.pid).children(recursive=True)
        begin = time.monotonic()
        engine.send_signal(signal.SIGINT)
        said, _ = engine.communicate(timeout=60)
        seconds = time.monotonic() - begin
    print(f"{phase}: ended {seconds:.2f} s after Ctrl-C")
    assert (engine.returncode, seconds < 2) == (130, True), said
    assert children
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert said.splitlines()[-1] == "edgekiln: interrupted"
    (build,) = room.report()["builds"]  # type: ignore[misc]
    assert build["status"] == "error"
    assert (build["artifact"] is not None) == ("gguf-cpu-int4.publish" in room.since(0, "made"))


def test_ctrl_c_ends_a_build_within_two_seconds_in_each_phase_and_the_next_one_goes_on(room: Room, made: Room) -> None:
    for phase in PHASES:
        interrupt(room, phase)
    ended = room.build()
    assert ended.code == 0, ended.said
    assert_nothing_was_done_twice(room)
    assert "gguf-cpu-int4.export" in room.since(0, "resumed")
    assert room.artifacts() == expected(made)
