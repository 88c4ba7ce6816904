"""Two reports side by side: read, compared, judged and shown."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from edgekiln import __version__
from edgekiln.errors import ExitCode, UsageError, nearest
from edgekiln.files import parse_json, read_bounded
from edgekiln.table import table
from edgekiln.terminal import printable
from edgekiln.validators.compare_reports import BuildChange, Compared, ComparedGate, Comparison, MetricChange, compare
from edgekiln.validators.gates import BASELINES, METRICS, OLD, Gate, parse_gate
from edgekiln.validators.report import REPORT_SCHEMA, Report

#: A build with everything in its report has about 100 kB, so these are about a thousand.
_MAX_BYTES: Final = 128 << 20
_MAX_VALUES: Final = 16_000_000
_NAME, _VERSION = REPORT_SCHEMA.split("/")
_HOW: Final = "give the report.json of `edgekiln build`, or what `edgekiln validate --json` prints"


@dataclass(frozen=True)
class ReadReport:
    """A report that was read.

    Attributes:
        report: Its content.
        named: What to call it.
    """

    report: Report
    named: Compared


def _check_schema(path: Path, value: object) -> dict[str, Any]:
    """Return the document, if it says that it is a report of the version that is read here."""
    if not isinstance(value, dict) or not isinstance(value.get("schema"), str):
        raise UsageError(f"{path} is no report of Edgekiln: it names no schema; {_HOW}")
    schema = value["schema"][:80]
    name, _, version = schema.partition("/")
    if name != _NAME:
        raise UsageError(f"{path} is no report of Edgekiln but {schema!r}; {_HOW}")
    if version != _VERSION:
        raise UsageError(
            f"{path} is of version {schema!r}, but this Edgekiln ({__version__}) reads {REPORT_SCHEMA!r}; compare with "
            "the Edgekiln that wrote it, or make the report again"
        )
    return value


def _restore(document: dict[str, Any], error: ValidationError) -> bool:
    """Put NaN where a report has null for a figure: JSON has no other way to write what is not finite.

    Returns:
        Whether that was all that is wrong with it.
    """
    for mistake in error.errors(include_url=False, include_context=False):
        if mistake["input"] is not None or mistake["type"] not in {"float_type", "float_parsing"}:
            return False
        *way, last = mistake["loc"]
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = math.nan
    return True


def _parse(path: Path, document: dict[str, Any]) -> Report:
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        if _restore(document, error):
            return Report.model_validate(document)
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is a damaged report: {where}: {first['msg']}; make it again") from None


def read_report(path: Path) -> ReadReport:
    """Read a report that anyone may have written; keys that are not known are passed over.

    Raises:
        UsageError: It is missing, too large, no report, damaged, or of another version.
        MachineError: The system does not let us read it.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; {_HOW}")
    raw = read_bounded(path, _MAX_BYTES)
    try:
        value = parse_json(raw, _MAX_VALUES)
    except ValueError as error:
        raise UsageError(
            f"{path} is no report of Edgekiln: it is not JSON that can be read ({error}); {_HOW}"
        ) from None
    report = _parse(path, _check_schema(path, value))
    repeated = [name for name, count in Counter(build.id for build in report.builds).items() if count > 1]
    if repeated:
        raise UsageError(
            f"{path} is a damaged report: it has several builds named {repeated[0][:200]!r}; make it again"
        )
    named = Compared(name=str(path), sha256=hashlib.sha256(raw).hexdigest(), builds=len(report.builds))
    return ReadReport(report, named)


def _check_gates(gates: Sequence[Gate], new: ReadReport) -> None:
    """Refuse a gate that is relative to a build which the new report does not have."""
    known = {*BASELINES, OLD, *(build.id for build in new.report.builds)}
    for gate in gates:
        if gate.relative_to is not None and gate.relative_to not in known:
            choices = nearest(gate.relative_to, known)
            raise UsageError(f"unknown baseline {gate.relative_to!r} in the gate '{gate}'; {choices}")


def run_comparison(old: Path, new: Path, gates: Sequence[str]) -> Comparison:
    """Compare two reports.

    Args:
        old: What was.
        new: What is.
        gates: Limits on every build of the new report, such as `mean_kld <= 1.1 * old`.

    Raises:
        UsageError: A report is missing, damaged or of another version, or a gate is none.
        MachineError: A report cannot be read.
    """
    limits = tuple(parse_gate(text, "comparison") for text in gates)
    before, after = read_report(old), read_report(new)
    _check_gates(limits, after)
    return compare(before.report, after.report, (before.named, after.named), limits)


def exit_code(comparison: Comparison) -> ExitCode:
    """Return 1 when a gate failed or was not measured, else 0."""
    return ExitCode.PASSED if comparison.status == "passed" else ExitCode.GATE_FAILED


