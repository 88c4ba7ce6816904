"""The report as one HTML file that a person reads: no script, no request, nothing that changes between two renderings.

The templates and the style sheet lie in `data`; pictures come from `edgekiln.validators.pictures` as geometry. All text
goes through `edgekiln.validators.html_text`, every list is capped, and the page's own policy lets the browser load
nothing and apply no style but the sheet's, which it names by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar

from jinja2 import DictLoader, Environment, StrictUndefined

from edgekiln.errors import UsageError
from edgekiln.validators import html_text, pictures
from edgekiln.validators.gates import METRICS, parse_gate
from edgekiln.validators.report import (
    BuildReport,
    CheckReport,
    ConservationReport,
    LatencyReport,
    ReplyReport,
    Report,
    Speeds,
)

Verdict: TypeAlias = Literal["failed", "error", "not_measured", "unsupported", "passed"]
_T = TypeVar("_T")

#: What a page holds at most; the rest is counted.
MOST_BUILDS: Final = 500
MOST_DETAILED: Final = 60
_MOST_LAYERS: Final = 160
_MOST_PARTS: Final = 24
_HEAT_STEPS: Final = 9
#: A relative error beyond this is no rounding: the tensor holds something else.
_ELSE: Final = 0.5
#: Times the median of the same part in all layers from which on an error stands out.
_STANDS_OUT: Final = 3.0

_TEMPLATES: Final = ("report.html.jinja", "report_build.html.jinja", "report_pictures.html.jinja")
_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "passed": "passed",
        "failed": "failed",
        "error": "error",
        "not_measured": "not measured",
        "unsupported": "unsupported",
        "pass": "pass",
        "fail": "fail",
        "known_divergence": "known divergence",
        "warning": "warning",
        "note": "note",
    }
)
_SIGNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "passed": "✓",
        "pass": "✓",
        "failed": "✕",
        "fail": "✕",
        "error": "✕",
        "not_measured": "?",
        "unsupported": "–",
        "known_divergence": "≈",
        "warning": "!",
        "note": "i",
    }
)
_COUNTED: Final[Mapping[Verdict, str]] = MappingProxyType(
    {
        "failed": "failed",
        "error": "ended in an error",
        "not_measured": "could not be measured",
        "unsupported": "unsupported",
        "passed": "passed",
    }
)
_SPEED_LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "decode_tokens_per_second": "Decode",
        "prefill_tokens_per_second": "Prefill",
        "time_to_first_token_seconds": "Time to first token",
        "load_seconds": "Load, files in memory",
        "cold_load_seconds": "Load, files on disk",
        "peak_rss_bytes": "Peak memory",
        "steady_rss_bytes": "Memory after generating",
        "joules_per_token": "Energy per token",
    }
)
_SPEED_GROUPS: Final = (("by_length", "By length"), ("by_depth", "By context depth"), ("by_batch", "By batch size"))


@dataclass(frozen=True)
class Heat:
    """The heat map: columns, and rows of (part, cells); a cell is (text, class). `outside` has what is in no layer."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    outside: tuple[tuple[str, str, str], ...]
    high: float
    standing_out: int
    left_out: int


@dataclass(frozen=True)
class SpeedRow:
    """One figure of the artifact and of what it is compared with, as text; `ratio` is that to the fp16 artifact."""

    label: str
    artifact: str
    spread: str
    fp16: str
    ratio: str
    reference: str


@dataclass(frozen=True)
class Reply:
    """A pair of replies as pieces: shared, the word at which they part, the rest."""

    pair: ReplyReport
    same: bool
    reference: tuple[Any, Any, Any]
    artifact: tuple[Any, Any, Any]


def verdict_of(build: BuildReport) -> Verdict:
    """Return how a build ended; one that failed only because nothing could be measured is told apart."""
    if build.status != "failed":
        return build.status
    checks = any(check.outcome == "fail" for check in build.structure)
    gates = {gate.outcome for gate in build.gates}
    return "not_measured" if not checks and "fail" not in gates and "not_measured" in gates else "failed"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many digits and no exponent of machines: 0.0219, 1,024, 1.2 × 10⁻⁵."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 8:
        raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{value / 10.0**exponent:.{max(0, digits - 2)}f} × 10{raised}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def size(value: float | None) -> str:
    """Return bytes in MB or GB, three digits."""
    if value is None or not math.isfinite(value):
        return significant(value)
    unit, factor = ("GB", 1e9) if value >= 1e9 else ("MB", 1e6) if value >= 1e6 else ("kB", 1e3)
    return f"{significant(value / factor)}\u00a0{unit}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in percent."""
    if value is None or not math.isfinite(value):
        return significant(value)
    if 0 < abs(value) < 0.5 * 10.0 ** (-2 - digits):
        return f"<\u00a0{10.0**-digits:g}\u00a0%"
    return f"{100 * value:.{digits}f}\u00a0%"


