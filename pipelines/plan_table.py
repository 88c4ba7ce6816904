"""A plan and its predictions as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from edgekiln.pipelines.forecast import Forecast, Totals
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.predict import BuildPrediction
from edgekiln.pipelines.targets import Target
from edgekiln.scheme import Scheme
from edgekiln.table import plain_table, table_width
from edgekiln.units import format_size

#: From this width on everything stands in one line; below it options are stacked, and these columns are left out.
_WIDE: Final = 150
_WIDE_ONLY: Final = frozenset({"runtime", "cache"})
_COLUMNS: Final[tuple[tuple[str, bool], ...]] = (
    ("build", False),
    ("runtime", False),
    ("precision", False),
    ("options", False),
    ("artifact", True),
    ("on device", True),
    ("of", True),
    ("fit", False),
    ("cache", True),
)


def options_text(scheme: Scheme) -> str:
    """Return the options of a scheme beside its precision."""
    options = (
        f"group {scheme.group_size}" if scheme.group_size else "",
        "" if scheme.symmetric else "asymmetric",
        f"embeddings {scheme.embedding_precision}" if scheme.embedding_precision else "",
        f"head {scheme.head_precision}" if scheme.head_precision else "",
        f"embedding group {scheme.embedding_group_size}" if scheme.embedding_group_size else "",
        *(f"{pattern} {precision}" for pattern, precision in scheme.overrides),
        "" if scheme.accuracy_level is None else f"accuracy level {scheme.accuracy_level}",
        "" if scheme.gguf_source == "source" else f"from {scheme.gguf_source}",
        f"files of {format_size(scheme.split_max_size)}" if scheme.split_max_size else "",
    )
    return ", ".join(filter(None, options)) or "–"


def runtime_text(target: Target, separator: str = ", ") -> str:
    """Return runtime and execution provider, where that is not the CPU."""
    provider = target.execution_provider
    return target.runtime.name if provider == "cpu" else f"{target.runtime.name}{separator}{provider}"


_DECIMAL: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))
_BINARY: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def size_text(size: int | None, units: Sequence[tuple[int, str]] = _DECIMAL) -> str:
    """Return the size of a file in three figures: `352 MB`, `3.68 MB`, `30.3 GB`; a dash for None."""
    if size is None:
        return "–"
    factor, unit = next((each for each in units if size >= each[0]), units[-1])
    value = size / factor
    decimals = 0 if value >= 100 or factor == 1 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f} {unit}"


def memory_text(size: int | None) -> str:
    """Return a size of memory in three figures, binary as target files have it: `674 MiB`, `5.00 GiB`."""
    return size_text(size, _BINARY)


def _cached(forecast: Forecast) -> Mapping[str, str]:
    """Return by build id how many of its own steps the cache has, of how many; a question mark where none is known."""
    states: dict[str, list[str]] = {}
    for step in forecast.steps:
        build, _, kind = step.id.rpartition(".")
        if kind == step.kind:  # a baseline is no step of the build alone
            states.setdefault(build, []).append(step.cached)
    return {
        build: "?" if set(found) == {"unknown"} else f"{found.count('hit')}/{len(found)}"
        for build, found in states.items()
    }


def _cache_line(forecast: Forecast) -> str:
    """Return how much of a run was done before, as far as that is known without making anything."""
    states = [step.cached for step in forecast.steps]
    unknown = states.count("unknown")
    if unknown == len(states):
        return "Cache: nothing is known of this checkpoint; `edgekiln build --dry-run` hashes it and looks."
    rest = f", {unknown} depend on what is to be made" if unknown else ""
    return f"Cache: has {states.count('hit')} of {len(states)} steps{rest}."


def _row(build: Build, found: BuildPrediction | None, reason: str | None, cached: str, *, wide: bool) -> list[str]:
    options = options_text(build.scheme)
    return [
        build.id,
        *([runtime_text(build.target)] if wide else []),
        build.precision,
        options if wide else options.replace(", ", ",\n"),
        size_text(found.artifact_bytes if found else None),
        memory_text(found.memory.total if found else None),
        memory_text(build.target.memory),
        "unsupported" if reason else found.fit if found else "unknown",
        *([cached] if wide else []),
    ]


def _totals(totals: Totals, kept: bool) -> Iterable[str]:
    stays = "" if kept else f", of which {size_text(totals.kept_disk_bytes)} stay"
    yield (
        f"Building takes up to {memory_text(totals.peak_memory_bytes)} of memory and "
        f"{size_text(totals.peak_disk_bytes)} of disk{stays}: artifacts ({size_text(totals.artifact_bytes)}) in cache "
        "and output folder, fp16 baselines, reference."
    )


def plan_text(plan: Plan, forecast: Forecast, reasons: Mapping[str, str], note: str | None) -> str:
    """Return the matrix with what is predicted of each build, why a cell cannot be built, and the totals.

    Args:
        plan: The expanded pipeline.
        forecast: What a run of it takes.
        reasons: By build id, why it cannot be built.
        note: What was not looked at, and why; None when everything was.
    """
    settings = plan.settings
    wide = table_width() >= _WIDE
    columns = [column for column in _COLUMNS if wide or column[0] not in _WIDE_ONLY]
    cached = _cached(forecast)
    rows = (
        _row(build, forecast.builds.get(build.id), reasons.get(build.id), cached.get(build.id, "–"), wide=wide)
        for build in plan.builds
    )
    lines = [plain_table(columns, rows), ""]
    lines += [f"{name}: {reason}" for name, reason in reasons.items()]
    lines += [note] if note else []
    if forecast.totals is not None and forecast.builds:
        lines += _totals(forecast.totals, all(build.keep for build in plan.builds))
    if forecast.steps:
        lines.append(_cache_line(forecast))
    lines.append(f"Checkpoint: {settings.values.checkpoint} ({settings.origins['checkpoint']})")
    lines.append(f"Targets: {plan.targets.name}")
    lines.append(f"Output: {settings.values.out} ({settings.origins['out']})")
    return "\n".join(lines)
