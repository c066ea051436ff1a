"""A comparison of runs: tables for terminals, and a page."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Iterator

from calrec_jax.report import plain
from calrec_jax.report.compare import Comparison
from calrec_jax.report.evaluation import SLICINGS, beyond_accuracy_table
from calrec_jax.report.page import (
    VALUES,
    Section,
    breakable,
    delta_cell,
    delta_table,
    metric_table,
    table,
    write,
)

_SLICE_METRICS = ("recall@10", "ndcg@10")
_MEASURES = "coverage, Gini and novelty are of all users of a run"


def text(comparison: Comparison) -> str:
    """All tables, for a terminal."""
    first, *others = comparison.folders
    differences = {f"{name} - {first}": comparison.paired[name] for name in others}
    width = max(map(len, [first, *differences]))
    lines = [*plain.aligned(_runs(comparison)), "", _users(comparison)]
    if comparison.settings:
        lines += ["", *plain.aligned(_settings(comparison))]
    lines += ["", plain.heading(width)]
    for name, values in comparison.metrics.items():
        lines += plain.rows(name, width, values, "value")
    lines.append("")
    for name, values in differences.items():
        lines += plain.rows(name, width, values, "delta", "+")
    lines += ["", plain.INTERVALS, *_slice_lines(comparison), "", _MEASURES]
    columns = list(comparison.beyond_accuracy[first])
    rows = [
        [name, *(f"{values[column]:.4f}" for column in columns)]
        for name, values in comparison.beyond_accuracy.items()
    ]
    return "\n".join([*lines, *plain.aligned([["", *columns], *rows])])


def _runs(comparison: Comparison) -> list[list[str]]:
    rows = [
        [name, f"{comparison.users[name]:,}", str(folder)]
        for name, folder in comparison.folders.items()
    ]
    return [["run", "users", "evaluation"], *rows]


def _users(comparison: Comparison) -> str:
    """A sentence on the users that the figures are of."""
    sentence = f"{comparison.common:,} users that all have, {comparison.items:,} items"
    extra = {name: n - comparison.common for name, n in comparison.users.items()}
    left_out = [f"{n:,} of {name}" for name, n in extra.items() if n > 0]
    if left_out:
        sentence += f"; left out, since others do not have them: {', '.join(left_out)}"
    return sentence


def _settings(comparison: Comparison) -> list[list[str]]:
    rows = [[setting, *values.values()] for setting, values in comparison.settings.items()]
    return [["settings that differ", *comparison.folders], *rows]


def _slice_lines(comparison: Comparison) -> Iterator[str]:
    """The lines of a table of differences to the first run, for each slicing."""
    first = next(iter(comparison.folders))
    for slicing, slices in comparison.slices.items():
        labels = {
            (part, name): f"{part} ({plain.users(values['n'])}): {name} - {first}"
            for part, values in slices.items()
            for name in values["paired"]
        }
        width = max(map(len, labels.values()))
        yield ""
        yield SLICINGS.get(slicing, slicing)
        yield plain.heading(width, _SLICE_METRICS)
        for (part, name), label in labels.items():
            values = slices[part]["paired"][name]
            yield from plain.rows(label, width, values, "delta", "+", _SLICE_METRICS)


def write_page(comparison: Comparison, path: pathlib.Path) -> None:
    """Writes the same tables as a self-contained page."""
    sections = [
        ("Runs", _runs_html(comparison)),
        ("Metrics", _metrics_html(comparison)),
        *_slices_html(comparison),
        ("Beyond accuracy", _beyond_html(comparison)),
    ]
    write(path, f"CALRec runs: {', '.join(comparison.folders)}", sections)


def _runs_html(comparison: Comparison) -> str:
    (_, *columns), *rows = _runs(comparison)
    parts = [_text_table(columns, rows), f"<p>{html.escape(_users(comparison))}</p>"]
    if comparison.settings:
        (corner, *columns), *rows = _settings(comparison)
        parts.append(f"<h3>{corner.capitalize()}</h3>{_text_table(columns, rows)}")
    else:
        parts.append("<p>All settings of the evaluations are the same.</p>")
    return "\n".join(parts)


def _text_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are plain texts."""
    cells = [
        (breakable(first), [f"<td>{breakable(cell)}</td>" for cell in others])
        for first, *others in rows
    ]
    return table(columns, cells, kind="words")


def _metrics_html(comparison: Comparison) -> str:
    first = next(iter(comparison.folders))
    return f"""<p>{VALUES}</p>
{metric_table(comparison.metrics)}
<h3>Each minus {breakable(first)}, on the same users</h3>
{delta_table(comparison.paired)}"""


def _slices_html(comparison: Comparison) -> Iterator[Section]:
    if not comparison.slices:
        return
    first, *others = comparison.folders
    columns = [f"{name}: {metric}" for name in others for metric in _SLICE_METRICS]
    parts = [f"<p>Differences: each minus {breakable(first)}, with 95 % intervals.</p>"]
    for slicing, slices in comparison.slices.items():
        rows = []
        for part, values in slices.items():
            share = f"{plain.users(values['n'])}, {values['n'] / comparison.common:.1%}"
            cells = [
                delta_cell(values["paired"][name][metric])
                for name in others
                for metric in _SLICE_METRICS
            ]
            rows.append((f"{breakable(part)}<br><small>{share}</small>", cells))
        parts.append(f"<h3>{html.escape(SLICINGS.get(slicing, slicing))}</h3>")
        parts.append(table(columns, rows))
    yield "Slices of the users", "\n".join(parts)


def _beyond_html(comparison: Comparison) -> str:
    return f"<p>Of all users of each run.</p>{beyond_accuracy_table(comparison.beyond_accuracy)}"
