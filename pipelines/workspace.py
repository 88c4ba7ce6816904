"""The output folder of a build: one run at a time, scratch space inside it, artifacts published into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgekiln.artifact import staged, write_atomically, write_fault
from edgekiln.engine.hash_memory import HashMemory
from edgekiln.engine.record import Record
from edgekiln.errors import MachineError, StepError, UsageError
from edgekiln.files import require_utf8

_SCRATCH: Final = ".edgekiln"
_LOCK: Final = ".edgekiln.lock"
#: The name that leads to the newest artifact of a build.
LATEST: Final = "latest"


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """Yield an empty scratch directory inside `out`, which belongs to this run alone and is removed at its end.

    It lies in `out` so that an artifact becomes visible there by a rename on the same file system. What a killed run
    left is removed first.

    Raises:
        UsageError: `out` is no path, or not one that the runtimes can open.
        MachineError: Another run works in `out`, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    require_utf8(out, "choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise MachineError(f"another edgekiln runs in {out}; wait for it or choose another --out") from None
    except ValueError as error:  # a NUL in it
        raise UsageError(f"{str(out)!r} is no path: {error}; choose another --out") from None
    except NotImplementedError:
        raise MachineError(f"the file system of {out} cannot lock files; choose another --out") from None
    except OSError as error:
        raise write_fault(out, error) from None
    scratch = out / _SCRATCH
    try:
        for left in (scratch, *out.glob("*/.*.partial")):
            shutil.rmtree(left, ignore_errors=True)
        for left in out.glob(".*.partial"):  # of reports
            left.unlink(missing_ok=True)
        try:
            scratch.mkdir()
        except OSError as error:
            raise write_fault(out, error) from None
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.release()


def published(record: Record, out: Path, build_id: str, memory: HashMemory) -> Path | None:
    """Return where an artifact lies in `out` already, every file as it was made; None where it is not."""
    destination = _destination(record, out, build_id)
    try:
        intact = all(memory.digest(destination / file.path) == file.sha256 for file in record.files)
        more = sum(1 for _ in destination.iterdir()) - len({file.path.partition("/")[0] for file in record.files})
    except OSError:
        return None
    return destination if intact and not more else None


def publish(files: Path, record: Record, out: Path, build_id: str, memory: HashMemory) -> Path:
    """Bring a finished artifact to `out/BUILD_ID/DIGEST`, named by its content.

    It is copied, not linked: what lies in `out` belongs to the user, and ONNX's checker refuses data files with more
    than one hard link.

    Args:
        files: Where the store has it.
        record: Its files.
        out: The output folder.
        build_id: The build that it belongs to.
        memory: Learns the hashes of the copies.

    Raises:
        StepError: An artifact of that name is there already and is not what it was.
        MachineError: The disk is full or cannot be written.
    """
    destination = _destination(record, out, build_id)
    if destination.exists():
        raise StepError(f"{destination} was changed after it was built; remove it and build again")
    with staged(destination) as directory:
        for file in record.files:
            (directory / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files / file.path, directory / file.path)
    for file in record.files:
        memory.remember(destination / file.path, file.sha256)
    return destination


def _destination(record: Record, out: Path, build_id: str) -> Path:
    return out / build_id / record.digest[:12]


def point_to(artifact: Path) -> None:
    """Let `latest` beside an artifact lead to it."""
    link = artifact.with_name(LATEST)
    if not (link.is_symlink() and str(link.readlink()) == artifact.name):
        _point(link, artifact.name)


def _point(link: Path, name: str) -> None:
    """Make `link` lead to its sibling `name`, replacing what it led to before.

    That is one step but on Windows, which cannot put one link to a directory in the place of another. Where no links
    can be made, a text file beside it has the name.
    """
    temporary, text = link.with_name(f".{link.name}.{os.getpid()}"), link.with_suffix(".txt")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        if os.name == "nt" and link.is_symlink():
            link.unlink()
        temporary.replace(link)
        text.unlink(missing_ok=True)
    except (OSError, NotImplementedError):  # Windows without the right to make links; file systems without links
        if temporary.is_symlink():
            temporary.unlink()
        if link.is_symlink():  # it would lead to what is no longer the newest
            link.unlink()
        write_atomically(text, name + "\n")
