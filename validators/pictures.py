"""Pictures of a report as geometry: axes, marks and lines whose coordinates a template writes as inline SVG.

The common plotting libraries fix colours and fonts when they draw, or draw with scripts. Here the page's style sheet
colours the marks, for light, dark and paper alike, and four simple pictures need no more than this. All coordinates
are in the units of a view box; every function is pure, and what is not finite is left out of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

#: Size of the view box of a plot, and where its axes begin and end.
WIDTH: Final = 400
HEIGHT: Final = 280
LEFT: Final = 50
RIGHT: Final = 388
TOP: Final = 14
BOTTOM: Final = 238
#: Width of a character of a label of the style sheet's size, more or less; labels of many characters need no plot.
_CHARACTER: Final = 5.6
_LINE: Final = 11.0
#: From this ratio of the largest to the smallest on, an axis is logarithmic.
_LOG_RATIO: Final = 20.0
#: An axis begins at zero where the least value is below this share of the largest.
_ZERO_RATIO: Final = 0.3
#: Numbers nearer to each other than this share of them are drawn as equal, and spans smaller than the least one too.
_ROUNDING: Final = 1e-9
_LEAST_SPAN: Final = 1e-200
_MOST_NAMED: Final = 16
_MOST_BINS: Final = 128


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in view box units."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to view box units.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Where the axis begins.
        end: Where it ends; smaller than `start` for an axis that points upwards.
        log: Whether equal ratios are equally long.
        ticks: Labelled places.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Return where a value lies, no further out than the ends of the axis."""
        place = _share(value, self.low, self.high, log=self.log)
        return round(self.start + min(1.0, max(0.0, place)) * (self.end - self.start), 1)


@dataclass(frozen=True)
class Point:
    """What a scatter plot is made of.

    Attributes:
        name: In full.
        number: As in the table of builds, from 1.
        x: Value on the horizontal axis.
        y: Value on the vertical axis.
        shape: Number of the mark's shape, from 0.
        hollow: Whether the mark is an outline only.
    """

    name: str
    number: int
    x: float
    y: float
    shape: int = 0
    hollow: bool = False


@dataclass(frozen=True)
class Mark:
    """A point in its place; `label` is empty where none fits."""

    point: Point
    x: float
    y: float
    path: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Line:
    """A labelled line across a plot at one value."""

    at: float
    label: str
    upright: bool


@dataclass(frozen=True)
class Scatter:
    """A scatter plot; `front` are the points that no other one beats in both directions, as SVG points."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    front: str
    best: tuple[Point, ...]
    numbered: bool


@dataclass(frozen=True)
class Curve:
    """A curve over positions as SVG points, its mean, and the mean of its first eighth and of its last half."""

    x: Axis
    y: Axis
    points: str
    mean: float
    mean_at: float
    first: float
    last: float


@dataclass(frozen=True)
class Strip:
    """The samples of several things on one axis: by name, each sample's place and the median's."""

    x: Axis
    rows: tuple[tuple[str, tuple[float, ...], float | None], ...]


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    if log:
        return math.log(max(value, low) / low) / math.log(high / low)
    return (value - low) / (high - low)


def short(value: float, step: float) -> str:
    """Return a tick's label with as many digits as ticks `step` apart need; thousands are k, the rest powers of ten."""
    if value == 0:
        return "0"
    power = _power(value)
    places = max(0, -_power(step))
    if power < -4 or power >= 7:
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        factor = f"{value / 10.0**power:.{max(0, power - _power(step))}f}"
        return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"
    if power >= 4:
        return f"{value / 1000:.{max(0, 3 - _power(step))}f}k"
    return f"{value:.{places}f}"


def _power(value: float) -> int:
    """Return the power of ten that a number has as its first digit, rounding errors aside."""
    return math.floor(math.log10(abs(value)) + 1e-9)


def _step(span: float, count: int) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that covers `span` in at most `count` steps."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor * count >= span * (1 - 1e-9))