def duration(value: float | None) -> str:
    """Return seconds, or milliseconds where they are few."""
    if value is None or not math.isfinite(value):
        return significant(value)
    return f"{significant(1000 * value)}\u00a0ms" if 0 < value < 1 else f"{significant(value)}\u00a0s"


_UNITS: Final[Mapping[str, Callable[[float | None], str]]] = MappingProxyType(
    {
        "bytes": size,
        "seconds": duration,
        "fraction": percent,
        "tokens per second": lambda value: f"{significant(value)}\u00a0tok/s" if value is not None else "–",
        "ratio": lambda value: significant(value, 4),
    }
)


def figure(value: float | None, metric: str) -> str:
    """Return a figure as its metric's unit asks for."""
    known = METRICS.get(metric)
    return _UNITS.get(known.unit if known else "", significant)(value)


def first(items: Iterable[_T], most: int) -> tuple[list[_T], int]:
    """Return the first items and the number of the others."""
    everything = list(items)
    return everything[:most], max(0, len(everything) - most)


def headline(report: Report) -> tuple[str, str, Verdict]:
    """Return the verdict in a few words, a sentence to it, and the worst that happened."""
    builds = report.builds
    if not builds:
        return "Nothing was judged", "The report has no builds.", "not_measured"
    counts = {verdict: sum(verdict_of(build) == verdict for build in builds) for verdict in _COUNTED}
    worst = next(verdict for verdict in _COUNTED if counts[verdict])
    if len(builds) == 1:
        return f"{_WORDS[worst].capitalize()}", _sentence(builds[0]), worst
    parts = [f"{count} {_COUNTED[verdict]}" for verdict, count in counts.items() if count and verdict != "passed"]
    title = f"{'All' if not parts else counts['passed']}{'' if not parts else ' of'} {len(builds)} builds passed"
    gates = sum(len(build.gates) for build in builds)
    checks = sum(len(build.structure) for build in builds)
    return title, f"{', '.join(parts)}{'. ' if parts else ''}{checks} checks and {gates} gates were judged.", worst


def _sentence(build: BuildReport) -> str:
    passed = sum(gate.outcome == "pass" for gate in build.gates)
    checks = [check.outcome for check in build.structure]
    failed = sum(check == "fail" for check in checks)
    parts = []
    if checks:
        parts.append(f"{failed} of {len(checks)} checks failed" if failed else f"none of {len(checks)} checks failed")
    if build.gates:
        open_ = sum(not gate.binding for gate in build.gates)
        elsewhere = f", {open_} cannot be judged on this machine" if open_ else ""
        parts.append(f"{passed} of {len(build.gates)} gates passed{elsewhere}")
    return f"{' and '.join(parts).capitalize()}." if parts else "Nothing was measured."


def to_do(build: BuildReport) -> tuple[list[str], list[str]]:
    """Return why a build is not as it should be, and what to do: the distinct fixes of what its checks found."""
    why = list(build.health.findings) if build.health else []
    fixes = [finding.fix for check in build.structure for finding in check.findings if finding.severity == "error"]
    return why or ([build.reason] if build.reason else []), list(dict.fromkeys(fixes))


def formats(report: Report) -> tuple[str, ...]:
    """Return the containers in order: a mark's shape is its container's place."""
    return tuple(dict.fromkeys(build.format for build in report.builds))


def _limit(builds: Sequence[BuildReport], metric: str) -> list[tuple[float, str]]:
    """Return the absolute limit on a metric as a line, where all builds have the same one."""
    limits = {gate.limit for build in builds for gate in build.gates if gate.metric == metric}
    counts = [sum(gate.metric == metric for gate in build.gates) for build in builds]
    if len(limits) != 1 or any(count != 1 for count in counts):
        return []
    try:
        gate = parse_gate(f"{metric} {limits.pop()}")
    except UsageError:
        return []
    return [(gate.limit, "limit")] if gate.relative_to is None else []


