"""The local store among faults: kills, damage, full disks, other engines, other versions."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bad_inputs import _no_namespaces
from edgekiln.engine.kept_files import remove_tree
from edgekiln.engine.local_store import LocalStore
from edgekiln.errors import MachineError
from stores import FILES, content, fill, ingredients, key, make, record_of

TESTS = str(Path(__file__).parent)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def store(tmp_path, complaints):
    return LocalStore(tmp_path / "cache", complaints.append)


def entry_of(store, name="a"):
    return store.root / "entries" / key(name)[:2] / f"{key(name)}.json"


def result_of(store, name="a"):
    return store.root / "results" / key(name)[:2] / key(name)


def writable(path):
    path.chmod(0o644)
    return path


def edit(path, change):
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


# --- equal files ----------------------------------------------------------------------------------------------------


def test_equal_files_are_stored_once(store):
    one, other = make(store), make(store, "b", {"copy.bin": FILES["model.bin"]})
    assert (store.open(one) / "model.bin").samefile(store.open(other) / "copy.bin")
    assert store.disk_bytes() == one.size


def test_a_new_name_for_a_shared_file_does_not_make_it_be_read_again(store, monkeypatch):
    one = make(store)
    make(store, "b", {"copy.bin": FILES["model.bin"]})
    monkeypatch.setattr("edgekiln.engine.kept_files.sha256_file", lambda _: pytest.fail("it was read"))
    assert store.open(one) is not None


def test_a_file_system_without_links_keeps_every_file_by_itself(store, complaints, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one, other = make(store), make(store, "b", {"copy.bin": FILES["model.bin"]})
    assert content(store.open(one)) == FILES
    assert content(store.open(other)) == {"copy.bin": FILES["model.bin"]}
    assert not complaints


def test_too_many_links_are_no_fault(store, complaints, monkeypatch):
    make(store)
    link = os.link

    def full(source, target, **options):
        if "objects" in str(source):
            raise OSError(errno.EMLINK, "Too many links")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", full)
    other = make(store, "b")
    assert content(store.open(other)) == FILES
    assert not complaints


def test_a_damaged_shared_file_is_not_shared_again(store, complaints):
    one, other = make(store), make(store, "b")
    path = writable(store.open(one) / "model.bin")
    path.write_bytes(b"x" * path.stat().st_size)
    third = make(store, "c")
    assert content(store.open(third)) == FILES
    assert store.open(one) is None
    assert store.open(other) is None
    assert len(complaints) == 2
    for name in ("a", "b"):
        assert content(store.open(make(store, name))) == FILES
    assert len(complaints) == 2


def test_what_is_kept_cannot_be_written_to_by_mistake(store):
    for path in store.open(make(store)).rglob("*.*"):
        assert not path.stat().st_mode & 0o222


# --- damage of files ------------------------------------------------------------------------------------------------


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    writable(path).write_bytes(raw)


def flip_and_put_the_time_back(path):
    time.sleep(0.02)
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_and_put_the_time_back(path):
    before = path.stat()
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    flip(copy)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.replace(path)


def as_link(path):
    path.unlink()
    path.symlink_to("/etc/passwd")


def as_directory(path):
    path.unlink()
    path.mkdir()


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


FILE_FAULTS = {
    "corrupted": (flip, "has other bytes"),
    "corrupted, time put back": (flip_and_put_the_time_back, "has other bytes"),
    "replaced, time put back": (replace_and_put_the_time_back, "has other bytes"),
    "truncated": (lambda path: os.truncate(writable(path), 10), "has 10 bytes instead of 7000"),
    "longer": (lambda path: writable(path).write_bytes(path.read_bytes() + b"x"), "has 7001 bytes instead of 7000"),
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "a link": (as_link, "is no regular file"),
    "a directory": (as_directory, "is no regular file"),
    "a pipe": (as_pipe, "is no regular file"),
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX kinds of files")
@pytest.mark.parametrize(("harm", "sentence"), FILE_FAULTS.values(), ids=FILE_FAULTS)
def test_a_damaged_file_is_found_reported_removed_and_made_again(store, complaints, harm, sentence):
    record = make(store)
    harm(result_of(store) / "model.bin")
    assert store.open(record) is None
    (complaint,) = complaints
    assert complaint.startswith(f"the cache's model.bin of a.export {sentence}")
    assert complaint.endswith("; the step is made again")
    assert store.find(record.key) is None
    assert not result_of(store).exists()
    assert content(store.open(make(store))) == FILES
    assert len(complaints) == 1


def test_looking_for_damage_finds_what_no_time_tells_and_changes_nothing(store):
    record = make(store)
    assert store.fault(record) is None
    flip(result_of(store) / "model.bin")
    assert store.fault(record) == "model.bin has other bytes than were put there"
    assert store.find(record.key) == record


def test_a_file_that_was_only_touched_is_read_once_and_then_known_again(store, complaints, monkeypatch):
    record = make(store)
    os.utime(result_of(store) / "model.bin")
    assert store.open(record) is not None
    monkeypatch.setattr("edgekiln.engine.kept_files.sha256_file", lambda _: pytest.fail("it was read again"))
    assert store.open(record) is not None
    assert not complaints


# --- damage of entries ----------------------------------------------------------------------------------------------


def deep(path):
    path.write_text('{"record":' + "[" * 200_000)


def name_outside(name):
    return lambda path: edit(path, lambda value: value["record"]["files"][0].update(path=name))


ENTRY_FAULTS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(2000)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "no object": lambda path: path.write_bytes(b"[1]"),
    "nested deeply": deep,
    "too large": lambda path: os.truncate(path, 1 << 30),
    "too many values": lambda path: path.write_bytes(b'{"record":[' + b"[]," * 2_000_000 + b"1]}"),
    "of another key": lambda path: edit(path, lambda value: value["record"].update(key="0" * 64)),
    "other ingredients": lambda path: edit(path, lambda value: value["record"]["ingredients"].update(code="x")),
    "no stamps": lambda path: edit(path, lambda value: value.pop("stamps")),
    "short stamps": lambda path: edit(path, lambda value: value.update(stamps={"model.bin": [1, 2]})),
    "a path outside": name_outside("../../../../etc/passwd"),
    "an absolute path": name_outside("/etc/passwd"),
    "a path with a drive": name_outside("c:x"),
    "a path with a NUL": name_outside("a\0b"),
    "a path twice": name_outside("sub/config.json"),
    "a negative size": lambda path: edit(path, lambda value: value["record"]["files"][0].update(size=-1)),
    "a directory": as_directory,
    "a pipe": as_pipe,
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX kinds of files")
@pytest.mark.parametrize("harm", ENTRY_FAULTS.values(), ids=ENTRY_FAULTS)
def test_a_damaged_entry_is_found_reported_removed_and_made_again(store, complaints, harm):
    record = make(store)
    harm(entry_of(store))
    assert store.find(record.key) is None
    assert complaints == [f"the cache's {record.key}.json is damaged; the step is made again"]
    assert not entry_of(store).exists()
    assert store.open(record) is None
    assert content(store.open(make(store))) == FILES
    assert len(complaints) == 1


def test_stamps_that_lie_cost_no_more_than_a_look_at_the_file(store, complaints):
    record = make(store)
    edit(entry_of(store), lambda value: value.update(stamps={}))
    assert content(store.open(record)) == FILES
    assert not complaints


def test_an_entry_of_another_version_is_left_alone_and_counts_as_missing(store, complaints):
    record = make(store)
    edit(entry_of(store), lambda value: value["record"].update(schema_id="edgekiln.step/2", more="x"))
    before = entry_of(store).read_bytes()
    assert store.find(record.key) is None
    assert entry_of(store).read_bytes() == before
    assert not complaints
    assert content(store.open(make(store))) == FILES


def test_a_cache_of_another_layout_is_neither_read_nor_touched(tmp_path, complaints):
    (tmp_path / "cache" / "v0" / "entries").mkdir(parents=True)
    (tmp_path / "cache" / "v0" / "entries" / f"{key()}.json").write_text("other")
    store = LocalStore(tmp_path / "cache", complaints.append)
    assert store.find(key()) is None
    make(store)
    with store.alone():
        store.sweep()
    assert (tmp_path / "cache" / "v0" / "entries" / f"{key()}.json").read_text() == "other"


def test_an_entry_without_its_result_is_missing(store, complaints):
    record = make(store)
    remove_tree(result_of(store))
    assert store.open(record) is None
    assert len(complaints) == 1
    assert store.find(record.key) is None


# --- kills ----------------------------------------------------------------------------------------------------------

#: Forks once for each call of the system that `put` makes; the child kills itself before that call.
KILLER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import concurrent.futures.thread, filelock
from edgekiln.engine.local_store import LocalStore
from stores import FILES, key, keep, make
root, resumable, scene = Path(sys.argv[2]), sys.argv[3] == "True", sys.argv[4]
CALLS = ("link", "rename", "replace", "fsync", "unlink", "mkdir", "chmod", "rmdir", "open")
os.fsync = lambda descriptor: None

def prepare(place):
    store = LocalStore(place)
    if scene == "replaced":
        make(store, files={"old.bin": b"old"})
    elif scene == "shared":
        make(store, "b")
    return store

def attempt(store, number):
    counter = [0]
    def deadly(call):
        def wrapped(*arguments, **options):
            counter[0] += 1
            if counter[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return wrapped
    with store.claim(key(), resumable=resumable) as claim:
        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        keep(store, claim)

number = 0
while True:
    number += 1
    store = prepare(root / str(number))
    child = os.fork()
    if child == 0:
        attempt(store, number)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(number)
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("scene", "resumable"), [("fresh", True), ("replaced", False), ("shared", False)])
def test_a_kill_at_any_moment_of_put_leaves_the_step_whole_or_missing(
    tmp_path, complaints, monkeypatch, scene, resumable
):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them would take most of the time
    command = [sys.executable, "-c", KILLER, TESTS, str(tmp_path), str(resumable), scene]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    moments = int(shown.stdout)
    assert moments > 20
    wanted = {json.dumps(sorted(FILES)), json.dumps([]), json.dumps(["old.bin"])}
    seen = set()
    for number in range(1, moments + 1):
        store = LocalStore(tmp_path / str(number), complaints.append)
        record = store.find(key())
        found = {} if record is None else content(store.open(record))
        assert all(found[path] == {**FILES, "old.bin": b"old"}[path] for path in found)
        seen.add(json.dumps(sorted(found)))
        assert content(store.open(make(store))) == FILES
        for place in store.abandoned():
            remove_tree(place)
        with store.alone():
            store.sweep()
        store.remove(key())
        store.remove(key("b"))
        assert not [path for path in store.root.rglob("*") if path.is_file() and path.suffix not in {".lock", ".db"}]
    assert json.dumps(sorted(FILES)) in seen
    assert seen <= wanted
    assert not complaints


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_before_a_result_is_visible_all_of_it_has_gone_to_the_disk(store, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def replaced(source, target):
        done.append(f"visible: {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    make(store)
    place, entry = result_of(store), entry_of(store)
    before, after = done[: (at := done.index(f"visible: {entry}"))], done[at + 1 :]
    for path in (place, place / "sub", place.parent, place.parent.parent, entry.parent.parent):
        assert str(path) in before, f"{path} could be gone after a power loss"
    flushed_files = {name.rpartition("/files/")[2] for name in before if "/files/" in name}
    assert flushed_files == set(FILES)
    assert before[-1].endswith(".partial"), "the entry's own bytes come last"
    assert str(entry.parent) in after


def waiting(program, *arguments):
    """Start a program that prints a line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, TESTS, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from edgekiln.engine.local_store import LocalStore
