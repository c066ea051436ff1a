"""Charts: what is drawn stays inside, whatever the values."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.report import charts

values = st.floats(allow_nan=True, allow_infinity=True, width=32)
points = st.lists(values, max_size=30).map(lambda ys: list(enumerate(ys)))


def coordinates(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line."""
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]
        for line in re.findall(r'points="([^"]*)"', svg)
    ]


@given(points, points)
def test_any_values_give_a_drawing_inside_its_frame(
    first: list[tuple[float, ...]], second: list[tuple[float, ...]]
) -> None:
    svg = charts.line_chart("loss", {"train": first, "validation": second})
    ET.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
    for line in coordinates(svg):
        assert all(0 <= x <= 480 and 0 <= y <= 250 for x, y in line)


def test_lines_fall_where_the_values_fall() -> None:
    falling = [(0, 4), (5, 3), (10, 2)]
    ((start, *_, end),) = coordinates(charts.line_chart("loss", {"train": falling}))
    assert start[0] < end[0] and start[1] < end[1]  # SVG counts downwards


def test_values_that_are_not_finite_are_left_out() -> None:
    line = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    (drawn,) = coordinates(charts.line_chart("loss", {"train": line}))
    assert len(drawn) == 2


def test_nothing_to_draw_is_shown() -> None:
    assert "No values of loss" in charts.line_chart("loss", {"train": [(0, math.nan)]})


def test_one_point_is_a_dot() -> None:
    svg = charts.line_chart("loss", {"validation": [(100, 1.25)]})
    assert "<circle" in svg and "polyline" not in svg


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    line = [(step, 1 / (step + 1)) for step in range(100_001)]
    thinned = charts._thinned(line)
    assert 200 < len(thinned) <= 401
    assert (thinned[0], thinned[-1]) == (line[0], line[-1])
    assert charts._thinned(line[:300]) == line[:300]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1.3, 5.9, [2, 3, 4, 5]),
        (0.11, 0.19, [0.12, 0.14, 0.16, 0.18]),
        (20, 2000, [500, 1000, 1500, 2000]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[Any]) -> None:
    assert charts._ticks(low, high) == ticks


def test_names_are_escaped() -> None:
    assert "<b>" not in charts.line_chart("<b>", {"<b>": [(0, 1), (1, 2)]})
    assert "<b>" not in charts.bar_chart("<b>", [0, 1], [1])


def bars(svg: str) -> list[dict[str, float]]:
    """x, y, width and height of each bar."""
    return [
        {name: float(value) for name, value in bar.attrib.items() if name != "fill"}
        for bar in ET.fromstring(svg).iter("rect")
    ]


def labels(svg: str) -> list[str]:
    """The texts of a chart, but for its title."""
    return [text.text for text in ET.fromstring(svg).iter("text")][1:]


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=40), st.booleans())
def test_bars_stand_on_the_axis_inside_the_frame(counts: list[int], whole: bool) -> None:
    drawn = bars(charts.bar_chart("users", range(len(counts) + 1), counts, whole))
    assert len(drawn) == len(counts)
    for bar, count in zip(drawn, counts, strict=True):
        assert bar["x"] >= 48 and bar["x"] + bar["width"] <= 480 - 22
        assert bar["y"] + bar["height"] == pytest.approx(250 - 30, abs=0.1)
        assert bar["height"] == pytest.approx(186 * count / max([*counts, 1]), abs=0.1)


def test_bins_of_whole_numbers_are_named_by_what_is_in_them() -> None:
    svg = charts.bar_chart("users", [1, 2, 4, 6], [5, 1200, 0], whole=True)
    assert re.findall("<title>(.*?)</title>", svg) == ["1: 5", "2–3: 1,200", "4–5: 0"]
    assert labels(svg) == ["0", "500", "1,000", "1", "2–3", "4–5"]
    assert labels(charts.bar_chart("users", [7, 8], [2], whole=True)) == ["0", "1", "2", "7"]


def test_other_bins_are_named_by_their_edges() -> None:
    svg = charts.bar_chart("tokens", [0.0, 10.25, 20.5], [2, 1])
    assert re.findall("<title>(.*?)</title>", svg) == ["0 to 10: 2", "10 to 20: 1"]
    assert labels(svg) == ["0", "1", "2", "0", "10", "20"]


def test_counts_have_no_fractions() -> None:
    assert labels(charts.bar_chart("users", [0, 1], [1]))[:2] == ["0", "1"]
    assert labels(charts.bar_chart("users", [0, 1], [0]))[:2] == ["0", "1"]


def test_lines_have_a_key() -> None:
    svg = charts.line_chart("loss", {"train": [(0, 1), (1, 2)], "validation": [(0, 2)]})
    assert labels(svg)[-2:] == ["train", "validation"]
    for colour in charts._COLOURS[:2]:
        assert svg.count(colour) == 2  # the line and its key
