"""A self-contained page: its style, its one script, and the tables that pages share."""

from __future__ import annotations

import base64
import hashlib
import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from calrec_jax import files
from calrec_jax.metrics import METRICS
from calrec_jax.report.plain import short

Section = tuple[str, str]
"""HTML of a section's heading, and HTML of the section below it."""

VALUES = (
    "Values are expected over random tie-breaking, with 95 % bootstrap intervals over users; "
    "“ties”, where there are any, are the values if every tie went against or for the target."
)

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --shade: #8881;
  --soft: light-dark(#5c5c5c, #adadad); --better: light-dark(#1a7f3c, #62cf87);
  --worse: light-dark(#b3261e, #f2887f); --best: light-dark(#e2f3e6, #1d3a26); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
h4 { margin: 1rem 0 .3rem; }
p { max-width: 50rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.scroll { overflow-x: auto; max-width: max-content; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; padding-left: 0;
  background: Canvas; }
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 6rem; }
th { vertical-align: bottom; white-space: normal; font-size: .95em; }
small, .soft { color: var(--soft); } small { font-size: .8em; }
.better { color: var(--better); } .worse { color: var(--worse); }
td.best { background: var(--best); font-weight: 600; } td.best small { font-weight: 400; }
li.target { font-weight: 600; } .mark { color: var(--better); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }
.charts svg { width: 100%; max-width: 40rem; height: auto; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem;
  margin: .5rem 0; }
summary { cursor: pointer; }
ol { padding-left: 2.2rem; margin: .3rem 0; }
pre { overflow-x: auto; font-size: .85rem; } .text { white-space: pre-wrap; }
.controls:not([hidden]) { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end;
  margin: .8rem 0; }
.controls label { display: flex; flex-direction: column; font-size: .85rem; color: var(--soft); }
.controls input { width: 16rem; max-width: 100%; box-sizing: border-box; }
input, select, button { font: inherit; font-size: 1rem; color: CanvasText; padding: .2rem .4rem;
  border: 1px solid #8888; border-radius: .3rem; background: Canvas; max-width: 100%; }
button:disabled { opacity: .4; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .7rem; } h1 { font-size: 1.5rem; }
  th, td { padding: .3rem .45rem; } .charts svg { font-size: 14.5px; }
  th:first-child, td:first-child { white-space: normal; min-width: 5.5rem; max-width: 8.5rem;
  overflow-wrap: break-word; } }
"""

# It reads text and sets attributes, and never makes HTML of anything.
_SCRIPT = """
"use strict";
for (const box of document.querySelectorAll("[data-metrics]")) {
  const select = box.querySelector("select");
  const show = () => {
    for (const table of box.querySelectorAll("[data-metric]"))
      table.hidden = table.dataset.metric !== select.value;
  };
  box.querySelector(".controls").hidden = false;
  select.addEventListener("change", show);
  show();
}
for (const box of document.querySelectorAll("[data-users]")) {
  const users = [...box.querySelectorAll("details")].map((element) => ({
    element,
    traits: JSON.parse(element.dataset.traits),
    text: [...element.querySelectorAll(".find")].map((x) => x.textContent).join("\\n")
      .toLowerCase(),
  }));
  const search = box.querySelector("input");
  const selects = [...box.querySelectorAll("select")];
  const [previous, next] = box.querySelectorAll("button");
  const size = Number(box.dataset.users);
  let first = 0;
  const show = () => {
    const words = search.value.toLowerCase().split(/\\s+/);
    const found = users.filter((user) => words.every((word) => user.text.includes(word))
      && selects.every((x) => !x.value || user.traits[x.name] === x.value));
    const shown = new Set(found.slice(first, first + size));
    for (const user of users) user.element.hidden = !shown.has(user);
    const range = found.length > size ? `${first + 1} to ${first + shown.size} of ` : "";
    const all = found.length === users.length ? "" : ` found, of ${users.length}`;
    box.querySelector("output").textContent = `${range}${found.length}${all} users`;
    previous.disabled = first === 0;
    next.disabled = first + size >= found.length;
  };
  const move = (to) => { first = to; show(); };
  for (const control of [search, ...selects]) control.addEventListener("input", () => move(0));
  previous.addEventListener("click", () => move(first - size));
  next.addEventListener("click", () => move(first + size));
  for (const controls of box.querySelectorAll(".controls")) controls.hidden = false;
  show();
}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
 script-src 'sha256-{digest}'">
<title>{title}</title>
<style>{style}</style></head><body>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
<script>{script}</script>
</body></html>
"""


def write(path: pathlib.Path, title: str, sections: Iterable[Section]) -> None:
    """Writes a page. Half a surrogate pair, which some texts hold and UTF-8 cannot, becomes "?"."""
    files.write_text(path, source(title, sections), "replace")


def source(title: str, sections: Iterable[Section]) -> str:
    """HTML of a page that loads nothing from elsewhere and runs only its own script.

    Args:
      title: plain text.
    """
    sections = list(sections)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return _PAGE.format(
        digest=digest,
        title=html.escape(title),
        style=_STYLE,
        links="".join(f'<a href="#s{i}">{head}</a>' for i, (head, _) in enumerate(sections)),
        body="\n".join(
            f'<section id="s{i}"><h2>{head}</h2>\n{body}</section>'
            for i, (head, body) in enumerate(sections)
        ),
        script=_SCRIPT,
    )


def breakable(text: str) -> str:
    """A name that may break after its underscores and slashes, where the screen is narrow."""
    return html.escape(text).replace("_", "_<wbr>").replace("/", "/<wbr>")


def table(
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    corner: str = "",
    kind: str = "",
) -> str:
    """A table that scrolls sideways where it must, its first column staying in sight.

    Args:
      columns: plain text, without the first column's.
      rows: (HTML of the first cell, the other cells with their <td>).
      corner: plain text above the first column.
      kind: a class of the table: "words" where cells are no numbers.
    """
    head = "".join(f"<th>{breakable(column)}</th>" for column in columns)
    body = "".join(f"<tr><td>{first}</td>{''.join(cells)}</tr>" for first, cells in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><tr><th>{html.escape(corner)}</th>{head}</tr>'
        f"{body}</table></div>"
    )


def metric_table(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row a model: {model: {metric: {value, low, high, tie_low, tie_high}}}."""
    rows = [
        (breakable(name), [value_cell(values[metric]) for metric in METRICS])
        for name, values in models.items()
    ]
    return table(METRICS, rows)


def delta_table(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row a model: {model: {metric: {delta, low, high}}}."""
    rows = [
        (breakable(name), [delta_cell(deltas[metric]) for metric in METRICS])
        for name, deltas in models.items()
    ]
    return table(METRICS, rows)


def value_cell(v: Mapping[str, float], kind: str = "", ties: bool = True) -> str:
    """A value with its interval and, where there are ties, the bounds that they allow.

    Args:
      v: {"value", "low", "high", "tie_low", "tie_high"}.
      kind: a class of the cell.
      ties: whether the bounds of ties are shown.
    """
    ranges = [f"{short(v['low'])}–{short(v['high'])}"]
    if ties and v["tie_low"] < v["tie_high"]:
        ranges.append(f"ties {short(v['tie_low'])}–{short(v['tie_high'])}")
    marked = f' class="{kind}"' if kind else ""
    return f"<td{marked}>{v['value']:.4f}<br><small>{'<br>'.join(ranges)}</small></td>"


def delta_cell(d: Mapping[str, float]) -> str:
    """A difference with its interval, marked where the interval lies on one side of zero.

    Args:
      d: {"delta", "low", "high"}.
    """
    mark = "better" if d["low"] > 0 else "worse" if d["high"] < 0 else ""
    return (
        f'<td><span class="{mark}">{d["delta"]:+.4f}</span><br>'
        f"<small>{short(d['low'], '+')}, {short(d['high'], '+')}</small></td>"
    )
