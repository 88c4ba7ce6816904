"""A store that machines share: what goes there, what comes back, and what a hostile or failing one can do."""

import json
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

from edgekiln.engine import fsspec_store
from edgekiln.engine.fsspec_store import FsspecStore
from edgekiln.engine.local_store import LocalStore
from edgekiln.errors import MachineError
from stores import FILES, content, key, make


@pytest.fixture
def complaints():
    return []


@pytest.fixture(params=["file", "memory"])
def far(request, tmp_path):
    """Return the address of a far side, and its file system with the path in it."""
    url = (tmp_path / "far").as_uri() if request.param == "file" else f"memory://{tmp_path.name}-{secrets.token_hex(4)}"
    fs, root = fsspec.core.url_to_fs(url)
    return url, fs, f"{root}/shared-v1"


@pytest.fixture
def machine(tmp_path, far, complaints):
    """Return a function that opens the store on a machine of that name."""
    return lambda name: FsspecStore(far[0], LocalStore(tmp_path / name, complaints.append), complaints.append)


def objects(far):
    return {Path(path).name for path in far[1].ls(f"{far[2]}/objects", detail=False)}


def entry_path(far, name="a"):
    return f"{far[2]}/entries/{key(name)}.json"


def edit(far, change):
    value = json.loads(far[1].cat_file(entry_path(far)))
    change(value)
    far[1].pipe_file(entry_path(far), json.dumps(value).encode())


def object_path(far, record, path="model.bin"):
    return f"{far[2]}/objects/{next(file.sha256 for file in record.files if file.path == path)}"


def test_what_one_machine_made_another_fetches_once(machine, far, complaints):
    record = make(machine("one"))
    two = machine("two")
    assert two.find(record.key) == record
    assert not list((two.near.root / "results").iterdir()), "a record alone fetches nothing"
    assert content(two.open(record)) == FILES
    far[1].rm(far[2], recursive=True)
    assert content(machine("two").open(record)) == FILES
    assert not complaints


def test_equal_files_are_sent_and_fetched_once(machine, far, monkeypatch):
    one = machine("one")
    first = make(one)
    monkeypatch.setattr(type(one._fs), "put_file", lambda *_, **__: pytest.fail("it was sent again"))
    second = make(one, "b", {"other name": FILES["model.bin"]})
    assert len(objects(far)) == 2
    two = machine("two")
    two.open(first)
    assert two.find(second.key) == second
    monkeypatch.setattr(type(two._fs), "open", lambda *_, **__: pytest.fail("it was fetched again"))
    assert content(two.open(two.find(second.key))) == {"other name": FILES["model.bin"]}


def test_the_entry_comes_last_and_nothing_else_is_left(machine, far, monkeypatch):
    store = machine("one")
    seen = []
    send = FsspecStore._send_entry
    monkeypatch.setattr(FsspecStore, "_send_entry", lambda *each: (seen.append(objects(far)), send(*each)))
    record = make(store)
    assert seen == [{file.sha256 for file in record.files}]
    assert sorted(far[1].find(far[2])) == sorted(
        [entry_path(far), *(f"{far[2]}/objects/{file.sha256}" for file in record.files)]
    )


def test_files_that_another_machine_forgot_are_fetched_again_or_made(machine, far, complaints):
    one, two = machine("one"), machine("two")
    record = make(one)
    two.open(record)
    two.near.remove(record.key)
    assert content(two.open(record)) == FILES
    one.drop_files(record.key)
    third = machine("three")
    assert third.find(record.key) == record
    assert third.open(record) is None
    assert not complaints


def test_a_result_of_other_content_than_the_one_that_is_known_is_not_taken_for_it(machine, far):
    one, two = machine("one"), machine("two")
    mine = make(one)
    make(two, files={"model.bin": b"other"})
    one.near.drop_files(mine.key)
    assert machine("one").open(mine) is None


def longer(far, record):
    far[1].pipe_file(object_path(far, record), FILES["model.bin"] + b"x")


def shorter(far, record):
    far[1].pipe_file(object_path(far, record), FILES["model.bin"][:-1])


def other(far, record):
    far[1].pipe_file(object_path(far, record), FILES["model.bin"][:-1] + b"x")


