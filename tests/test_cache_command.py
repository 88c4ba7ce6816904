"""`edgekiln cache`: what is there, whether it is sound, what may go, and why a step is no hit."""

import json
import os
import shutil
import sqlite3
import time

import pytest

from bad_inputs import project, run_inside
from checkpoints import make_checkpoint
from edgekiln.artifact import list_files
from edgekiln.checkpoint import open_checkpoint
from edgekiln.console import Console
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.record import Record
from edgekiln.engine.survey import Survey
from edgekiln.exporters import EXPORTERS
from edgekiln.pipelines.cache import _bytes
from edgekiln.pipelines.cells import prepare
from edgekiln.pipelines.engine_room import RunOptions, engine_room
from edgekiln.pipelines.graph import Graph
from edgekiln.pipelines.identify import identify
from edgekiln.pipelines.plan import make_plan
from edgekiln.pipelines.run import goals_of, make_steps
from edgekiln.pipelines.workspace import publish, published
from stores import FILES, content, fill, key, make
from test_local_store import USER, entry_of, flip, waiting


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(cache):
    return LocalStore(cache)


def run(*arguments, code=0):
    shown = run_inside(("cache", *arguments))
    assert shown.code == code, shown.errors
    return shown.output if code in {0, 4} else shown.errors


OTHER = "has other bytes than were put there"


def used(store, name, hours):
    moment = time.time() - 3600 * hours
    os.utime(entry_of(store, name), (moment, moment))


# --- ls -------------------------------------------------------------------------------------------------------------


def test_the_list_has_every_result_and_counts_shared_files_once(store):
    one, other = make(store), make(store, "b", {"copy.bin": FILES["model.bin"]})
    used(store, "a", 50)
    shown = json.loads(run("ls", "--json"))
    assert [(each["name"], each["key"]) for each in shown["results"]] == [
        ("b.export", other.key),
        ("a.export", one.key),
    ]
    entries = sum(entry_of(store, name).stat().st_size for name in "ab")
    assert shown["bytes"] == one.size + entries
    assert shown["results"][1]["bytes"] == one.size + entry_of(store).stat().st_size
    assert shown["directory"] == str(store.root.parent)
    text = run("ls")
    assert text.index("b.export") < text.index("a.export")
    assert "2 d" in text
    assert "2 results" in text
    assert key("a")[:12] in text


def test_without_a_cache_the_list_is_empty_and_nothing_is_made(cache):
    assert "0 results, 0 B" in run("ls")
    assert json.loads(run("ls", "--json"))["results"] == []
    assert "0 results checked, none damaged" in run("verify")
    assert "no cache in" in run("gc", "--max-size", "1GB")
    assert not cache.exists()


def test_looking_at_the_list_is_no_use(store):
    make(store)
    used(store, "a", 50)
    before = entry_of(store).stat().st_mtime
    run("ls")
    run("verify")
    assert entry_of(store).stat().st_mtime == before


def test_a_damaged_entry_is_named_by_the_list_and_left_there(store):
    make(store)
    entry_of(store).write_text("{")
    assert f"the cache's {key()}.json is damaged" in run("ls")
    assert entry_of(store).read_text() == "{"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (999_600, "1.0 MB"), (123_456_789, "123 MB")],
)
def test_sizes_are_rounded_for_people(size, text):
    assert _bytes(size) == text


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verifying_a_sound_cache_finds_nothing(store):
    make(store)
    store.drop_files(make(store, "b").key)
    assert "1 results checked, none damaged" in run("verify")
    assert json.loads(run("verify", "--json")) == {"schema": "edgekiln.cache/1", "checked": 1, "damaged": []}


@pytest.mark.parametrize("as_json", [False, True])
def test_verifying_finds_names_and_removes_what_is_damaged(store, as_json):
    record, other, third = make(store), make(store, "b", {"x": b"x"}), make(store, "c", {"y": b"yy"})
    flip(store.open(record) / "model.bin")
    entry_of(store, "c").write_text("{")
    shown = run("verify", *(["--json"] if as_json else []), code=4)
    sentences = [
        f"the cache's {third.key}.json is damaged; the step is made again",
        f"a.export ({record.key[:12]}): model.bin {OTHER}; the result was removed; it is made again",
    ]
    if as_json:
        assert json.loads(shown)["damaged"] == sentences
    else:
        assert shown.splitlines() == [*(f"{each}." for each in sentences), "2 results checked, 2 damaged"]
    fresh = LocalStore(store.root.parent)
    assert [each.key for each in fresh.records()] == [other.key]
    assert "none damaged" in run("verify")
    assert content(fresh.open(make(fresh))) == FILES


