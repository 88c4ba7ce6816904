"""Where the cache lies, and what serves where it cannot be used."""

from pathlib import Path

import pytest

from edgekiln.engine.fsspec_store import FsspecStore
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.place import cache_directory, cache_url, open_store, open_to_read, open_to_remove, use
from edgekiln.engine.read_only_store import ReadOnlyStore
from edgekiln.errors import MachineError
from stores import FILES, content, make


@pytest.fixture
def complaints():
    return []


def opened(tmp_path, complaints, cache, *, offline=False):
    return open_store({"EDGEKILN_CACHE": str(cache)}, complaints.append, tmp_path / "scratch", offline=offline)


def test_the_variable_names_a_directory_or_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_directory({"EDGEKILN_CACHE": "~/c"}) == tmp_path / "c"
    assert cache_directory({"EDGEKILN_CACHE": "c"}) == tmp_path / "c"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "default")
    for environment in ({}, {"EDGEKILN_CACHE": ""}, {"EDGEKILN_CACHE": "s3://b/x"}):
        assert cache_directory(environment) == tmp_path / "default"
    assert cache_url({"EDGEKILN_CACHE": "s3://b/x"}) == "s3://b/x"
    assert cache_url({"EDGEKILN_CACHE": "c"}) is None
    assert cache_url({}) is None


def test_a_directory_is_a_local_store_with_what_is_remembered_in_it(tmp_path, complaints):
    store, memory = opened(tmp_path, complaints, tmp_path / "cache")
    with use(store):
        record = make(store)
    memory.took("step", 2.0)
    memory.close()
    store, memory = opened(tmp_path, complaints, tmp_path / "cache")
    assert content(store.open(record)) == FILES
    assert memory.seconds("step") == 2.0
    memory.close()
    assert isinstance(store, LocalStore)
    assert not (tmp_path / "scratch").exists()
    assert not complaints


def test_an_address_is_a_shared_store_with_a_near_side(tmp_path, complaints, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "default")
    store, memory = opened(tmp_path, complaints, (tmp_path / "far").as_uri(), offline=True)
    record = make(store)
    memory.close()
    assert isinstance(store, FsspecStore)
    assert LocalStore(tmp_path / "default").find(record.key) == record
    with pytest.raises(MachineError, match="offline"):
        opened(tmp_path, complaints, "s3://b/x", offline=True)


def test_a_cache_that_can_only_be_read_is_read_and_says_so(tmp_path, complaints, monkeypatch):
    record = make(LocalStore(tmp_path / "cache"))
    before = sorted((tmp_path / "cache").rglob("*"))
    monkeypatch.setattr("os.access", lambda *_: False)
    refuse(monkeypatch, tmp_path / "cache")
    store, memory = opened(tmp_path, complaints, tmp_path / "cache")
    assert isinstance(store, ReadOnlyStore)
    with use(store):
        assert content(store.open(store.find(record.key))) == FILES
        other = make(store, "b")
        assert content(store.open(other)) == FILES
    memory.close()
    assert sorted((tmp_path / "cache").rglob("*")) == before
    assert len(complaints) == 1
    assert complaints[0].startswith("the cache is only read, and what is made now is not kept: cannot write")


def refuse(monkeypatch, root):
    """Let a directory be as on a read-only disk, as far as a store asks."""
    init = LocalStore.__init__

    def refused(self, place, *arguments, **options):
        if place == root and not options.get("read_only"):
            raise MachineError(f"cannot write {place}: Read-only file system")
        init(self, place, *arguments, **options)

    monkeypatch.setattr(LocalStore, "__init__", refused)


def test_a_damaged_result_of_a_cache_that_can_only_be_read_is_made_anew(tmp_path, complaints, monkeypatch):
    record = make(LocalStore(tmp_path / "cache"))
    path = next((tmp_path / "cache").rglob("model.bin"))
    path.chmod(0o644)
    path.write_bytes(b"x")
    refuse(monkeypatch, tmp_path / "cache")
    store, memory = opened(tmp_path, complaints, tmp_path / "cache")
    assert store.open(store.find(record.key)) is None
    assert content(store.open(make(store))) == FILES
    memory.close()
    assert len(complaints) == 2


def test_a_place_that_is_none_is_replaced_for_this_run_and_that_is_said(tmp_path, complaints):
    (tmp_path / "file").write_text("x")
    store, memory = opened(tmp_path, complaints, tmp_path / "file" / "cache")
    record = make(store)
    assert content(store.open(record)) == FILES
    memory.close()
    assert len(complaints) == 1
    assert complaints[0].startswith("nothing is cached: cannot write")


def test_a_user_without_a_home_builds_without_a_cache(tmp_path, complaints, monkeypatch):
    def nowhere(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", nowhere)
    store, memory = open_store({}, complaints.append, tmp_path / "scratch", offline=True)
    assert content(store.open(make(store))) == FILES
    memory.close()
    assert "nothing is cached: no place for the cache is known" in complaints[0]


def test_without_a_near_side_a_shared_cache_is_used_all_the_same(tmp_path, complaints, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "file" / "default")
    far = (tmp_path / "far").as_uri()
    record = make(FsspecStore(far, LocalStore(tmp_path / "other")))
    store, memory = opened(tmp_path, complaints, far)
    assert content(store.open(store.find(record.key))) == FILES
    memory.close()
    assert len(complaints) == 1


def test_looking_makes_nothing(tmp_path, complaints):
    environment = {"EDGEKILN_CACHE": str(tmp_path / "cache")}
    assert open_to_read(environment, complaints.append) is None
    assert open_to_read(environment, complaints.append, writing=True) is None
    assert open_to_remove(environment, complaints.append) is None
    assert not list(Path(tmp_path).iterdir())
