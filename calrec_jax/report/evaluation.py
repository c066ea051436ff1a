"""The report's section on one evaluation: metrics, differences, slices of the users."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.report import charts, page, plain
from calrec_jax.report.page import (
    Section,
    breakable,
    delta_table,
    metric_table,
    table,
    value_cell,
)

SLICINGS = {
    "target": "Target: warm if it occurs in training, otherwise cold",
    "purchase": "Purchase: the target is new to the user, or a repeat",
    "history": "History, in events",
    "day": "Day: the target was bought on the day of the event before it, or later",
    "domain": "Domain",
}
_SLICE_METRICS = ("ndcg@10", "recall@10", "mrr")  # the first is shown first
_SEEN = {
    "allow": "",
    "exclude": ", without the items of a user's history",
    "exclude_last": ", without the last item of a user's history",
}


def section(evaluation: str, result: Mapping[str, Any]) -> Section:
    """The section on what a metrics.json holds.

    Args:
      evaluation: the name of the evaluation.
      result: the file, as `files.read_metrics` reads it.
    """
    models = {result["model"]: result["metrics"], **result["baselines"]}
    return (
        _heading(evaluation, result),
        f"""<p>{_setting(result)}. {page.VALUES}</p>
{metric_table(models)}
<p>{"<br>".join(map(html.escape, plain.choices(result)))}</p>
<h3>{breakable(result["model"])} minus each baseline, on the same users</h3>
{delta_table(result["paired"])}
<h3>Beyond accuracy</h3>
{beyond_accuracy_table(result["beyond_accuracy"])}
<h3>Slices of the users</h3>
{_slices(result)}
<div class="charts">{_histories(result)}</div>""",
    )


def _heading(evaluation: str, result: Mapping[str, Any]) -> str:
    split = html.escape(result["split"])
    named = "" if evaluation == result["split"] else f": {breakable(evaluation)}"
    return f"{breakable(result['domain'])}, {split} split{named}"


def _setting(result: Mapping[str, Any]) -> str:
    """A sentence on the measured users, the items and how these were ranked."""
    config = result["config"]
    sample = "" if result["n"] == result["users"] else f" (a sample of {result['users']:,})"
    parts = [
        f"{result['n']:,} users{sample}",
        f"the whole catalogue of {result['items']:,} items{_SEEN[config['seen']]}",
        f"checkpoint {html.escape(config['checkpoint'])}",
    ]
    if result["model"] == "calrec":
        parts.append(f"retrieval {html.escape(config['retrieval'])}")
    if config["shuffle_history"]:
        parts.append("histories shuffled")
    return ", ".join(parts)


def beyond_accuracy_table(models: Mapping[str, Mapping[str, float]]) -> str:
    """A table of {model: {measure: value}}, and a paragraph that explains the measures."""
    columns = list(next(iter(models.values())))
    rows = [
        (breakable(model), [f"<td>{values[column]:.4f}</td>" for column in columns])
        for model, values in models.items()
    ]
    return f"""{table(columns, rows)}
<p class="soft">Of the first ten items of each user. Coverage: the share of the catalogue that
anyone is recommended. Gini: how unequally often items are, from 0, all as often, to 1, few always.
Novelty: how rare they are in training, as the mean of −log₂ of their share of its events, in
bits.</p>"""


def _histories(result: Mapping[str, Any]) -> str:
    return charts.bar_chart("users by events in their history", **result["histories"], whole=True)


def _slices(result: Mapping[str, Any]) -> str:
    """A table for each slicing and metric; the page's script shows the tables of one metric."""
    several = {k: slices for k, slices in result["slices"].items() if len(slices) > 1}
    if not several:
        return "<p>All users are in the same slices.</p>"
    options = "".join(f"<option>{metric}</option>" for metric in _SLICE_METRICS)
    parts = [
        f'<div data-metrics><div class="controls" hidden><label>metric<select>{options}</select>'
        f"</label></div>"
    ]
    for slicing, slices in several.items():
        parts.append(f"<h4>{html.escape(SLICINGS.get(slicing, slicing))}</h4>")
        for metric in _SLICE_METRICS:
            parts.append(
                f'<div data-metric="{metric}">{_slice_table(result, slices, metric)}</div>'
            )
    return "\n".join([*parts, "</div>"])


def _slice_table(result: Mapping[str, Any], slices: Mapping[str, Any], metric: str) -> str:
    names = [result["model"], *result["baselines"]]
    rows = []
    for slice_name, part in slices.items():
        models = [part["metrics"], *(part["baselines"][name] for name in names[1:])]
        share = f"{plain.users(part['n'])}, {part['n'] / result['n']:.1%}"
        cells = _cells_with_best_marked([metrics[metric] for metrics in models])
        rows.append((f"{breakable(slice_name)}<br><small>{share}</small>", cells))
    return table(names, rows, corner=metric)


def _cells_with_best_marked(values: Sequence[Mapping[str, float]]) -> list[str]:
    """A cell for each value; the best ones are marked."""
    best = max(v["value"] for v in values)
    return [value_cell(v, "best" if v["value"] == best else "", ties=False) for v in values]
