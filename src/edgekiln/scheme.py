"""A scheme: how the weights of a checkpoint are to be stored."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self, TypeAlias

import bracex

from edgekiln.errors import UsageError
from edgekiln.families import EMBEDDING, HEAD

#: Precisions that name an intent; each container says what it makes of them.
GENERIC_PRECISIONS: Final = ("fp16", "int8", "int4", "nf4")
#: What weights are rounded to before they are quantized to a GGUF type: nothing, or fp16 as in llama.cpp's two steps.
GgufSource: TypeAlias = Literal["source", "f16"]
GGUF_SOURCES: Final[tuple[GgufSource, ...]] = ("source", "f16")
#: Smaller limits would make more files than a file system likes.
LEAST_SPLIT: Final = 1_000_000
#: How many names the braces of one pattern may stand for.
_MAX_EXPANSIONS: Final = 1000
_WEIGHT: Final = ".weight"
#: Matrices that an error names before it stops.
_MOST_NAMED: Final = 4


@dataclass(frozen=True)
class Scheme:
    """What is asked of an exporter.

    Attributes:
        precision: `fp16`, `int8`, `int4`, `nf4`, or a container's own (`q4_k_m`).
        group_size: Weights that share a scale; None leaves it to the container.
        symmetric: No zero points.
        embedding_precision: Precision of the embeddings; None leaves it to the container.
        head_precision: Precision of the output head; None leaves it to the container.
        embedding_group_size: Group size of embeddings and head; None means that of the other weights where the
            precision is the same, else the container's own.
        overrides: Pairs of a pattern of the checkpoint's names and a precision; see `overridden`.
        accuracy_level: What MatMulNBits computes in (0 to 4 in ONNX Runtime's documentation; 4 is int8); None leaves it
            to the execution provider.
        gguf_source: What GGUF types are quantized from.
        split_max_size: Bytes of tensor data that one file may have; a larger tensor has a file of its own. None for no
            limit.
    """

    precision: str
    group_size: int | None = None
    symmetric: bool = True
    embedding_precision: str | None = None
    head_precision: str | None = None
    embedding_group_size: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    accuracy_level: int | None = None
    gguf_source: GgufSource = "source"
    split_max_size: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the scheme that `dataclasses.asdict` made values of, which JSON may have carried."""
        return cls(**{**values, "overrides": tuple((pattern, name) for pattern, name in values["overrides"])})

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the precision, by name, as JSON would have it."""
        return {name: getattr(self, name) for name in OPTIONS} | {"overrides": dict(self.overrides)}

    @property
    def precisions(self) -> tuple[str, ...]:
        """All precisions that are named, each once."""
        named = (self.precision, self.embedding_precision, self.head_precision, *(name for _, name in self.overrides))
        return tuple(dict.fromkeys(name for name in named if name is not None))


#: The options of a scheme beside its precision.
OPTIONS: Final = tuple(entry.name for entry in fields(Scheme) if entry.name != "precision")


def overridden(scheme: Scheme, matrices: Sequence[str]) -> tuple[Scheme, dict[str, str]]:
    """Return the scheme with what its overrides say of embeddings and head, and precisions of other matrices by name.

    A pattern is a name of the checkpoint, with or without `.weight`, where `*` stands for any characters, `?` for one,
    `[…]` for one of a set and `{0,23}` or `{0..3}` for one of a list. The last pattern that matches a matrix decides;
    `lm_head` also names the head of a model that ties it.

    Args:
        scheme: What is asked.
        matrices: Names of all tensors of the checkpoint that are matrices.

    Raises:
        UsageError: A pattern matches no matrix, or stands for too many names.
    """
    names = {name.removesuffix(_WEIGHT): name for name in (*matrices, HEAD)}
    found: dict[str, str] = {}
    for pattern, precision in scheme.overrides:
        matched = _matching(pattern, list(names))
        if not matched:
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0)
            raise UsageError(
                f"the override {pattern[:200]!r} matches none of the checkpoint's {len(names)} matrices; use a name "
                f"like {close[0]!r}, in which * stands for anything and {{0,23}} for one of a list"
            )
        found |= dict.fromkeys((names[name] for name in matched), precision)
    embedding = found.pop(EMBEDDING, scheme.embedding_precision)
    head = found.pop(HEAD, scheme.head_precision)
    return dataclasses.replace(scheme, embedding_precision=embedding, head_precision=head), found


def one_precision(sources: Sequence[str], overrides: Mapping[str, str]) -> str | None:
    """Return the precision of its own that a tensor has, which is made of several matrices; None if it has none.

    Raises:
        UsageError: They have different ones.
    """
    wanted = {overrides.get(source) for source in sources}
    if len(wanted) > 1:
        named = ", ".join(sources if len(sources) <= _MOST_NAMED else (*sources[: _MOST_NAMED - 1], "and others"))
        raise UsageError(
            f"{named} are one tensor in the artifact, so an override gives all of them one precision or none"
        )
    return wanted.pop()


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        plain = bracex.expand(pattern.removesuffix(_WEIGHT), limit=_MAX_EXPANSIONS)
    except bracex.ExpansionLimitException:
        raise UsageError(
            f"the override {pattern[:60]!r} stands for more than {_MAX_EXPANSIONS} names; use * instead of long lists"
        ) from None
    matches = re.compile("|".join(map(fnmatch.translate, plain))).match
    return [name for name in names if matches(name)]
