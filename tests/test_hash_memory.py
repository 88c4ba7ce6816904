"""A remembered hash is the file's own, whatever happens to file, clock and database."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from edgekiln.engine import hash_memory
from edgekiln.engine.hash_memory import HashMemory


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settled(path, content=b"one"):
    """Write a file, and wait until a change of it would show."""
    path.write_bytes(content)
    time.sleep(0.06)
    return path


def known_anew(database, path):
    """Return what another process would know."""
    memory = HashMemory(database)
    found = memory.known(path)
    memory.close()
    return found


@pytest.fixture
def database(tmp_path):
    return tmp_path / "memory.sqlite"


@pytest.fixture
def hashed(monkeypatch):
    """Return the files that were read."""
    paths = []

    def read(path):
        paths.append(path)
        return sha256(path)

    monkeypatch.setattr(hash_memory, "sha256_file", read)
    return paths


def test_a_file_that_looks_as_it_did_is_read_once_over_two_processes(tmp_path, database, hashed):
    path = settled(tmp_path / "a")
    first = HashMemory(database)
    assert first.known(path) is None
    assert [first.digest(path), first.digest(path)] == [sha256(path)] * 2
    first.close()
    second = HashMemory(database)
    assert second.known(path) == sha256(path)
    assert second.digest(path) == sha256(path)
    assert hashed == [path]
    second.close()


def test_a_file_that_changes_just_after_it_was_hashed_is_never_known_wrongly(tmp_path, database):
    memory = HashMemory(database)
    path = tmp_path / "a"
    for number in range(30):
        path.write_bytes(b"%04d" % number)
        assert memory.digest(path) == sha256(path)
        path.write_bytes(b"%04d" % (number + 5000))
        assert memory.digest(path) == sha256(path)
    memory.close()


def test_a_file_system_with_coarse_times_is_not_trusted_within_two_seconds(tmp_path, database, monkeypatch):
    path = settled(tmp_path / "a")
    look = hash_memory.Look.at(path)
    now = int(time.time()) * 10**9
    coarse = look._replace(mtime_ns=now, ctime_ns=now)
    monkeypatch.setattr(hash_memory.Look, "at", classmethod(lambda *_: coarse))
    memory = HashMemory(database)
    memory.digest(path)
    path.write_bytes(b"two")
    assert memory.digest(path) == sha256(path)
    memory.close()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, database, monkeypatch):
    path = settled(tmp_path / "a")

    def change(path):
        found = sha256(path)
        path.write_bytes(b"two")
        return found

    memory = HashMemory(database)
    monkeypatch.setattr(hash_memory, "sha256_file", change)
    memory.digest(path)
    assert memory.known(path) is None
    memory.close()


def test_a_file_replaced_or_rewritten_with_its_old_time_is_read_again(tmp_path, database):
    path = settled(tmp_path / "a")
    before = path.stat()
    memory = HashMemory(database)
    memory.digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert memory.digest(path) == sha256(path)
    (tmp_path / "b").write_bytes(b"six")
    os.utime(tmp_path / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "b").replace(path)
    assert memory.digest(path) == sha256(path)
    memory.close()


def test_a_link_to_another_file_is_another_file(tmp_path, database):
    one, two = settled(tmp_path / "1"), settled(tmp_path / "2", b"two")
    link = tmp_path / "link"
    link.symlink_to(one)
    memory = HashMemory(database)
    assert memory.digest(link) == sha256(one)
    link.unlink()
    link.symlink_to(two)
    assert memory.digest(link) == sha256(two)
    memory.close()


def test_what_was_written_in_the_future_is_not_remembered_after_the_clock_was_put_back(tmp_path, database, monkeypatch):
    path = settled(tmp_path / "a")
    yesterday = time.time() - 86400.0
    monkeypatch.setattr(time, "time", lambda: yesterday)
    memory = HashMemory(database)
    memory.digest(path)
    memory.remember(path, "0" * 64)
    assert memory.known(path) is None
    assert memory.digest(path) == sha256(path)
    memory.close()


def test_what_is_known_without_reading_is_remembered(tmp_path, database, hashed):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    memory = HashMemory(database)
    memory.remember(path, sha256(path))
    assert memory.digest(path) == sha256(path)
    memory.remember(tmp_path / "missing", "0" * 64)
    memory.close()
    assert known_anew(database, path) == sha256(path)
    assert not hashed


def test_a_missing_file_is_an_error_of_the_system(tmp_path, database):
    memory = HashMemory(database)
    assert memory.known(tmp_path / "missing") is None
    with pytest.raises(FileNotFoundError):
        memory.digest(tmp_path / "missing")
    memory.close()


def test_shards_are_hashed_side_by_side_and_come_back_in_order(tmp_path, database, monkeypatch):
    paths = [settled(tmp_path / str(number), b"%d" % number) for number in range(6)]
    meeting = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def read(path):
        meeting.wait()
        return sha256(path)

    monkeypatch.setattr(hash_memory, "sha256_file", read)
    memory = HashMemory(database)
    assert memory.digests([*paths, paths[0]]) == [sha256(path) for path in (*paths, paths[0])]
    memory.close()


def garbage(path):
    path.write_bytes(os.urandom(8192))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def other_tables(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE files (x)")
    connection.close()


def lies(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE files SET sha256 = 'nonsense'")
    connection.close()


def as_directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [garbage, cut, other_tables, lies, as_directory])
def test_a_damaged_database_costs_what_it_remembered_and_no_more(tmp_path, database, harm):
    path = settled(tmp_path / "a")
    memory = HashMemory(database)
    memory.digest(path)
    memory.took("step", 2.0)
    memory.close()
    harm(database)
    for _ in range(2):
        memory = HashMemory(database)
        assert memory.digest(path) == sha256(path)
        memory.took("step", 3.0)
        memory.close()
    if harm is not as_directory:
        memory = HashMemory(database)
        assert memory.known(path) == sha256(path)
        assert memory.seconds("step") == 3.0
        memory.close()


def test_a_database_that_is_damaged_while_it_is_open_is_no_fault(tmp_path, database):
    path = settled(tmp_path / "a")
    memory = HashMemory(database)
    memory.digest(path)
    garbage(database)
    memory.save()
    assert memory.digest(path) == sha256(path)
    memory.close()


def test_a_database_that_can_only_be_read_is_read(tmp_path, database, monkeypatch):
    path, new, third = (settled(tmp_path / name, name.encode()) for name in "abc")
    memory = HashMemory(database)
    memory.digests([path, third])
    memory.took("step", 2.0)
    memory.close()
    before = database.read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)
    reader = HashMemory(database)
    assert reader.known(path) == sha256(path)
    assert reader.digest(new) == sha256(new)
    assert reader.known(new) == sha256(new)
    reader.took("step", 5.0)
    reader.save()
    assert reader.seconds("step") == 5.0
    assert reader.known(third) == sha256(third)
    reader.forget_missing()
    reader.close()
    assert database.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("memory")] == ["memory.sqlite"]


@pytest.mark.parametrize("place", [None, "missing/memory.sqlite"])
def test_without_a_database_it_remembers_within_the_process(tmp_path, hashed, place):
    path = settled(tmp_path / "a")
    memory = HashMemory(None if place is None else tmp_path / place)
    assert memory.digest(path) == memory.digest(path) == sha256(path)
    memory.took("step", 2.0)
    assert memory.seconds("step") == 2.0
    assert memory.seconds("other") is None
    memory.close()
    assert hashed == [path]


WRITER = """
import sys
from pathlib import Path
from edgekiln.engine.hash_memory import HashMemory
memory = HashMemory(Path(sys.argv[1]))
for number in range(100):
    memory.took(f"{sys.argv[2]}-{number}", float(number))
    memory.save()
memory.close()
"""


def test_two_processes_remember_at_once(database):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(database), name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    memory = HashMemory(database)
    assert all(memory.seconds(f"{name}-{number}") == number for name in "ab" for number in range(100))
    memory.close()


def test_files_that_are_gone_are_forgotten(tmp_path, database):
    kept, gone = settled(tmp_path / "a"), settled(tmp_path / "b")
    memory = HashMemory(database)
    memory.digests([kept, gone])
    memory.save()
    gone.unlink()
    memory.forget_missing()
    memory.close()
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT path FROM files").fetchall() == [(str(kept),)]
    connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
def test_a_name_that_is_not_utf_8_is_a_name(tmp_path, database):
    path = settled(tmp_path / "\udcff")
    memory = HashMemory(database)
    memory.digest(path)
    memory.close()
    assert known_anew(database, path) == sha256(path)


def test_a_copy_of_the_database_elsewhere_knows_the_same(tmp_path, database):
    path = settled(tmp_path / "a")
    memory = HashMemory(database)
    memory.digest(path)
    memory.close()
    shutil.copy(database, tmp_path / "copy ?#%20.sqlite")
    assert known_anew(tmp_path / "copy ?#%20.sqlite", path) == sha256(path)