def test_damage_that_no_time_tells_is_found(store, monkeypatch):
    record = make(store)
    flip(store.open(record) / "model.bin")
    monkeypatch.setattr("edgekiln.engine.kept_files.Stamp.vouches_for", lambda *_: True)
    assert store.open(record) is not None
    run("verify", code=4)


# --- gc -------------------------------------------------------------------------------------------------------------


def remaining(store):
    return {record.name.removesuffix(".export") for record in LocalStore(store.root.parent).records()}


@pytest.fixture
def four(store):
    """Return a store with four results of 100 kB, used 4 to 1 days ago; two of them share a file."""
    shared = os.urandom(100_000)
    for age, name in ((4, "a"), (3, "b"), (2, "c"), (1, "d")):
        make(store, name, {"file": shared if name in "ad" else os.urandom(100_000)})
        used(store, name, 24 * age)
    return store


def test_what_was_not_used_for_longest_goes_first(four):
    assert run("gc", "--max-size", "310kB").count("removed") == 1
    assert remaining(four) == set("abcd")
    shown = run("gc", "--max-size", "210 kB")
    assert "removed: b.export" in shown
    assert "2 of 4 results removed (101 kB); 201 kB remain of at most 210 kB" in shown
    assert remaining(four) == set("cd"), "a, whose file d needs, frees next to nothing and still goes before b"
    assert four.disk_bytes() <= 210_000
    run("gc", "--max-size", "0")
    assert remaining(four) == set()
    assert four.disk_bytes() == 0


def test_of_what_was_used_in_the_same_hour_the_largest_goes_first(store):
    make(store, "small", {"x": b"x"})
    make(store, "large", {"y": os.urandom(100_000)})
    moment = time.time() // 3600 * 3600 - 1800
    os.utime(entry_of(store, "small"), (moment, moment))
    os.utime(entry_of(store, "large"), (moment + 60, moment + 60))
    run("gc", "--max-size", "50kB")
    assert remaining(store) == {"small"}


def test_a_dry_run_says_the_same_and_removes_nothing(four):
    fill(four.root / "partial" / "left")
    dry = run("gc", "--max-size", "210kB", "--dry-run")
    assert remaining(four) == set("abcd")
    assert (four.root / "partial" / "left").exists()
    real = run("gc", "--max-size", "210kB")
    assert dry.replace("would be ", "").replace("would remain", "remain") == real
    assert "what 1 killed steps left" in real
    assert not (four.root / "partial" / "left").exists()


def test_what_somebody_works_on_stays(store):
    with store.claim(key(), resumable=True) as claim:
        fill(claim.directory)
        run("gc", "--max-size", "0")
        assert content(claim.directory) == FILES


def test_nothing_is_removed_while_an_engine_runs(four):
    process = waiting(USER, four.root.parent)
    try:
        assert "another edgekiln uses" in run("gc", "--max-size", "0", code=5)
        assert "4 of 4 results would be removed" in run("gc", "--max-size", "0", "--dry-run")
        assert remaining(four) == set("abcd")
    finally:
        process.kill()
        process.wait()
    run("gc", "--max-size", "0")
    assert remaining(four) == set()