_STYLES: Final = {"better": "green", "worse": "red", "unknown": "yellow", "same": ""}


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if unit == "bytes" else f"{value:.6g}"


def _judgement(change: MetricChange) -> object:
    """Return better, worse or what else is known of a difference."""
    from rich.text import Text

    if change.old is None or change.new is None:
        return "gone" if change.new is None else "new"
    if change.within_noise and change.direction in {"better", "worse"}:
        return f"{change.direction}, within noise"
    return Text("not comparable" if change.direction == "unknown" else change.direction, _STYLES[change.direction])


def _delta(change: MetricChange) -> str:
    """Return a difference, as a share of the old value where there is one."""
    if change.delta is None or not math.isfinite(change.delta):
        return "–"
    shown = f"{change.delta:+,.0f}" if change.unit == "bytes" else f"{change.delta:+.4g}"
    return f"{shown} ({change.delta / change.old:+.1%})" if change.old else shown


def _shown(build: BuildChange) -> Iterator[MetricChange]:
    """Yield the figures that changed, of the parts of the corpus the one that changed most."""
    changed = [change for change in build.metrics if change.old != change.new]
    yield from (change for change in changed if change.section is None)
    sections = [change for change in changed if change.section is not None]
    yield from sorted(sections, key=lambda change: -abs(change.delta or 0.0))[:1]


def _metric_rows(builds: Sequence[BuildChange]) -> Iterator[list[object]]:
    for build in builds:
        for change in _shown(build):
            name = change.metric if change.section is None else f"{change.metric} of {change.section}"
            values = [_number(change.old, change.unit), _number(change.new, change.unit), _delta(change)]
            yield [printable(build.id), printable(name), *values, _judgement(change)]


_METRIC_COLUMNS: Final = (
    ("build", False),
    ("metric", False),
    ("old", True),
    ("new", True),
    ("change", True),
    ("", False),
)


def _outcome_lines(build: BuildChange) -> Iterator[str]:
    """Yield one line per thing that ended otherwise than before."""
    if build.old_id != build.id:
        yield f"{build.id}: was {build.old_id} in the old report"
    if build.old_status != build.new_status:
        yield f"{build.id}: {build.old_status} before, {build.new_status} now"
    for change in build.outcomes:
        yield f"{build.id}: {change.kind} {change.name}: {change.old or 'none'} before, {change.new or 'none'} now"
    for found in build.findings:
        fix = f"; {found.fix}" if found.change == "new" else ""
        yield f"{build.id}: {found.change} {found.severity} {found.id}: {found.subject}: {found.detail}{fix}"


def _gate_lines(name: str, gates: Sequence[ComparedGate]) -> Iterator[str]:
    for gate in gates:
        outcome = {"pass": "passed", "fail": "failed", "not_measured": "not measured"}[gate.outcome]
        reason = f": {gate.reason}" if gate.reason else ""
        value = f" ({_number(gate.value, METRICS[gate.metric].unit)})" if gate.value is not None else ""
        counted = "" if gate.binding else ", not counted"
        yield f"{name}: gate {gate.metric} {gate.limit}{value} {outcome}{counted}{reason}"


def _lines(comparison: Comparison) -> Iterator[str]:
    """Yield everything that is no figure."""
    yield from (f"Note: {note}" for note in comparison.notes)
    for tool, (old, new) in comparison.tools.items():
        yield f"Tool: {tool} {old or 'missing'} before, {new or 'missing'} now"
    for build in comparison.builds:
        yield from _outcome_lines(build)
    yield from (f"{name}: removed" for name in comparison.removed)
    yield from (f"{build.id}: added, {build.status}" for build in comparison.added)
    for judged in comparison.judged:
        yield from _gate_lines(judged.id, judged.gates)


def _tally(comparison: Comparison) -> str:
    """Return how much got better and worse, and what became of the gates."""
    whole = [change for build in comparison.builds for change in build.metrics if change.section is None]
    real = Counter(change.direction for change in whole if not change.within_noise)
    gates = [gate for build in comparison.judged for gate in build.gates]
    kept = f"; {sum(gate.outcome == 'pass' for gate in gates)} of {len(gates)} gates passed" if gates else ""
    counts = (
        f"{len(comparison.builds)} builds in both, {len(comparison.added)} added, {len(comparison.removed)} removed"
    )
    return f"{counts}: {real['better']} figures better, {real['worse']} worse beyond what is known of noise{kept}."


def comparison_text(comparison: Comparison) -> str:
    """Return what changed: the figures as a table, then all else in lines, then how much there was of it."""
    rows = list(_metric_rows(comparison.builds))
    shown = [table(_METRIC_COLUMNS, rows)] if rows else ["No figure changed."]
    return "\n".join([*shown, *map(printable, _lines(comparison)), _tally(comparison)])
