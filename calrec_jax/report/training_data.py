"""The report's section on training data, from what `inspection.describe` returned."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.report import charts, files
from calrec_jax.report.page import breakable, table

_COLUMNS = (
    ("items", lambda d: f"{d['items']:,}"),
    ("examples an epoch", lambda d: f"{d['examples']:,}"),
    ("share of rows", lambda d: f"{d['share']:.1%}"),
    ("rows filled", lambda d: f"{d['fill']:.1%}"),
    ("steps an epoch", lambda d: f"{d['steps_per_epoch']:,.1f}"),
    ("epochs", lambda d: f"{d['epochs']:.2f}"),
    ("mean tokens", lambda d: f"{d['tokens']['mean']:,.0f}"),
    ("99 % of tokens", lambda d: f"{d['tokens']['p99']:,.0f}"),
    ("histories cut", lambda d: f"{d['histories_cut']:.1%}"),
    ("items cut", lambda d: f"{d['items_cut']:.1%}"),
)
_STAGE_PARTS = (
    "mixture",
    "steps",
    "rows",
    "row_length",
    "max_segments",
    "targets",
    "rates",
    "domains",
)
_DOMAIN_PARTS = (
    "name",
    "items",
    "examples",
    "share",
    "fill",
    "steps_per_epoch",
    "epochs",
    "tokens",
    "histories_cut",
    "items_cut",
    "shown",
)
_TOKEN_PARTS = ("mean", "p99", "histogram")
_REMEDY = "run `calrec train` again, which keeps what is trained; or remove the file"


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What a data.json holds. Raises CalrecError where it is damaged or of an earlier version."""
    described = files.read_json(path)
    files.require(path, described, (), _REMEDY)
    for stage in described.values():
        files.require(path, stage, _STAGE_PARTS, _REMEDY)
        for domain in stage["domains"]:
            files.require(path, domain, _DOMAIN_PARTS, _REMEDY)
            files.require(path, domain["tokens"], _TOKEN_PARTS, _REMEDY)
    return described


def stages(described: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of what each stage trains on, from what a data.json holds."""
    return "\n".join(_stage(*stage) for stage in described.items())


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    domains = stage["domains"]
    rows = [
        (breakable(d["name"]), [f"<td>{show(d)}</td>" for _, show in _COLUMNS]) for d in domains
    ]
    bars = "".join(
        charts.bar_chart(f"tokens of an example: {d['name']}", **d["tokens"]["histogram"])
        for d in domains
    )
    shown = "".join(_example(d["name"], example) for d in domains for example in d["shown"])
    return f"""<h3>{html.escape(name)}: {html.escape(stage["mixture"])}</h3>
<p>{stage["steps"]:,} steps of {stage["rows"]:,} rows of {stage["row_length"]:,} tokens, at most
{stage["max_segments"]} examples a row; targets: {html.escape(stage["targets"])};
rates: {html.escape(stage["rates"])}.</p>
{table([title for title, _ in _COLUMNS], rows)}
<div class="charts">{bars}</div>
{shown}"""


def _example(domain: str, spans: Sequence[Sequence[str]]) -> str:
    """An example, by its spans: (kind, text) each."""
    parts = "".join(
        f'<h4>{html.escape(kind)}</h4><p class="text">{html.escape(text)}</p>'
        for kind, text in spans
    )
    return f"<details><summary>An example of {html.escape(domain)}</summary>{parts}</details>"
