"""What every store promises, whichever it is."""

import os
import secrets

import pytest

from edgekiln.engine.fsspec_store import FsspecStore
from edgekiln.engine.local_store import LocalStore
from edgekiln.engine.read_only_store import ReadOnlyStore
from edgekiln.errors import ChildError, InterruptError, StepError
from stores import FILES, content, fill, keep, key, make, record_of


def local(tmp_path, complaints):
    return LocalStore(tmp_path / "cache", complaints.append)


def folder(tmp_path, complaints):
    near = LocalStore(tmp_path / secrets.token_hex(4), complaints.append)
    return FsspecStore((tmp_path / "far").as_uri(), near, complaints.append)


def memory(tmp_path, complaints):
    near = LocalStore(tmp_path / secrets.token_hex(4), complaints.append)
    return FsspecStore(f"memory://{tmp_path.name}", near, complaints.append)


def read_only(tmp_path, complaints):
    LocalStore(tmp_path / "cache")
    base = LocalStore(tmp_path / "cache", complaints.append, read_only=True)
    return ReadOnlyStore(base, LocalStore(tmp_path / "scratch", complaints.append))


OPEN = {"local": local, "folder": folder, "memory": memory, "read-only": read_only}


@pytest.fixture(params=OPEN.values(), ids=OPEN)
def opened(request, tmp_path):
    """Return a function that opens the store anew, as another process would, and what it complained of."""
    complaints = []
    yield (lambda: request.param(tmp_path, complaints)), complaints
    assert not list(tmp_path.rglob("*.partial"))
    assert not [path for path in tmp_path.glob("*/v1/partial/*") if path.name[0] != "k"]


def test_what_was_put_comes_back_equal(opened):
    open_anew, complaints = opened
    record = make(open_anew())
    store = open_anew()
    assert store.find(record.key) == record
    assert content(store.open(record)) == FILES
    assert list(store.records()) == [record]
    assert not complaints


def test_what_was_not_put_is_not_there(opened):
    open_anew, complaints = opened
    store = open_anew()
    with store.claim(key(), resumable=False) as claim:
        fill(claim.directory)
        record = record_of(claim.directory)
    assert store.find(record.key) is None
    assert store.open(record) is None
    assert not list(store.records())
    assert not complaints


def test_a_claim_is_empty_and_belongs_to_one(opened):
    store = opened[0]()
    with store.claim(key(), resumable=False) as claim:
        assert not list(claim.directory.iterdir())
        assert not claim.journal.exists()
        with store.claim(key(), resumable=False) as second, store.claim(key("b"), resumable=True) as other:
            assert second is None
            assert other is not None
    with store.claim(key(), resumable=True) as third:
        assert third is not None


@pytest.mark.parametrize("error", [InterruptError("x"), ChildError("x")])
def test_what_an_interrupt_leaves_is_there_for_the_next_attempt(opened, error):
    store = opened[0]()
    with pytest.raises(type(error)), store.claim(key(), resumable=True) as claim:
        fill(claim.directory)
        claim.journal.write_text("half")
        raise error
    with store.claim(key(), resumable=True) as claim:
        assert content(claim.directory) == FILES
        assert claim.journal.read_text() == "half"
    with store.claim(key(), resumable=True) as claim:
        assert not content(claim.directory)


@pytest.mark.parametrize(
    ("error", "resumable"), [(StepError("x"), True), (ValueError(), True), (InterruptError("x"), False)]
)
def test_what_a_failure_leaves_is_gone(opened, error, resumable):
    store = opened[0]()
    with pytest.raises(type(error)), store.claim(key(), resumable=resumable) as claim:
        fill(claim.directory)
        claim.journal.write_text("half")
        raise error
    with store.claim(key(), resumable=True) as claim:
        assert not content(claim.directory)
        assert not claim.journal.exists()


def test_files_can_be_dropped_and_the_record_stays(opened):
    open_anew, complaints = opened
    store = open_anew()
    record, other = make(store), make(store, "b", {"model.bin": FILES["model.bin"]})
    store.drop_files(record.key)
    assert store.find(record.key) == record
    assert store.open(record) is None
    assert store.open(other) is not None
    make(store)
    assert content(store.open(record)) == FILES
    assert not complaints


def test_a_removed_step_is_as_if_it_had_never_been(opened):
    open_anew, complaints = opened
    store = open_anew()
    record, other = make(store), make(store, "b", {"model.bin": FILES["model.bin"]})
    store.remove(record.key)
    store.remove(key("never made"))
    assert store.find(record.key) is None
    assert store.open(record) is None
    assert list(store.records()) == [other]
    assert store.open(other) is not None
    assert not complaints


def test_a_step_made_anew_replaces_the_old_one(opened):
    open_anew, complaints = opened
    store = open_anew()
    make(store)
    newer = make(store, files={"model.bin": b"other"})
    store = open_anew()
    assert store.find(newer.key) == newer
    assert content(store.open(newer)) == {"model.bin": b"other"}
    assert not complaints


def test_a_step_made_anew_with_equal_files_leaves_those_that_may_be_read_just_now(opened):
    store = opened[0]()
    record = make(store)
    before = store.open(record).stat()
    make(store)
    assert os.path.samestat(store.open(record).stat(), before)


def test_a_result_that_is_not_what_its_record_says_is_refused(opened):
    store = opened[0]()
    for change in ("size", "missing", "more", "link"):
        with pytest.raises(StepError, match="changed while they were put"), store.claim(key(), resumable=True) as claim:
            fill(claim.directory)
            record = record_of(claim.directory)
            path = claim.directory / "model.bin"
            if change == "size":
                path.write_bytes(b"short")
            elif change == "more":
                (claim.directory / "more").write_bytes(b"")
            else:
                path.unlink()
                if change == "link":
                    path.symlink_to(claim.directory / "sub" / "config.json")
            store.put(claim, record)
        assert store.find(record.key) is None


def test_a_directory_without_files_is_a_result_too(opened):
    open_anew, _ = opened
    record = make(open_anew(), files={})
    assert content(open_anew().open(record)) == {}


def test_while_it_is_used_others_may_use_it_too(opened):
    open_anew, complaints = opened
    with open_anew().using(), open_anew().using():
        pass
    assert not complaints


def test_what_is_put_may_be_kept_under_a_claim_that_could_resume(opened):
    store = opened[0]()
    with store.claim(key(), resumable=True) as claim:
        record = keep(store, claim)
        assert store.open(record) is not None
    assert content(store.open(record)) == FILES
