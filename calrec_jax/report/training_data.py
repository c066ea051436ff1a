"""The report's section on training data, from what `inspection.describe` told when a run began."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping
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


_OF_A_STAGE = (
    "mixture",
    "steps",
    "rows",
    "row_length",
    "max_segments",
    "targets",
    "rates",
    "domains",
)
_OF_A_DOMAIN = (
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
_OF_TOKENS = ("mean", "p99", "histogram")
_AGAIN = "run `calrec train` again, which keeps what is trained; or remove the file"


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What a data.json holds. Raises CalrecError where it is damaged or of an earlier version."""
    told = files.read_json(path)
    files.require(path, told, (), _AGAIN)
    for stage in told.values():
        files.require(path, stage, _OF_A_STAGE, _AGAIN)
        for domain in stage["domains"]:
            files.require(path, domain, _OF_A_DOMAIN, _AGAIN)
            files.require(path, domain["tokens"], _OF_TOKENS, _AGAIN)
    return told


def stages(told: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of what each stage trains on."""
    return "\n".join(_stage(*stage) for stage in told.items())


def _stage(name: str, told: Mapping[str, Any]) -> str:
    domains = told["domains"]
    rows = [
        (breakable(d["name"]), [f"<td>{show(d)}</td>" for _, show in _COLUMNS]) for d in domains
    ]
    bars = "".join(
        charts.bar_chart(f"tokens of an example: {d['name']}", **d["tokens"]["histogram"])
        for d in domains
    )
    shown = "".join(_example(d["name"], example) for d in domains for example in d["shown"])
    return f"""<h3>{html.escape(name)}: {html.escape(told["mixture"])}</h3>
<p>{told["steps"]:,} steps of {told["rows"]:,} rows of {told["row_length"]:,} tokens, at most
{told["max_segments"]} examples a row; targets: {html.escape(told["targets"])};
rates: {html.escape(told["rates"])}.</p>
{table([title for title, _ in _COLUMNS], rows)}
<div class="charts">{bars}</div>
{shown}"""


def _example(domain: str, spans) -> str:
    parts = "".join(
        f'<h4>{html.escape(kind)}</h4><p class="text">{html.escape(text)}</p>'
        for kind, text in spans
    )
    return f"<details><summary>An example of {html.escape(domain)}</summary>{parts}</details>"