def test_hashes_of_files_that_are_gone_go_too(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    memory = HashMemory(store.root / "memory.sqlite")
    memory.remember(path, "0" * 64)
    memory.close()
    path.unlink()
    run("gc", "--max-size", "1GB")
    connection = sqlite3.connect(store.root / "memory.sqlite")
    assert connection.execute("SELECT * FROM files").fetchall() == []
    connection.close()


@pytest.mark.parametrize("arguments", [(), ("--max-size", "much"), ("--max-size", "-1")])
def test_a_size_is_needed(store, arguments):
    run("gc", *arguments, code=2)


# --- explain --------------------------------------------------------------------------------------------------------


def pretend(plan, scratch):
    """Let the cache have a result of every step of a plan, none of which was really made."""
    settings = plan.settings.values
    checkpoint = open_checkpoint(settings.checkpoint)
    cells = prepare(plan, checkpoint)
    scratch.mkdir()
    with (
        Console() as console,
        engine_room(settings, RunOptions(), scratch, lambda step: scratch / step.name, console) as room,
    ):
        steps = make_steps(
            cells, Graph(identify(checkpoint, room.memory), settings, room.memory), settings.out, scratch
        )
        waiting = goals_of(cells, steps)
        while waiting:
            step, survey = waiting.pop(), Survey(room.store)
            if missing := [other for other in step.inputs.values() if survey.record(other) is None]:
                waiting += [step, *missing]
            elif step.outside is not None:
                record = survey.record(step.inputs["artifact"])
                build = step.name.removesuffix(".publish")
                if published(record, settings.out, build, room.memory) is None:
                    publish(room.store.open(record), record, settings.out, build, room.memory)
            else:
                made = survey.ingredients(step)
                with room.store.claim(made.key, resumable=False) as claim:
                    fill(claim.directory, {"result": step.name.encode()})
                    files = list_files(claim.directory)
                    record = Record(key=made.key, name=step.name, ingredients=made, files=files, seconds=1.0)
                    room.store.put(claim, record)


@pytest.fixture
def explain(cache, tmp_path, monkeypatch):
    """Return a function that explains a build which was made, as a mapping of states and reasons by kind."""
    make_checkpoint(tmp_path / "c", hidden_size=64, intermediate_size=64, num_layers=1, head_dim=16)
    project()(tmp_path)
    monkeypatch.chdir(tmp_path)
    pretend(make_plan("p.yaml", formats=EXPORTERS), tmp_path / "scratch")

    def explain(*more):
        shown = json.loads(run("explain", "device-int4", "p.yaml", *more, "--json"))
        assert shown["build"] == "device-int4"
        return {each["kind"]: (each["state"], each["reasons"]) for each in shown["steps"]}

    return explain


def test_what_was_made_is_a_hit(explain):
    assert all(found == ("hit", []) for found in explain().values())


def test_what_does_not_lie_in_the_output_folder_is_to_be_brought_there(explain):
    found = explain("--out", "elsewhere")
    assert found.pop("publish") == ("miss", ["it does not lie in the output folder, or not as it was exported"])
    assert all(state == "hit" for state, _ in found.values())


def test_a_changed_setting_is_named(explain):
    found = explain("--set", "windows=2")
    assert found["reference"] == ("miss", ["parameter windows: 1 then, 2 now"])
    assert found["export"] == ("hit", [])
    assert found["validate"][0] == "unknown"
    assert found["validate"][1] == ["it depends on what is to be made first: reference"]


def test_a_changed_checkpoint_is_named(explain, tmp_path):
    path = tmp_path / "c" / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"temperature": 0.5,', 1))
    state, reasons = explain()["export"]
    assert state == "miss"
    assert len(reasons) == 1
    assert reasons[0].startswith("input checkpoint: ")


def test_changed_code_and_tools_are_named(explain, monkeypatch):
    monkeypatch.setattr("edgekiln.pipelines.graph.code_version", lambda *_, **__: "e" * 64)
    tools = {"python": "3.99", "numpy": "9"}
    monkeypatch.setattr("edgekiln.pipelines.graph.tool_versions", lambda _: tools)
    reasons = explain()["reference"][1]
    assert any(each.startswith("code of the step: ") for each in reasons)
    assert any(each.startswith("tool numpy: ") and each.endswith(" then, 9 now") for each in reasons)


def test_a_first_time_is_said_to_be_one(explain, tmp_path):
    shutil.rmtree(tmp_path / "cache")
    found = explain()
    assert found["reference"] == ("miss", ["never made"])
    assert found["export"] == ("miss", ["never made"])


def test_files_that_were_not_kept_are_the_reason(explain, tmp_path):
    store = LocalStore(tmp_path / "cache")
    for record in list(store.records()):
        if record.kind in {"export", "reference"}:
            store.drop_files(record.key)
    for record in list(store.records()):
        if record.kind == "validate":
            store.remove(record.key)
    assert explain()["reference"] == ("miss", ["it was made, but its files are needed and were not kept"])


def test_the_text_says_the_same(explain, tmp_path):
    explain("--set", "windows=2")
    shown = run_inside(("cache", "explain", "device-int4", "p.yaml", "--set", "windows=2"))
    assert shown.code == 0
    lines = shown.output.splitlines()
    assert lines[lines.index("reference: to be made") + 1] == "    parameter windows: 1 then, 2 now"
    assert "device-int4.export: made before" in lines


def test_an_unknown_build_is_wrong_usage(explain):
    assert "'device-int5' is no build of p.yaml; did you mean 'device-int4'?" in run(
        "explain", "device-int5", "p.yaml", code=2
    )


def test_what_cannot_be_made_says_why(explain, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(path.read_text().replace("int4", "nf4"))
    assert "device-nf4 cannot be made: " in run("explain", "device-nf4", "p.yaml", code=3)
