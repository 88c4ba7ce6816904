"""Plans, targets and reports as texts with tables for a terminal, and as JSON for scripts."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgekiln.errors import UsageError, nearest
from edgekiln.pipelines.forecast import Forecast
from edgekiln.pipelines.plan import Build, Plan
from edgekiln.pipelines.plan_table import options_text, runtime_text
from edgekiln.pipelines.targets import Meaning, Target, TargetsFile
from edgekiln.scheme import Scheme
from edgekiln.table import plain_table, table, table_width
from edgekiln.units import format_size
from edgekiln.validators.markdown import number
from edgekiln.validators.report import BuildReport, Report

_STYLES = {"passed": "green", "failed": "red", "error": "red", "unsupported": "yellow"}


def _styled(status: str) -> object:
    from rich.text import Text

    return Text(status, style=_STYLES[status])


def _result_row(build: BuildReport) -> list[object]:
    parity = build.parity
    return [
        build.id,
        _styled(build.status),
        build.container_type or "–",
        number(build.size_bytes / 1e6 if build.size_bytes else None, ".1f"),
        number(parity.mean_kld if parity else None, ".5f"),
        number(100 * parity.top1_agreement if parity else None, ".1f"),
        number(parity.perplexity if parity else None, ".2f"),
        _speed(build, "prefill_tokens_per_second", ".0f"),
        _speed(build, "decode_tokens_per_second", ".1f"),
    ]


def _speed(build: BuildReport, figure: str, form: str) -> str:
    """Return a speed, with a ~ before it where it scatters too much to be relied on."""
    value = getattr(build.latency, figure) if build.latency else None
    return ("~" if f"latency.{figure}" in build.not_measured else "") + number(value, form)


_RESULT_COLUMNS = (
    ("build", False),
    ("status", False),
    ("holds", False),
    ("MB", True),
    ("mean KLD", True),
    ("top-1 %", True),
    ("perplexity", True),
    ("prefill tok/s", True),
    ("decode tok/s", True),
)


def _remarks(build: BuildReport) -> list[str]:
    """Return one line per thing worth a word: its health and what to do."""
    if build.health is None:
        return [f"{build.id}: {build.status}: {build.reason}"] if build.reason else []
    findings = build.health.findings or ((build.reason,) if build.reason else ())
    return [f"{build.id}: {build.health.status}: {finding}" for finding in findings]


def _tally(report: Report) -> str:
    passed = sum(build.status == "passed" for build in report.builds)
    counts = Counter(build.health.status for build in report.builds if build.health is not None)
    healths = ", ".join(f"{counts[name]} {name}" for name in ("healthy", "degraded", "unhealthy") if counts[name])
    return f"{passed} of {len(report.builds)} builds passed{f' ({healths})' if healths else ''}."


#: With more builds than this a table is printed without colours, which take a millisecond for each row.
_MANY = 100


def report_text(report: Report) -> str:
    """Return one row per build, then what is worth a word about each, then how many passed."""
    rows = [_result_row(build) for build in report.builds]
    if len(rows) > _MANY:
        lines = [plain_table(_RESULT_COLUMNS, [list(map(str, row)) for row in rows])]
    else:
        lines = [table(_RESULT_COLUMNS, rows)]
    for build in report.builds:
        lines += _remarks(build)
    return "\n".join([*lines, _tally(report)])


def plan_json(plan: Plan, forecast: Forecast, reasons: Mapping[str, str]) -> str:
    """Return the plan as JSON; `reasons` says why a build cannot be made."""
    from edgekiln.pipelines.plan_document import plan_document  # not needed by the table, which should come at once

    return plan_document(plan, forecast, reasons).model_dump_json(indent=2, by_alias=True)


def _shown(value: object) -> str:
    """Return a value as the table of a build shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "–" if value is None else str(value) or "–"


