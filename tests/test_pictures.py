import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.validators import pictures
from edgekiln.validators.pictures import BOTTOM, LEFT, RIGHT, TOP, Point, curve, linear_axis, log_axis, scatter, shares

NUMBERS = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


def points(*pairs):
    return [Point(f"build {i}", i, x, y) for i, (x, y) in enumerate(pairs, start=1)]


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_all_values_at_round_places(values, zero):
    axis = linear_axis(values, 0.0, 100.0, zero=zero)
    slack = 1e-8 * max(abs(axis.low), abs(axis.high))
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    assert 2 <= len(axis.ticks) <= 8
    assert all(0 <= tick.at <= 100 for tick in axis.ticks)
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)


@given(st.lists(st.floats(min_value=1e-12, max_value=1e12), min_size=1, max_size=20))
def test_a_logarithmic_axis_keeps_the_order_and_has_few_ticks(values):
    axis = log_axis(values, 0.0, 100.0)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert 2 <= len(axis.ticks) <= 12
    assert axis.low <= min(values)
    assert axis.high >= max(values)


def test_equal_ratios_are_equally_long():
    axis = log_axis((0.001, 1.0), 0.0, 100.0)
    assert axis.at(0.1) - axis.at(0.01) == pytest.approx(axis.at(1.0) - axis.at(0.1), abs=0.2)


@pytest.mark.parametrize(
    ("value", "step", "label"),
    [
        (0, 1, "0"),
        (0.05, 0.05, "0.05"),
        (0.25, 0.05, "0.25"),
        (0.2, 0.05, "0.20"),
        (400, 100, "400"),
        (1000, 200, "1000"),
        (20000, 5000, "20k"),
        (1e-5, 1e-5, "10⁻⁵"),
        (3e-6, 1e-6, "3·10⁻⁶"),
        (1.5e8, 5e7, "1.5·10⁸"),
    ],
)
def test_a_tick_has_as_few_digits_as_tell_it_from_the_next(value, step, label):
    assert pictures.short(value, step) == label


def test_better_builds_lie_lower_and_further_left():
    picture = scatter(points((100, 0.1), (200, 0.05), (300, 0.2)), less_y=True)
    first, second, third = picture.marks
    assert first.x < second.x < third.x
    assert second.y > first.y > third.y  # down is more in SVG
    assert all(LEFT <= mark.x <= RIGHT and TOP <= mark.y <= BOTTOM for mark in picture.marks)
    assert [point.number for point in picture.best] == [1, 2]


def test_the_front_of_speed_rises():
    picture = scatter(points((100, 10), (200, 5), (300, 20)), less_y=False)
    assert [point.number for point in picture.best] == [1, 3]


def test_a_wide_range_is_logarithmic_and_a_zero_among_it_is_not():
    assert scatter(points((1, 1e-5), (2, 1.0)), less_y=True).y.log
    assert not scatter(points((1, 0.0), (2, 1.0)), less_y=True).y.log


def box(mark):
    width = len(mark.label) * pictures._CHARACTER
    left = mark.label_x - {"start": 0, "middle": 0.5, "end": 1}[mark.anchor] * width
    return left, mark.label_y - 9, left + width, mark.label_y + 2


def test_labels_meet_no_other_label():
    crowd = [Point(str(i), i, 300 + i % 7, 0.02 + i / 500) for i in range(1, 60)] + [Point("far", 60, 900, 9)]
    labelled = [mark for mark in scatter(crowd, less_y=True).marks if mark.label]
    assert 5 < len(labelled) < 60
    for one, other in itertools.combinations(map(box, labelled), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_names_stand_beside_the_marks_or_numbers_do():
    apart = scatter(points((100, 0.1), (200, 0.2), (300, 0.3)), less_y=True)
    assert [mark.label for mark in apart.marks] == ["build 1", "build 2", "build 3"]
    assert not apart.numbered
    near = scatter([Point("a name of many letters " * 2, i, 100 + i, 0.1) for i in range(1, 9)], less_y=True)
    assert near.numbered
    assert {mark.label for mark in near.marks} <= {str(i) for i in range(1, 9)} | {""}


def test_what_is_not_finite_is_left_out():
    assert scatter(points((math.nan, 1), (1, math.inf)), less_y=True) is None
    assert len(scatter(points((math.nan, 1), (1, 2)), less_y=True).marks) == 1
    assert scatter([], less_y=True) is None
    assert curve([math.nan, 1.0, math.inf]) is not None
    assert curve([1.0]) is None


@pytest.mark.parametrize("count", [2, 100, 255, 4096, 100_000])
def test_a_curve_has_few_points_and_the_mean_of_all(count):
    values = [1.0 if i < count // 2 else 3.0 for i in range(count)]
    picture = curve(values)
    assert 2 <= len(picture.points.split()) <= 128
    assert picture.mean == pytest.approx(math.fsum(values) / count)
    assert picture.first == 1.0
    assert picture.last == 3.0


@pytest.mark.parametrize(
    ("value", "whole", "share"),
    [(1, 2, 0.5), (3, 2, 1), (-1, 2, 0), (1, 0, 0), (math.nan, 1, 0), (math.inf, math.inf, 0)],
)
def test_a_bar_is_filled_from_none_to_all(value, whole, share):
    assert pictures.fraction(value, whole) == share


def test_a_strip_has_every_sample_of_everything_that_was_timed():
    strip = pictures.strip([("artifact", (40.0, 41.0), 40.5), ("reference", (), 5.0), ("nothing", (), None)])
    assert [(name, len(places)) for name, places, _ in strip.rows] == [("artifact", 2), ("reference", 0)]
    assert strip.rows[1][2] < strip.rows[0][1][0] < strip.rows[0][1][1]
    assert pictures.strip([("artifact", (), 4.0)]) is None


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**12), max_size=30))
def test_the_parts_of_a_bar_lie_side_by_side_and_sum_to_all(weights):
    parts = shares(weights)
    assert len(parts) <= 9
    assert sum(number for _, number, _, _ in parts) == sum(weights.values())
    for (_, _, start, length), (_, _, following, _) in itertools.pairwise(parts):
        assert following == pytest.approx(start + length, abs=2e-4)
