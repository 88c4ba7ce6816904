"""Changing the bytes of single weights in finished artifacts, of any container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekiln.validators.kinds import identify
from edgekiln.validators.storage import artifact_weights
from edgekiln.validators.weights import Place, Weight

Change = Callable[[NDArray[np.uint8]], NDArray[np.generic]]


def find(artifact: Path, *parts: str) -> Weight:
    """Return the one weight whose name has all these parts; tied ones count once."""
    kind = identify(artifact)
    found = {w.place: w for w in artifact_weights(kind) if all(part in w.name for part in parts)}
    (weight,) = found.values()
    return weight


def _region(artifact: Path, place: Place) -> tuple[Path, int]:
    kind = identify(artifact)
    return (kind.path if kind.format == "gguf" else Path(place[0])), place[1]


def read(artifact: Path, weight: Weight, part: int = 0) -> NDArray[np.uint8]:
    """Return the bytes of a part of a weight: codes or numbers, scales, zero points."""
    place, nbytes = weight.parts[part]
    path, offset = _region(artifact, place)
    with path.open("rb") as file:
        file.seek(offset)
        return np.frombuffer(bytearray(file.read(nbytes)), np.uint8)


def change(artifact: Path, weight: Weight, how: Change, part: int = 0) -> None:
    """Overwrite a part of a weight with what `how` makes of its bytes; the length stays."""
    old = read(artifact, weight, part)
    new = np.ascontiguousarray(how(old.copy())).view(np.uint8).reshape(-1)
    assert new.size == old.size
    assert new.tobytes() != old.tobytes()
    path, offset = _region(artifact, weight.parts[part][0])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new.tobytes())


def swap(artifact: Path, one: Weight, other: Weight) -> None:
    """Exchange all bytes of two weights of one type and shape."""
    for part in range(len(one.parts)):
        left, right = read(artifact, one, part), read(artifact, other, part)
        change(artifact, one, lambda _, new=right: new, part)
        change(artifact, other, lambda _, new=left: new, part)
