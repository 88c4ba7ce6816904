"""Which libraries touch a result: their versions, and for native code the digest of the very files.

A version alone is not enough: llama-cpp-python built here for this processor and the same version from a wheel are two
libraries. An installed distribution lists the sha256 of every file (RECORD, see the packaging specification on
installed projects); a native file of another size, or newer than that list, was replaced and is hashed itself.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import functools
import hashlib
import platform
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from edgekiln.artifact import sha256_file

_NATIVE: Final = re.compile(r"\.(?:so(?:\.[0-9.]+)?|dylib|dll|pyd)$")
#: The lines of RECORD that are looked at: native libraries and the list itself.
_WANTED: Final = re.compile(r"\.(?:so(?:\.[0-9.]+)?|dylib|dll|pyd)\"?,|\.dist-info/RECORD\"?,")
#: Between the last native library of an installation and its RECORD; one written to later was replaced.
_INSTALL_SECONDS: Final = 60.0
#: The same of change times, which no program can set: a whole environment that is copied or given to another user
#: changes them all, and takes its time.
_COPY_SECONDS: Final = 3600.0
_MISSING: Final = "missing"


@functools.cache
def tool_version(name: str) -> str:
    """Return version and, for a distribution with native libraries, their digest: `0.3.36+3f9a…`; or `missing`."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return _MISSING
    listing = "".join(sorted(f"{digest}  {path}\n" for path, digest in _native_files(found)))
    return f"{found.version}+{hashlib.sha256(listing.encode()).hexdigest()[:16]}" if listing else found.version


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of every distribution, and of Python, by name."""
    return {"python": platform.python_version(), **{name: tool_version(name) for name in sorted(names)}}


def _native_files(found: Distribution) -> Iterator[tuple[str, str]]:
    """Yield path and digest of every native library of a distribution."""
    text = found.read_text("RECORD")
    if text is None:
        for path in found.files or ():
            if _NATIVE.search(path.name):
                yield str(path), _hashed(Path(str(found.locate_file(path))))
        return
    rows = list(csv.reader(line for line in text.splitlines() if _WANTED.search(line)))
    listed = [Path(str(found.locate_file(row[0]))) for row in rows if row[0].endswith("RECORD")]
    times = [path.stat() for path in listed if path.exists()]
    latest = max((status.st_mtime for status in times), default=0.0) + _INSTALL_SECONDS
    latest_change = max((status.st_ctime for status in times), default=0.0) + _COPY_SECONDS
    for row in rows:
        if len(row) == 3 and _NATIVE.search(row[0]):
            yield row[0], _digest(Path(str(found.locate_file(row[0]))), row[1], row[2], latest, latest_change)


def _digest(path: Path, digest: str, size: str, latest: float, latest_change: float) -> str:
    """Return the sha256 that RECORD lists, in hex, or the file's own where it may have been replaced since."""
    algorithm, _, value = digest.partition("=")
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        untouched = status.st_mtime <= latest and status.st_ctime <= latest_change
        if algorithm == "sha256" and status.st_size == int(size) and untouched:
            return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    return _hashed(path)


def _hashed(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return _MISSING


def platform_version() -> str:
    """Return system and architecture: compilers contract floating point differently on each."""
    return f"{platform.system()} {platform.machine()}"
