"""Line and bar charts as SVG, small enough to stand in a page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 22, 34, 30
_KEY = 84  # width of a line's name
_COLOURS = ("#3b7dd8", "#d8703b", "#4aa564", "#8a63c9")
_MAX_POINTS = 400  # of one line; more could not be distinguished

Points = Sequence[tuple[float, float]]
"""(x, y) each."""


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """An SVG of several lines over a common axis of steps.

    Args:
      series: {name: (x, y) in the order of x}; values that are not finite are left out.
    """
    lines = {name: _thinned(points) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return f"<p>No values of {html.escape(title)} yet.</p>"
    points = [point for line in lines.values() for point in line]
    x0, x1 = _bounds([x for x, _ in points])
    y0, y1 = _bounds([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y1 - y) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [_text(_LEFT, 20, title, "start", bold=True)]
    for y in _ticks(y0, y1):
        parts += _gridline(place(x0, y)[1], f"{y:g}")
    for x in _ticks(x0, x1):
        parts.append(_text(place(x, y0)[0], _HEIGHT - 10, f"{x:,.10g}", "middle"))
    for i, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(_line([place(x, y) for x, y in line], colour))
        left = _WIDTH - _RIGHT - _KEY * (len(lines) - i)
        parts.append(f'<path d="M{left} 16h12" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(left + 16, 20, name, "start"))
    return _svg(title, parts)


def bar_chart(
    title: str, edges: Sequence[float], counts: Sequence[int], whole: bool = False
) -> str:
    """An SVG of a histogram.

    Args:
      edges: ascending, one more than `counts`.
      whole: whether values are whole numbers; a bin then holds those below its upper edge.
    """
    width = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    high, most = _HEIGHT - _TOP - _BOTTOM, max([*counts, 1])
    parts = [_text(_LEFT, 20, title, "start", bold=True)]
    for count in _ticks(0, most):
        if count == int(count):
            down = round(_HEIGHT - _BOTTOM - high * count / most, 1)
            parts += _gridline(down, f"{count:,.0f}")
    for i, count in enumerate(counts):
        tall = round(high * count / most, 1)
        left, top = round(_LEFT + i * width, 1), round(_HEIGHT - _BOTTOM - tall, 1)
        label = _whole_bin(edges, i) if whole else f"{edges[i]:,.0f} to {edges[i + 1]:,.0f}"
        parts.append(
            f'<rect x="{left}" y="{top}" width="{round(width - 1, 1)}" height="{tall}" '
            f'fill="{_COLOURS[0]}"><title>{label}: {count:,}</title></rect>'
        )
    if whole:
        for i in sorted({0, len(counts) // 2, len(counts) - 1}):
            centre = round(_LEFT + (i + 0.5) * width, 1)
            parts.append(_text(centre, _HEIGHT - 10, _whole_bin(edges, i), "middle"))
    else:
        for i in (0, len(counts) // 2, len(counts)):
            place = round(_LEFT + i * width, 1)
            parts.append(_text(place, _HEIGHT - 10, f"{edges[i]:,.0f}", "middle"))
    return _svg(title, parts)


def _whole_bin(edges: Sequence[float], i: int) -> str:
    first, last = edges[i], edges[i + 1] - 1
    return f"{first:,.0f}" if first == last else f"{first:,.0f}–{last:,.0f}"


def _gridline(down: float, label: str) -> tuple[str, str]:
    """A horizontal line, and its label."""
    line = f'<path d="M{_LEFT} {down}H{_WIDTH - _RIGHT}" stroke="currentColor" opacity=".15"/>'
    return line, _text(_LEFT - 6, down + 4, label, "end")


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}" '
        f'font-family="inherit" font-size="13">{"".join(parts)}</svg>'
    )


def _line(places: Points, colour: str) -> str:
    """A polyline, or a dot where there is one point alone."""
    if len(places) == 1:
        return '<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*places[0], colour)
    path = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor"{weight}>'
        f"{html.escape(text)}</text>"
    )


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most about `_MAX_POINTS` of the finite points, evenly chosen, and the last one."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    every = math.ceil(len(finite) / _MAX_POINTS) or 1
    return finite if every == 1 else [*finite[:-1:every], finite[-1]]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds the values, wide enough for `_ticks`."""
    low, high = min(values), max(values)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return low, high
    margin = abs(low) / 10 or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Three to five round numbers from low to high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