def linear_axis(values: Iterable[float], start: float, end: float, *, zero: bool, count: int = 5) -> Axis:
    """Return an axis of round numbers that holds all values, from zero on if `zero`."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    if zero or low == high:
        low, high = min(0.0, low), max(0.0, high)
    else:
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    if high - low < _ROUNDING * max(abs(low), abs(high)):
        low, high = min(0.0, low), max(0.0, high)
    if high - low < _LEAST_SPAN:
        high = low + 1.0
    step = _step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    bare = Axis(first * step, last * step, start, end, log=False, ticks=())
    ticks = (Tick(bare.at(i * step), short(i * step, step)) for i in range(first, last + 1))
    return Axis(bare.low, bare.high, start, end, log=False, ticks=tuple(ticks))


def _round_down(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is no larger than a positive number."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(power * factor for factor in (1.0, 2.0, 5.0) if factor == 1.0 or power * factor <= value)


def log_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """Return a logarithmic axis that holds all positive values."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = _round_down(min(known) / 1.05), 1 / _round_down(1 / (max(known) * 1.05))
    decades = range(_power(low), _power(high) + 1)
    factors = (1.0, 2.0, 5.0) if len(decades) <= 3 else (1.0,)
    every = 1 + len(decades) // 8
    places = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
    bare = Axis(low, high, start, end, log=True, ticks=())
    inside = (value for value in places if low * (1 - _ROUNDING) <= value <= high * (1 + _ROUNDING))
    ticks = (Tick(bare.at(value), short(value, value)) for value in inside)
    return Axis(low, high, start, end, log=True, ticks=tuple(ticks))


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(positive) > _LOG_RATIO * min(positive):
        return log_axis(values, start, end)
    return linear_axis(values, start, end, zero=len(values) < 4 or min(values) < _ZERO_RATIO * max(values))