from stores import fill, key
with LocalStore(Path(sys.argv[2])).claim(key(), resumable=True) as claim:
    fill(claim.directory)
    print("ready", flush=True)
    time.sleep(60)
"""


@posix
def test_of_two_processes_one_gets_a_claim_and_a_kill_frees_it(store):
    process = waiting(HOLDER, store.root.parent)
    try:
        with store.claim(key(), resumable=True) as claim:
            assert claim is None
        assert not list(store.abandoned())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [place.name for place in store.abandoned()] == [key()]
    with store.claim(key(), resumable=True) as claim:
        assert content(claim.directory) == FILES


@posix
def test_files_that_were_being_shared_when_the_maker_was_killed_may_be_written_to(store, tmp_path):
    make(store)
    place = store.root / "partial" / key("b") / "files"
    place.mkdir(parents=True)
    (place / "sub").mkdir()
    for path in FILES:
        (place / path).hardlink_to(result_of(store) / path)
    (place / "link").symlink_to(tmp_path)
    with store.claim(key("b"), resumable=True) as claim:
        assert content(claim.directory) == FILES
        for path in FILES:
            (claim.directory / path).write_bytes(b"mine")
    assert content(store.open(store.find(key()))) == FILES


def test_what_an_orphan_writes_after_a_kill_does_not_get_into_the_next_attempt(store):
    with store.claim(key(), resumable=False) as claim:
        orphan = claim.directory
        with pytest.raises(KeyboardInterrupt), store.claim(key("b"), resumable=False) as other:
            orphan_of_other = other.directory
            raise KeyboardInterrupt
    for left in (orphan, orphan_of_other):
        left.mkdir(parents=True)
        (left / "late").write_bytes(b"late")
    for name in ("a", "b"):
        with store.claim(key(name), resumable=False) as claim:
            assert not content(claim.directory)
    assert not list(store.abandoned())


# --- engines and those who remove -----------------------------------------------------------------------------------

USER = """
import sys, time
from pathlib import Path
from edgekiln.engine.local_store import LocalStore
with LocalStore(Path(sys.argv[2])).using():
    print("ready", flush=True)
    time.sleep(60)