def missing(far, record):
    far[1].rm_file(object_path(far, record))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (longer, "has more than 7000 bytes"),
        (shorter, "has 6999 bytes instead of 7000"),
        (other, "has other bytes than were put there"),
        (missing, "is missing"),
    ],
)
def test_a_damaged_far_file_is_found_reported_removed_and_made_again(machine, far, complaints, harm, sentence):
    record = make(machine("one"))
    harm(far, record)
    two = machine("two")
    assert two.open(two.find(record.key)) is None
    assert complaints == [f"model.bin of a.export in the cache {far[0]} {sentence}; the step is made again"]
    assert not far[1].exists(entry_path(far))
    assert not far[1].exists(object_path(far, record))
    assert two.find(record.key) is None
    make(two)
    assert content(machine("three").open(record)) == FILES
    assert len(complaints) == 1
    assert not list((two.near.root / "partial").iterdir())


ENTRY_FAULTS = {
    "garbage": lambda far: far[1].pipe_file(entry_path(far), os.urandom(500)),
    "truncated": lambda far: far[1].pipe_file(entry_path(far), far[1].cat_file(entry_path(far))[:200]),
    "too large": lambda far: far[1].pipe_file(entry_path(far), bytes(17 << 20)),
    "of another key": lambda far: edit(far, lambda value: value["record"].update(key="0" * 64)),
    "other ingredients": lambda far: edit(far, lambda value: value["record"]["ingredients"].update(kind="x")),
    "a path outside": lambda far: edit(far, lambda value: value["record"]["files"][0].update(path="../../x")),
    "an absolute path": lambda far: edit(far, lambda value: value["record"]["files"][0].update(path="/x")),
}


@pytest.mark.parametrize("harm", ENTRY_FAULTS.values(), ids=ENTRY_FAULTS)
def test_a_damaged_far_entry_is_found_reported_removed_and_made_again(machine, far, complaints, harm):
    record = make(machine("one"))
    harm(far)
    two = machine("two")
    assert two.find(record.key) is None
    assert complaints == [f"the entry {record.key}.json of the cache {far[0]} is damaged; the step is made again"]
    assert not far[1].exists(entry_path(far))
    make(two)
    assert machine("three").find(record.key) is not None


def test_a_far_entry_of_another_version_is_left_alone(machine, far, complaints):
    record = make(machine("one"))
    edit(far, lambda value: value["record"].update(schema_id="edgekiln.step/2"))
    two = machine("two")
    assert two.find(record.key) is None
    assert far[1].exists(entry_path(far))
    assert not complaints


def test_more_than_the_disk_holds_is_not_fetched(machine, far, complaints):
    record = make(machine("one"))
    edit(far, lambda value: value["record"]["files"][0].update(size=1 << 60))
    two = machine("two")
    assert two.open(two.find(record.key)) is None
    assert "bytes, but only" in complaints[0]


def test_a_far_file_that_never_ends_is_read_no_further_than_it_may(machine, far, complaints, monkeypatch):
    record = make(machine("one"))
    got = []

    class Endless:
        def read(self, count):
            got.append(count)
            return bytes(count)

        def close(self):
            pass

    two = machine("two")
    assert two.find(record.key) == record
    monkeypatch.setattr(type(two._fs), "open", lambda *_, **__: Endless())
    assert two.open(record) is None
    assert sum(got) <= 7001 + 3
    assert len(complaints) == 1


def break_down(store, monkeypatch, *names):
    def fail(*_, **__):
        raise ConnectionResetError("the line is dead")

    for name in names:
        monkeypatch.setattr(type(store._fs), name, fail)


def test_a_far_side_that_cannot_be_written_any_more_costs_the_sharing_not_the_run(
    machine, far, complaints, monkeypatch
):
    store = machine("one")
    break_down(store, monkeypatch, "put_file", "pipe_file")
    records = [make(store, name) for name in "abc"]
    assert all(content(store.open(record)) == FILES for record in records)
    store.drop_files(records[0].key)
    store.remove(records[1].key)
    assert len(complaints) == 1
    assert complaints[0].startswith(f"the cache {far[0]} cannot be written (ConnectionResetError: the line is dead)")