def mark_path(shape: int, x: float, y: float, size: float = 4.5) -> str:
    """Return the outline of a mark: circle, square, triangle, diamond, then from the beginning again."""
    s = size
    if shape % 4 == 0:
        return f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0Z"
    corners = (
        ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        ((0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        ((0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)),
    )[shape % 4 - 1]
    return "M" + "L".join(f"{x + s * dx:.1f} {y + s * dy:.1f}" for dx, dy in corners) + "Z"


_Box = tuple[float, float, float, float]


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _places(mark: Mark, text: str) -> Iterable[tuple[float, float, str, _Box]]:
    """Yield where a label may stand, the best first: x, y, anchor, and the box that it fills."""
    width = len(text) * _CHARACTER
    for dx, dy, anchor in (
        (8, 3.5, "start"),
        (-8, 3.5, "end"),
        (0, -8, "middle"),
        (0, 15, "middle"),
        (6, -6, "start"),
        (6, 13, "start"),
        (-6, -6, "end"),
        (-6, 13, "end"),
    ):
        x, y = mark.x + dx, mark.y + dy
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
        yield x, y, anchor, (left, y - _LINE + 2, left + width, y + 2)


def _labelled(marks: Sequence[Mark], texts: Sequence[str]) -> tuple[Mark, ...]:
    """Return the marks with their labels, each where it meets no other label and no mark; empty where it would."""
    taken: list[_Box] = [(mark.x - 5, mark.y - 5, mark.x + 5, mark.y + 5) for mark in marks]
    placed = []
    for mark, text in zip(marks, texts, strict=True):
        made = mark
        for x, y, anchor, box in _places(mark, text):
            inside = box[0] >= LEFT + 2 and box[2] <= RIGHT + 8 and box[1] >= 2 and box[3] <= BOTTOM - 2
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                made = Mark(mark.point, mark.x, mark.y, mark.path, text, round(x, 1), round(y, 1), anchor)
                break
        placed.append(made)
    return tuple(placed)


def _front(points: Sequence[Point], *, less_y: bool) -> tuple[Point, ...]:
    """Return the points that none beats: no other is as far left, and as low or as high, and better in one of them."""
    sign = 1 if less_y else -1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, sign * p.y, p.number)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return tuple(best)


def scatter(
    points: Iterable[Point],
    *,
    less_y: bool,
    x_lines: Iterable[tuple[float, str]] = (),
    y_lines: Iterable[tuple[float, str]] = (),
) -> Scatter | None:
    """Return a scatter plot, or None where no point can be drawn.

    Names stand beside the marks where all of them fit, otherwise numbers; less is better on the horizontal axis.

    Args:
        points: What to draw; a point that is not finite is left out.
        less_y: Less is better on the vertical axis, too.
        x_lines: Upright lines, e.g. limits: value and label.
        y_lines: Level lines.
    """
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not known:
        return None
    x_lines, y_lines = tuple(x_lines), tuple(y_lines)
    x = _axis([point.x for point in known] + [value for value, _ in x_lines], LEFT, RIGHT)
    y = _axis([point.y for point in known] + [value for value, _ in y_lines], BOTTOM, TOP)
    bare = []
    for point in known:
        at_x, at_y = x.at(point.x), y.at(point.y)
        bare.append(Mark(point, at_x, at_y, mark_path(point.shape, at_x, at_y)))
    marks = _labelled(bare, [point.name for point in known]) if len(known) <= _MOST_NAMED else ()
    numbered = not marks or not all(mark.label for mark in marks)
    if numbered:
        marks = _labelled(bare, [str(point.number) for point in known])
    best = _front(known, less_y=less_y)
    return Scatter(
        x=x,
        y=y,
        marks=marks,
        lines=(
            *(Line(x.at(value), label, upright=True) for value, label in x_lines),
            *(Line(y.at(value), label, upright=False) for value, label in y_lines),
        ),
        front=" ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in best) if len(best) > 1 else "",
        best=best,
        numbered=numbered,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def curve(values: Sequence[float]) -> Curve | None:
    """Return a curve over positions from 0, several positions to a point where there are many; None without values."""
    known = [value if math.isfinite(value) else 0.0 for value in values]
    if len(known) < 2:
        return None
    size = -(-len(known) // _MOST_BINS)
    bins = [_mean(known[i : i + size]) for i in range(0, len(known), size)]
    x = linear_axis((0.0, float(len(known))), LEFT, RIGHT, zero=True)
    y = linear_axis(bins, BOTTOM, TOP, zero=True)
    places = ((x.at(min(len(known) - 1.0, (i + 0.5) * size - 0.5)), y.at(value)) for i, value in enumerate(bins))
    return Curve(
        x=x,
        y=y,
        points=" ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y in places),
        mean=_mean(known),
        mean_at=y.at(_mean(known)),
        first=_mean(known[: max(1, len(known) // 8)]),
        last=_mean(known[len(known) // 2 :]),
    )


def strip(rows: Iterable[tuple[str, Sequence[float], float | None]]) -> Strip | None:
    """Return samples on one axis from zero on: by name, the samples and their median; None without a sample."""
    known = [
        (name, [value for value in samples[:50] if math.isfinite(value)], median)
        for name, samples, median in rows
        if samples or median is not None
    ]
    values = [value for _, samples, median in known for value in (*samples, median) if value is not None]
    if not any(samples for _, samples, _ in known):
        return None
    x = linear_axis(values, 92, RIGHT, zero=True)
    made = ((n, tuple(map(x.at, s)), None if m is None or not math.isfinite(m) else x.at(m)) for n, s, m in known)
    return Strip(x, tuple(made))


def fraction(value: float, whole: float = 1.0) -> float:
    """Return the share of a bar that is filled, from 0 to 1; 0 where it is no number."""
    share = value / whole if whole else 0.0
    return min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0


def shares(weights: dict[str, int], most: int = 8) -> tuple[tuple[str, int, float, float], ...]:
    """Return the parts of a bar, the largest first: name, weights, where it begins and how long it is, from 0 to 1.

    What comes after the first `most` is lumped together.
    """
    ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[most:])
    parts = ordered[:most] + ([("others", rest)] if rest else [])
    total = sum(number for _, number in parts)
    made, start = [], 0.0
    for name, number in parts:
        length = number / total if total else 0.0
        made.append((name, number, round(start, 4), round(length, 4)))
        start += length
    return tuple(made)