"""


@posix
def test_who_removes_results_must_be_alone_and_a_killed_engine_is_no_obstacle(store):
    process = waiting(USER, store.root.parent)
    try:
        with pytest.raises(MachineError, match="another edgekiln uses"), store.alone():
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with store.alone():
        pass


REMOVER = """
import sys, time
from pathlib import Path
from edgekiln.engine.local_store import LocalStore
with LocalStore(Path(sys.argv[2])).alone():
    print("ready", flush=True)
    time.sleep(1)
"""


def test_an_engine_waits_for_who_removes_results_and_says_so(store, complaints):
    process = waiting(REMOVER, store.root.parent)
    with store.using():
        assert process.wait() == 0
    assert complaints == ["waiting until another edgekiln has removed results from the cache"]


def test_the_time_of_last_use_follows_a_use_even_after_the_clock_was_put_back(store):
    record = make(store)
    for moment in (time.time() - 1e6, time.time() + 1e6):
        os.utime(entry_of(store), (moment, moment))
        assert store.last_use(record.key) == pytest.approx(moment, abs=1)
        store.open(record)
        assert store.last_use(record.key) == pytest.approx(time.time(), abs=60)


# --- disks ----------------------------------------------------------------------------------------------------------

FULL = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from edgekiln.artifact import list_files
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.record import Record
from edgekiln.errors import MachineError
from stores import content, fill, ingredients, key, make, record_of
disk, complaints = Path(sys.argv[2]), []
store = LocalStore(disk / "cache", complaints.append)
small = make(store, "small", {"a": b"a"})
for size in range(0, 200_000, 4096):
    (disk / "ballast").write_bytes(bytes(0))
    try:
        with store.claim(key(str(size)), resumable=False) as claim:
            fill(claim.directory, {f"{n}": os.urandom(3000) for n in range(5)})
            record = record_of(claim.directory, str(size))
            with (disk / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                except OSError:
                    pass
            (disk / "ballast").open("r+b").truncate(max(0, (disk / "ballast").stat().st_size - size))
            store.put(claim, record)
    except MachineError as error:
        assert "the disk is full; free space or let EDGEKILN_CACHE name another directory" in str(error), error
        assert store.find(record.key) is None
        print("full", end=" ")
    else:
        assert len(content(store.open(record))) == 5
        print("whole", end=" ")
    (disk / "ballast").unlink()
    store.remove(record.key)
    assert not list((store.root / "partial").iterdir())
    assert content(store.open(small)) == {"a": b"a"}
assert not complaints, complaints
"""


