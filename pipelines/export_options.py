"""The options of `edgekiln export`, parsed to a scheme."""

from __future__ import annotations

from collections.abc import Sequence

from edgekiln.errors import UsageError, nearest
from edgekiln.exporters import EXPORTERS
from edgekiln.scheme import GGUF_SOURCES, LEAST_SPLIT, Scheme
from edgekiln.units import parse_size


def parse_scheme(
    precision: str,
    *,
    group_size: int | None,
    asymmetric: bool,
    embedding_precision: str | None,
    head_precision: str | None,
    overrides: Sequence[str],
    split_max_size: str | None,
    gguf_source: str | None,
) -> Scheme:
    """Return what was asked for.

    Raises:
        UsageError: A precision is unknown, or an option is malformed.
    """
    source = next((name for name in GGUF_SOURCES if name == (gguf_source or "source")), None)
    if source is None:
        raise UsageError(f"--gguf-source {gguf_source!r} is unknown; {nearest(gguf_source or '', GGUF_SOURCES)}")
    return Scheme(
        _known(precision),
        group_size=group_size,
        symmetric=not asymmetric,
        embedding_precision=embedding_precision and _known(embedding_precision),
        head_precision=head_precision and _known(head_precision),
        overrides=tuple(map(_override, overrides)),
        gguf_source=source,
        split_max_size=_split(split_max_size),
    )


def _known(precision: str) -> str:
    known: set[str] = set().union(*(exporter.precisions for exporter in EXPORTERS.values()))
    if precision.lower() not in known:
        raise UsageError(f"unknown precision {precision!r}; {nearest(precision.lower(), known)}")
    return precision.lower()


def _override(text: str) -> tuple[str, str]:
    pattern, separator, precision = text.rpartition("=")
    if not separator or not pattern.strip():
        raise UsageError(f"--override {text!r} must be PATTERN=PRECISION, like 'model.layers.{{0,23}}.*=int8'")
    return pattern.strip(), _known(precision.strip())


def _split(text: str | None) -> int | None:
    if text is None:
        return None
    size = parse_size(text)
    if size < LEAST_SPLIT:
        raise UsageError(f"--split-max-size {text!r} is too small; give 1 MB or more")
    return size
