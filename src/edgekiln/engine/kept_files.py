"""The files of results: how they looked when their content was known, how equal ones become one, how they go."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edgekiln.artifact import sha256_file, sync

_READ_ONLY: Final = 0o444
_FLUSHES: Final = 16


class Stamp(NamedTuple):
    """How a file looked when its content was last known.

    Attributes:
        size: Bytes.
        mtime_ns: When it was written to.
        ctime_ns: When anything about it changed.
        inode: Its number.
        links: How many names it has.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    links: int

    @classmethod
    def of(cls, path: str | Path) -> Stamp:
        """Return the stamp of a file as it is now.

        Raises:
            OSError: There is none.
        """
        status = os.lstat(path)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_nlink)

    def vouches_for(self, now: Stamp) -> bool:
        """Return whether a file that looks so now has the content that it had.

        No program can set the change time, but every new name of a file and every name that goes changes it; so it
        counts where the number of names is what it was.
        """
        if (self.size, self.mtime_ns, self.inode) != (now.size, now.mtime_ns, now.inode):
            return False
        return self.ctime_ns == now.ctime_ns or self.links != now.links


def flush(paths: Sequence[Path]) -> None:
    """Bring files and directories to the disk, all at once: a file system does that in one go.

    Raises:
        OSError: The disk is full or broken.
    """
    from concurrent.futures import ThreadPoolExecutor

    if paths:
        with ThreadPoolExecutor(min(_FLUSHES, len(paths)), thread_name_prefix="flush") as pool:
            list(pool.map(sync, paths))


def fault_of(path: Path, size: int, sha256: str) -> str | None:
    """Return what is wrong with a file after reading all of it, or None.

    Raises:
        OSError: It cannot be read.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size != size:
        return f"has {status.st_size} bytes instead of {size}"
    return None if sha256_file(path) == sha256 else "has other bytes than were put there"


def share(path: Path, known: Path, size: int, sha256: str, temporary: Path) -> None:
    """Make `path` one file with `known`, which has the same content, or the file that `known` names from now on.

    Where the file system has no links, or no more of them, it stays a file of its own.

    Args:
        path: Becomes read-only.
        known: Is read in full, and replaced if it is damaged; need not exist.
        size: Bytes of both.
        sha256: Of both.
        temporary: A name on the same file system.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    path.chmod(_READ_ONLY)
    known.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if fault_of(known, size, sha256) is not None:
            remove_file(known)
    try:
        known.hardlink_to(path)
    except FileExistsError:
        with contextlib.suppress(OSError):
            remove_file(temporary)
            temporary.hardlink_to(known)
            temporary.replace(path)
    except (OSError, NotImplementedError):
        return


def make_private(path: Path, temporary: Path) -> None:
    """Give a file that was being shared when its maker was killed a copy of its own, which may be written to.

    Args:
        path: The file; anything but a regular file is removed.
        temporary: A name on the same file system, outside of what is made.
    """
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        path.unlink()
    elif status.st_nlink > 1 or not status.st_mode & stat.S_IWUSR:
        remove_file(temporary)
        shutil.copyfile(path, temporary)
        if os.name == "nt":
            path.chmod(stat.S_IWRITE)
        temporary.replace(path)


def remove_file(path: Path) -> None:
    """Remove a file that may be read-only; it need not be there."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if os.name != "nt":
            raise
        path.chmod(stat.S_IWRITE)
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove whatever it is, read-only files in it too; it need not be there.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():  # rmtree would open a named pipe, and wait
        remove_file(path)
        return
    if os.name == "nt":  # where a read-only file cannot be removed
        for each in path.rglob("*"):
            if each.is_file():
                each.chmod(stat.S_IWRITE)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