@pytest.mark.skipif(_no_namespaces() is not None, reason=str(_no_namespaces()))
def test_a_disk_that_is_full_at_any_moment_of_put_is_the_machines_fault_and_costs_that_step_only(tmp_path):
    inside = f'mount -t tmpfs -o size=400k tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", FULL, TESTS, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert set(shown.stdout.split()) == {"full", "whole"}


READ_ONLY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from edgekiln.engine.local_store import LocalStore
from edgekiln.errors import MachineError
from stores import FILES, content, key
root = Path(sys.argv[2])
try:
    LocalStore(root)
except MachineError as error:
    assert "Read-only file system; let EDGEKILN_CACHE name another directory" in str(error), error
else:
    raise SystemExit("it could be written")
complaints = []
store = LocalStore(root, complaints.append, read_only=True)
assert content(store.open(store.find(key()))) == FILES
with store.using():
    pass
assert not complaints
"""


@pytest.mark.skipif(_no_namespaces() is not None, reason=str(_no_namespaces()))
def test_a_cache_on_a_read_only_disk_can_be_read(store):
    make(store)
    root = store.root.parent
    inside = f'mount --bind {root} {root} && mount -o remount,ro,bind {root} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", READ_ONLY, TESTS, str(root)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == 0, shown.stderr


def test_a_store_that_is_only_read_leaves_damage_where_it_is_and_finds_it_once(store, complaints):
    record, other = make(store), make(store, "b", {"x": b"x"})
    flip(result_of(store) / "model.bin")
    entry_of(store, "b").write_text("{")
    reader = LocalStore(store.root.parent, complaints.append, read_only=True)
    assert reader.open(reader.find(record.key)) is None
    assert reader.find(record.key) is None
    assert reader.find(other.key) is None
    assert len(complaints) == 2
    assert result_of(store).exists()
    assert entry_of(store, "b").read_text() == "{"


def test_a_directory_without_a_cache_cannot_be_read_as_one(tmp_path):
    with pytest.raises(MachineError, match="holds no cache"):
        LocalStore(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_is_no_place_for_a_cache(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="is no directory; let EDGEKILN_CACHE name another directory"):
        LocalStore(tmp_path / "file" / "cache")


def test_backup_programs_are_told_to_leave_it_out(store):
    assert (store.root.parent / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_sweeping_removes_what_belongs_to_no_step_and_nothing_else(store, complaints):
    record, dropped = make(store), make(store, "b", {"x": b"x"})
    store.drop_files(dropped.key)
    (store.root / "objects" / "ab").mkdir()
    stray = store.root / "objects" / "ab" / ("ab" + "0" * 62)
    stray.write_bytes(b"x")
    left = result_of(store, "c")
    fill(left)
    result_of(store, "b").mkdir()
    temporary = entry_of(store).with_name(f".{record.key}.1.2.partial")
    temporary.write_text("half")
    with store.alone():
        store.sweep()
    assert not any(path.exists() for path in (stray, left, temporary, result_of(store, "b")))
    assert content(store.open(record)) == FILES
    assert store.find(dropped.key) == dropped
    assert not complaints


def test_a_thousand_hits_cost_milliseconds_each(store):
    for number in range(40):
        make(store, str(number), {f"f{n}": f"{number} {n}".encode() for n in range(8)})
    keys = [ingredients(str(number)).key for number in range(40)]
    fastest = 1.0
    for _ in range(5):
        fresh = LocalStore(store.root.parent)
        begin = time.process_time()
        assert all(fresh.open(fresh.find(key)) for key in keys)
        fastest = min(fastest, (time.process_time() - begin) / len(keys))
    assert fastest < 0.002


def test_a_record_that_was_put_is_known_by_its_key_alone(store):
    record = make(store)
    with store.claim(key(), resumable=False) as claim:
        fill(claim.directory)
        assert record_of(claim.directory).key == record.key