def _points(report: Report, value: Callable[[BuildReport], float | None]) -> list[tuple[BuildReport, pictures.Point]]:
    shapes = {name: i for i, name in enumerate(formats(report))}
    made = []
    for number, build in enumerate(report.builds[:MOST_BUILDS], start=1):
        y = value(build)
        if y is None or build.size_bytes is None:
            continue
        point = pictures.Point(
            name=html_text.plain(build.id, 40),
            number=number,
            x=build.size_bytes / 1e6,
            y=y,
            shape=shapes[build.format],
            hollow=build.status != "passed",
        )
        made.append((build, point))
    return made


def _kld(build: BuildReport) -> float | None:
    return build.parity.mean_kld if build.parity else None


def _decode(build: BuildReport) -> float | None:
    return build.latency.decode_tokens_per_second if build.latency else None


def size_and_quality(report: Report) -> pictures.Scatter | None:
    """Return the picture of size against mean KLD."""
    made = _points(report, _kld)
    builds = [build for build, _ in made]
    sizes = [(limit / 1e6, label) for limit, label in _limit(builds, "size_bytes")]
    points = [point for _, point in made]
    return pictures.scatter(points, less_y=True, x_lines=sizes, y_lines=_limit(builds, "mean_kld"))


def size_and_speed(report: Report) -> pictures.Scatter | None:
    """Return the picture of size against decode speed; of one build, with the speeds that it is compared with."""
    made = _points(report, _decode)
    lines = []
    if len(made) == 1 and (latency := made[0][0].latency) is not None:
        for speeds, label in ((latency.fp16_artifact, "fp16 artifact"), (latency.reference, "reference")):
            if speeds is not None and speeds.decode_tokens_per_second is not None:
                lines.append((speeds.decode_tokens_per_second, label))
    return pictures.scatter([point for _, point in made], less_y=False, y_lines=lines)


def _heat_text(error: float) -> str:
    """Return a relative error in percent, short enough for a cell."""
    if not math.isfinite(error):
        return "∞"
    hundred = 100 * error
    if hundred == 0:
        return "0"
    return "<.1" if hundred < 0.05 else f"{hundred:.1f}" if hundred < 9.95 else f"{min(hundred, 9999):.0f}"


