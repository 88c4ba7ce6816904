"""The files that come with Edgekiln: the device catalogue and the pipelines.

In a checkout the catalogue lies at the root, where users edit it; a wheel carries a copy in `edgekiln/data`
(see setup.py). The pipelines lie beside this module in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import edgekiln
from edgekiln.errors import MachineError, UsageError, nearest

CATALOGUE: Final = "targets.yaml"
_HERE: Final = Path(__file__).parent


def shipped_pipelines() -> tuple[str, ...]:
    """Return the names of the shipped pipelines, sorted."""
    return tuple(sorted(path.stem for path in _HERE.glob("*.yaml")))


def shipped(name: str) -> Path:
    """Return the shipped file of a name: `targets.yaml`, or a pipeline such as `default`.

    Raises:
        UsageError: No file of that name is shipped.
        MachineError: The installation lacks it.
    """
    if name == CATALOGUE:
        for path in (_HERE.parent / CATALOGUE, Path(edgekiln.__file__).parent / "data" / CATALOGUE):
            if path.is_file():
                return path
        raise MachineError(f"this installation of Edgekiln has no {CATALOGUE}; install it again")
    if name not in shipped_pipelines():
        raise UsageError(
            f"no pipeline file and no shipped pipeline is named {name!r}; {nearest(name, shipped_pipelines())}"
        )
    return _HERE / f"{name}.yaml"