def test_a_far_side_that_cannot_be_read_any_more_costs_what_is_there_not_the_run(machine, far, complaints, monkeypatch):
    record = make(machine("one"))
    two = machine("two")
    assert two.find(record.key) is not None
    break_down(two, monkeypatch, "cat_file", "open", "ls")
    assert two.open(record) is None
    assert two.find(key("b")) is None
    assert not list(two.records())
    assert len(complaints) == 1
    assert "cannot be read" in complaints[0]
    monkeypatch.undo()
    assert content(machine("two").open(record)) == FILES


def test_a_far_side_that_cannot_be_reached_is_the_machines_fault(tmp_path, far, monkeypatch):
    fs = type(far[1])
    monkeypatch.setattr(fs, "ls", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(MachineError, match="cannot be reached .TimeoutError: no answer.; check the address"):
        FsspecStore(far[0], LocalStore(tmp_path / "near"))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket/x", "needs a package that is missing: Install s3fs"),
        ("nope://x", "cannot be used .Protocol not known: nope"),
        ("simplecache::s3://bucket/x", "needs a package that is missing"),
    ],
)
def test_an_address_that_cannot_be_used_is_the_machines_fault(tmp_path, url, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MachineError, match=sentence):
        FsspecStore(url, LocalStore(tmp_path / "near"))


@pytest.mark.parametrize("url", ["s3://b/x", "https://h/x", "simplecache::s3://b/x", "zip://a::https://h/x.zip"])
def test_offline_means_no_connection_at_all(tmp_path, url, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("it connected"))
    with pytest.raises(MachineError, match="needs a connection, but this run is offline"):
        FsspecStore(url, LocalStore(tmp_path / "near"), offline=True)


def test_what_lies_on_this_machine_is_no_connection(tmp_path, far):
    assert FsspecStore(far[0], LocalStore(tmp_path / "near"), offline=True).find(key()) is None


def test_one_fetches_and_others_wait_for_it(machine, far, monkeypatch):
    record = make(machine("one"))
    stores = [machine("two"), machine("two")]
    fetched = []
    bring = FsspecStore._bring
    monkeypatch.setattr(FsspecStore, "_bring", lambda *each: (fetched.append(each[1].name), bring(*each))[1])
    found = []
    threads = [threading.Thread(target=lambda store=store: found.append(store.open(record))) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content(path) for path in found] == [FILES, FILES]
    assert sorted(fetched) == ["config.json", "model.bin"]


def test_it_can_be_fetched_while_the_step_is_claimed(machine):
    two = machine("two")
    with two.claim(key(), resumable=True) as claim:
        record = make(machine("one"))
        assert content(two.open(two.find(record.key))) == FILES
        assert not content(claim.directory)


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekiln.engine import fsspec_store
from edgekiln.engine.local_store import LocalStore
store = fsspec_store.FsspecStore(sys.argv[1], LocalStore(Path(sys.argv[2])))
bring = fsspec_store.FsspecStore._bring
def deadly(self, path, *more):
    if path.name == "model.bin" and sys.argv[3] == "before" or path.name == "config.json" and sys.argv[3] == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return bring(self, path, *more)
fsspec_store.FsspecStore._bring = deadly
store.open(store.find(sys.argv[4]))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_fetching_leaves_the_step_to_be_fetched(tmp_path, complaints, moment):
    url = (tmp_path / "far").as_uri()
    record = make(FsspecStore(url, LocalStore(tmp_path / "one")))
    command = [sys.executable, "-c", KILLED, url, str(tmp_path / "two"), moment, record.key]
    assert subprocess.run(command, check=False).returncode == -9
    near = LocalStore(tmp_path / "two", complaints.append)
    assert near.find(record.key) is None
    assert content(FsspecStore(url, near, complaints.append).open(record)) == FILES
    assert not complaints
    assert not list((near.root / "partial").iterdir())


def test_every_protocol_of_the_tables_is_known_to_fsspec():
    assert set(fsspec.available_protocols()) >= fsspec_store._LOCAL | fsspec_store._AT_ONCE
