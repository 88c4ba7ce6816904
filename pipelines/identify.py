"""Which checkpoint it is: the hash of its files, taken once, and whether they are still the same afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from edgekiln.checkpoint import Checkpoint, identity_of
from edgekiln.engine.hash_memory import HashMemory, Look
from edgekiln.errors import StepError


@dataclass(frozen=True)
class Identified:
    """A checkpoint whose content is known.

    Attributes:
        checkpoint: It carries its identity.
        looks: How each of its files looked before it was hashed.
    """

    checkpoint: Checkpoint
    looks: Mapping[Path, Look]

    def require_unchanged(self) -> None:
        """Refuse what was made from the checkpoint if a file of it has been touched meanwhile.

        Raises:
            StepError: One has; what was read may be a mixture of two checkpoints.
        """
        for path, look in self.looks.items():
            try:
                changed = Look.at(path) != look
            except OSError:
                changed = True
            if changed:
                raise StepError(
                    f"{path} was changed while the checkpoint was read, so nothing made of it is kept; "
                    "run again when nobody writes to the checkpoint"
                )


def identify(checkpoint: Checkpoint, memory: HashMemory) -> Identified:
    """Return a checkpoint with its identity; files that look as they did when they were last hashed are not read.

    Raises:
        StepError: A file changed while it was hashed.
        OSError: A file cannot be read.
    """
    looks = {path: Look.at(path) for path in checkpoint.files}
    digests = memory.digests(checkpoint.files)
    memory.save()  # a run that is killed need not hash it again
    identity = identity_of({path.name: digest for path, digest in zip(checkpoint.files, digests, strict=True)})
    found = Identified(replace(checkpoint, known_identity=identity), MappingProxyType(looks))
    found.require_unchanged()
    return found


def known_identity(checkpoint: Checkpoint, memory: HashMemory) -> str | None:
    """Return a checkpoint's identity if all its files are remembered; nothing is read."""
    digests = {path.name: memory.known(path) for path in checkpoint.files}
    known = {name: digest for name, digest in digests.items() if digest is not None}
    return identity_of(known) if len(known) == len(digests) else None