def _medians(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median error of each part that at least three layers have."""
    return {part: statistics.median(values) for part, values in errors.items() if len(values) >= 3}


def heat(conservation: ConservationReport) -> Heat | None:
    """Return the heat map of relative errors; colours rise from zero to the largest that does not stand out."""
    inside = [layer for layer in conservation.layers if layer.layer is not None]
    outside = [item for layer in conservation.layers if layer.layer is None for item in layer.relative_errors.items()]
    parts = list(dict.fromkeys(part for layer in inside for part in layer.relative_errors))
    by_part = {
        part: [e for layer in inside if (e := layer.relative_errors.get(part)) is not None and math.isfinite(e)]
        for part in parts
    }
    usual = _medians(by_part)

    def stands_out(part: str, error: float) -> bool:
        often = usual.get(part, 0.0)
        return not math.isfinite(error) or error >= _ELSE or (often > 0 and error > _STANDS_OUT * often)

    everything = [(part, error) for part, errors in by_part.items() for error in errors] + outside
    high = max((error for part, error in everything if not stands_out(part, error)), default=0.0)
    if not everything:
        return None

    def cell(part: str, error: float | None) -> tuple[str, str]:
        if error is None:
            return "", "none"
        if stands_out(part, error):
            return _heat_text(error), "out"
        step = 0 if high <= 0 else min(_HEAT_STEPS - 1, math.floor(error / high * (_HEAT_STEPS - 1) + 0.5))
        return _heat_text(error), f"h{step}"

    layers = inside[:_MOST_LAYERS]
    return Heat(
        columns=tuple(str(layer.layer) for layer in layers),
        rows=tuple((p, tuple(cell(p, layer.relative_errors.get(p)) for layer in layers)) for p in parts[:_MOST_PARTS]),
        outside=tuple((part, *cell(part, error)) for part, error in outside[:_MOST_PARTS]),
        high=high,
        standing_out=sum(stands_out(part, error) for part, error in everything),
        left_out=max(0, len(inside) - _MOST_LAYERS) + max(0, len(parts) - _MOST_PARTS),
    )


def _value(speeds: Speeds | None, group: str, name: str) -> float | None:
    value = None if speeds is None else getattr(speeds, group).get(name) if group else getattr(speeds, name)
    return float(value) if value is not None else None


def _speed_row(latency: LatencyReport, group: str, name: str) -> SpeedRow:
    def text(value: float | None) -> str:
        if group:
            return figure(value, "decode_tokens_per_second")
        if name == "joules_per_token":
            return "–" if value is None else f"{significant(value)}\u00a0J"
        return figure(value, name)

    own, fp16 = _value(latency, group, name), _value(latency.fp16_artifact, group, name)
    return SpeedRow(
        label=name if group else _SPEED_LABELS[name],
        artifact=text(own),
        spread=percent(latency.spread.get(name), 0),
        fp16=text(fp16),
        ratio=f"{own / fp16:.2f} ×" if own is not None and fp16 else "–",
        reference=text(_value(latency.reference, group, name)),
    )


def speed_groups(latency: LatencyReport) -> list[tuple[str, list[SpeedRow]]]:
    """Return the table of speeds: headline figures that any of the three has, then those by length, depth and batch."""
    sides = (latency, latency.fp16_artifact, latency.reference)
    plain = [name for name in _SPEED_LABELS if any(_value(side, "", name) is not None for side in sides)]
    groups = [("Headline", [_speed_row(latency, "", name) for name in plain])]
    for group, title in _SPEED_GROUPS:
        names = list(getattr(latency, group))[:40]
        groups.append((title, [_speed_row(latency, group, name) for name in names]))
    return [(title, rows) for title, rows in groups if rows]


def samples(latency: LatencyReport, name: str) -> pictures.Strip | None:
    """Return the picture of the processes' medians of one speed, for all that was timed."""
    sides = (("artifact", latency), ("fp16 artifact", latency.fp16_artifact), ("reference", latency.reference))
    rows = [(label, side.samples.get(name, ()), _value(side, "", name)) for label, side in sides if side is not None]
    return pictures.strip(rows)


def reply(pair: ReplyReport) -> Reply:
    """Return two replies with the word at which they part."""
    start = html_text.shared_start(pair.reference, pair.artifact)
    same = pair.reference == pair.artifact
    return Reply(pair, same, html_text.parted(pair.reference, start), html_text.parted(pair.artifact, start))


def detailed(report: Report) -> tuple[list[tuple[int, BuildReport]], int]:
    """Return the builds that get a section, with their numbers, and how many get none; those that failed go first."""
    numbered = list(enumerate(report.builds[:MOST_BUILDS], start=1))
    chosen = sorted(numbered, key=lambda item: (verdict_of(item[1]) == "passed", item[0]))[:MOST_DETAILED]
    return sorted(chosen, key=lambda item: item[0]), len(report.builds) - len(chosen)


def checks_in_order(build: BuildReport) -> list[CheckReport]:
    """Return the checks, those that failed first."""
    order = {"fail": 0, "not_measured": 1, "known_divergence": 2, "pass": 3}
    return sorted(build.structure, key=lambda check: (order[check.outcome], check.check))


def _ratio(one: float | None, other: float | None) -> str:
    return "–" if one is None or not other or not math.isfinite(one / other) else f"{one / other:.2f} ×"


def _file(name: str) -> str:
    return files("edgekiln.validators").joinpath("data", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        loader=DictLoader({name: _file(name) for name in _TEMPLATES}),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {
        "shown": html_text.shown,
        "name": html_text.name,
        "plain": html_text.plain,
        "token": html_text.token,
        "num": significant,
        "size": size,
        "percent": percent,
        "duration": duration,
        "figure": figure,
        "word": lambda outcome: _WORDS[outcome],
        "sign": lambda outcome: _SIGNS[outcome],
    }
    made.globals |= {
        "checks_in_order": checks_in_order,
        "curve": pictures.curve,
        "first": first,
        "fraction": pictures.fraction,
        "heat": heat,
        "mark_path": pictures.mark_path,
        "metrics": METRICS,
        "ratio": _ratio,
        "reply": reply,
        "samples": samples,
        "shares": pictures.shares,
        "speed_groups": speed_groups,
        "to_do": to_do,
        "verdict_of": verdict_of,
    }
    return made


@functools.cache
def _style() -> tuple[str, str]:
    """Return the style sheet as it stands in the page, and its hash as a content security policy names it."""
    text = _file("report.css")
    return text, f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def render_html(report: Report) -> str:
    """Return the whole report as one HTML page: verdict first, then pictures and tables, then each build.

    The page depends on the report alone, needs no script, and its policy allows no request.
    """
    style, style_hash = _style()
    title, sentence, worst = headline(report)
    sections, left_out = detailed(report)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            style=style,
            style_hash=style_hash,
            title=title,
            sentence=sentence,
            worst=worst,
            sections=sections,
            left_out=left_out,
            most_builds=MOST_BUILDS,
            formats=formats(report),
            quality=size_and_quality(report),
            speed=size_and_speed(report),
        )
    )
