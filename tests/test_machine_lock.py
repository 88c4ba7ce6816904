"""Many share, or one has it alone; a process that dies lets go."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bad_inputs import _no_namespaces
from edgekiln.engine.machine_lock import MachineLock, SharedLock

HOLDER = """
import sys, time
from pathlib import Path
from edgekiln.engine.machine_lock import MachineLock
lock = MachineLock(Path(sys.argv[1]))
assert getattr(lock, sys.argv[2])()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """Return a function that lets another process hold the lock, and one that kills it."""
    processes = []

    def hold(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), how], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"

    def kill():
        while processes:
            process = processes.pop()
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()
            process.stdout.close()

    yield hold, kill
    kill()


def test_shares_go_together_and_nothing_goes_with_who_is_alone(tmp_path):
    one, other = MachineLock(tmp_path), MachineLock(tmp_path)
    assert one.works
    assert one.try_share()
    assert one.try_share()
    assert other.try_share()
    assert not other.try_alone()
    assert not MachineLock(tmp_path).try_alone()
    one.release_share()
    other.release_share()
    assert not other.try_alone()
    one.release_share()
    assert other.try_alone()
    assert not one.try_share()
    assert not one.try_alone()
    other.release_alone()
    assert one.try_share()
    one.release_share()


@pytest.mark.parametrize(("how", "shares"), [("try_share", True), ("try_alone", False)])
def test_another_process_holds_it_until_it_is_killed(tmp_path, held, how, shares):
    hold, kill = held
    hold(how)
    lock = MachineLock(tmp_path)
    assert lock.try_share() is shares
    if shares:
        lock.release_share()
    assert not lock.try_alone()
    kill()
    assert lock.try_alone()
    lock.release_alone()


@pytest.mark.parametrize("place", ["file/below", "folder.db"])
def test_where_no_lock_can_be_made_every_request_is_granted(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.db").mkdir()
    lock = SharedLock(tmp_path / place)
    assert not lock.works
    assert lock.try_share()
    lock.release_share()
    assert lock.try_alone()
    lock.release_alone()
    assert not SharedLock(None).works


def test_a_file_that_is_no_lock_is_not_touched(tmp_path):
    (tmp_path / "machine.lock.db").write_bytes(b"mine" * 1000)
    lock = MachineLock(tmp_path)
    assert lock.try_share()
    lock.release_share()
    assert (tmp_path / "machine.lock.db").read_bytes() == b"mine" * 1000


def test_a_user_without_a_home_has_no_lock(monkeypatch):
    monkeypatch.delenv("EDGEKILN_STATE", raising=False)

    def nowhere(*_, **__):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_state_path", nowhere)
    assert MachineLock().try_alone()


def test_the_place_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKILN_STATE", str(tmp_path / "state"))
    assert MachineLock().works
    assert (tmp_path / "state" / "machine.lock.db").exists()


@pytest.mark.skipif(_no_namespaces() is not None, reason=str(_no_namespaces()))
@pytest.mark.parametrize("exists", [False, True])
def test_on_a_read_only_disk_every_request_is_granted(tmp_path, exists):
    if exists:
        MachineLock(tmp_path)
    program = (
        "import sys; from pathlib import Path; from edgekiln.engine.machine_lock import MachineLock\n"
        "lock = MachineLock(Path(sys.argv[1])); assert lock.try_share(); lock.release_share()\n"
        "assert lock.try_alone(); lock.release_alone()"
    )
    inside = f'mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", inside, "sh", sys.executable, "-c", program, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert os.access(Path(tmp_path), os.W_OK)