def _properties(build: Build, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and origin of everything that decides about a build."""
    target, scheme = build.target, build.scheme
    memory = None if target.memory is None else format_size(target.memory)
    values: dict[str, object] = {
        "target": target.name,
        "format": build.format,
        "runtime": f"{target.runtime.name} {target.runtime.version}",
        "execution_provider": target.execution_provider,
        "memory": memory,
        "context_length": build.context_length,
        "threads": build.threads,
        "requested": build.requested,
        "precision": build.precision,
        **scheme.options,
        "allow_unsupported": build.allow_unsupported,
        "keep": build.keep,
        "allow_not_measured": sorted(build.allow_not_measured),
    }
    for name, value in values.items():
        yield name, _shown(value), build.origins[name]
    for gate, origin in zip(build.gates, build.gate_origins, strict=True):
        yield f"gate {gate.metric}", gate.limit_text, origin
    for name, value in plan.settings.values.model_dump(mode="json").items():
        if name != "threads":  # shown above, where the target may decide
            yield f"setting {name}", _shown(value), plan.settings.origins[name]


def build_text(plan: Plan, name: str, reasons: Mapping[str, str]) -> str:
    """Return every effective property of a build, its value and where it came from.

    Args:
        plan: The expanded pipeline.
        name: The build's id.
        reasons: By build id, why it cannot be built.

    Raises:
        UsageError: There is no such build.
    """
    builds = {build.id: build for build in plan.builds}
    if name not in builds:
        raise UsageError(f"--explain {name!r} is no build of {plan.pipeline.document.name}; {nearest(name, builds)}")
    build = builds[name]
    lines = [f"{build.id}: {build.target.description}"]
    lines.append(f"Cannot be built: {reasons[name]}" if name in reasons else "Can be built.")
    if build.target.stand_in is not None and name not in reasons:
        lines.append(f"Validation: {build.target.stand_in}.")
    lines.append(table((("property", False), ("value", False), ("origin", False)), _properties(build, plan)))
    lines += [f"{gate.metric} {gate.limit_text}: {gate.why}" for gate in build.gates]
    return "\n".join(lines)


#: From this width on the table of targets has a column for memory.
_WIDE = 100


def targets_text(catalogue: TargetsFile) -> str:
    """Return one row per device profile, as many columns as there is room for."""
    wide = table_width() >= _WIDE
    columns = [("target", False), ("runtime", False), *([("memory", True)] if wide else []), ("device", False)]
    rows = [
        [
            target.name,
            runtime_text(target, ", " if wide else ",\n"),
            *([format_size(target.memory) if target.memory else "–"] if wide else []),
            f"{target.description}{' (unsupported)' if target.unsupported else ''}",
        ]
        for target in catalogue.targets.values()
    ]
    return f"{table(columns, rows)}\nFrom {catalogue.name}"


#: Texts are never wider, since long lines are hard to read.
_TEXT_WIDTH = 120
_KEY_WIDTH = 14


def _entry(key: str, value: str, *details: str | None) -> str:
    """Return a key with its value and, below it, what there is to say of it, wrapped to the terminal."""
    width, indent = min(table_width(), _TEXT_WIDTH), " " * _KEY_WIDTH
    starts = [(f"  {key:<{_KEY_WIDTH - 2}}", value), *((indent, detail) for detail in details if detail)]
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for start, text in starts
    )


def _source(target: Target, figure: str) -> tuple[str | None, ...]:
    """Return what is known of a figure's origin: how it follows, the document, its address."""
    source = next((source for key, source in target.sources.items() if key == figure), None)
    return () if source is None else (source.why, f"Source: {source.title}", source.url)


def _figures(target: Target) -> Iterator[str]:
    """Yield the figures of a profile with their sources."""
    hardware, context = target.hardware, target.context_length
    machine = f"{hardware.machine}: {' or '.join(hardware.processor)}" if hardware else "any machine"
    memory = "not given" if target.memory is None else format_size(target.memory)
    verified = f"{target.verified.date}, {target.verified.report}" if target.verified else "never on the device itself"
    yield _entry("verified", verified)
    yield _entry("validation", target.stand_in or "the runtime itself, on this machine's CPU")
    yield _entry("format", target.format)
    yield _entry("runtime", f"{target.runtime.facts.title} {target.runtime.version}", *_source(target, "runtime"))
    yield _entry("provider", target.execution_provider, *_source(target, "execution_provider"))
    yield _entry("hardware", machine, *_source(target, "hardware"))
    yield _entry("memory", memory, *_source(target, "memory"))
    yield _entry("threads", str(target.threads or "all physical cores"), *_source(target, "threads"))
    tokens = f"{context:,} tokens" if context else "as long as the model allows"
    yield _entry("context", tokens, *_source(target, "context_length"))


def _meaning(meaning: Meaning, name: str) -> str:
    """Return what a precision means on a target, in one line."""
    if meaning.unsupported is not None:
        return f"unsupported: {meaning.unsupported}"
    given = meaning.given()
    scheme = replace(Scheme(meaning.container or name), **given)
    options = options_text(scheme)
    return scheme.precision if options == "–" else f"{scheme.precision}, {options}"


def target_text(target: Target) -> str:
    """Return one device profile: every figure with its source, and what each precision means with the reason."""
    lines = [f"{target.name}: {target.description}"]
    if target.unsupported is not None:
        lines.append(_entry("unsupported", target.unsupported, *_source(target, "unsupported")))
    lines += _figures(target)
    for name, meaning in target.precisions.items():
        lines.append(_entry(name, _meaning(meaning, name), meaning.why, *_source(target, name)))
    if target.gates:
        lines.append(_entry("gates", ", ".join(map(str, target.gates)), *_source(target, "gates")))
    return "\n".join(lines)


def targets_json(targets: Sequence[Target]) -> str:
    """Return device profiles as JSON."""
    entries = [target.model_dump(mode="json", exclude={"gates", "extends"}) for target in targets]
    for entry, target in zip(entries, targets, strict=True):
        entry["gates"] = [str(gate) for gate in target.gates]
        entry["verified"] = entry["verified"] or "never"
        entry["stand_in"] = target.stand_in
    return json.dumps(entries, indent=2, ensure_ascii=False)
