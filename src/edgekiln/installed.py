"""Versions of installed packages, each looked up once: `importlib.metadata` reads and parses a file every time."""

from __future__ import annotations

import functools
from importlib.metadata import version


@functools.cache
def package_version(name: str) -> str:
    """Return the version of an installed package as it was when first asked for.

    Raises:
        PackageNotFoundError: It is not installed; asking again looks again.
    """
    return version(name)
