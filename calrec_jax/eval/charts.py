"""Line charts as SVG, small enough to stand in a page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 34, 30
_COLOURS = ("#3b7dd8", "#d8703b", "#4aa564", "#8a63c9")


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG of several lines over a common axis.

    Args:
      series: {name: (x, y) in the order of x}; values that are not finite are left out.
    """
    drawn = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    points = [point for line in drawn.values() for point in line]
    if not points:
        return f"<p>No values of {html.escape(title)} yet.</p>"
    x0, x1 = _bounds([x for x, _ in points])
    y0, y1 = _bounds([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y1 - y) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [_text(_LEFT, 20, title, "start", bold=True)]
    for y in _ticks(y0, y1):
        _, down = place(x0, y)
        parts.append(
            f'<path d="M{_LEFT} {down}H{_WIDTH - _RIGHT}" stroke="currentColor" opacity=".15"/>'
        )
        parts.append(_text(_LEFT - 6, down + 4, f"{y:.4g}", "end"))
    for x in _ticks(x0, x1):
        parts.append(_text(place(x, y0)[0], _HEIGHT - 10, f"{x:g}", "middle"))
    for i, (name, line) in enumerate(drawn.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join("{},{}".format(*place(x, y)) for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(_text(_WIDTH - _RIGHT - 90 * (len(drawn) - 1 - i), 20, name, "end", colour))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}" '
        f'font-family="inherit" font-size="12">{"".join(parts)}</svg>'
    )


def _text(x, y, text: str, anchor: str, colour: str = "currentColor", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{html.escape(text)}</text>"
    )


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from low to high."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    while (high - low) / step > 5:
        step *= 2 if round(step / 10 ** math.floor(math.log10(step))) in (1, 5) else 2.5
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
