"""report.html: what a run did, on one self-contained page; and its result table for the terminal."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.eval import charts
from calrec_jax.metrics import METRICS

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #888; --mark: #1a7f3c; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.5rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
small, .soft {{ color: var(--soft); }} .mark {{ color: var(--mark); font-weight: 600; }}
.charts {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.charts svg {{ width: 100%; max-width: 30rem; height: auto; }}
details {{ border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem;
  margin: .5rem 0; }}
summary {{ cursor: pointer; overflow-wrap: anywhere; }}
ol {{ padding-left: 1.6rem; }} li {{ overflow-wrap: anywhere; }}
pre {{ overflow-x: auto; font-size: .85rem; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def read_metrics(model_dir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """{split: what its metrics.json holds}.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR.
    """
    model_dir = pathlib.Path(model_dir)
    if not (model_dir / "manifest.json").is_file():
        raise CalrecError(f"{model_dir} is no MODEL_DIR: it has no manifest.json")
    paths = sorted(model_dir.glob("eval/*/metrics.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def text_table(result: Mapping[str, Any]) -> str:
    """The metrics of a metrics.json beside its baselines, with 95 % intervals, as plain text."""
    rows = _rows(result)
    width = max(len(name) for name, _ in rows)
    lines = [f"{result['domain']} {result['split']}: {result['n']} users, {result['items']} items"]
    lines.append(" " * width + "".join(f"  {name:>21}" for name in METRICS))
    for name, values in rows:
        cells = [_interval(values[metric]) for metric in METRICS]
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>21}" for cell in cells))
    for name, deltas in result["paired"].items():
        d = deltas["ndcg@10"]
        lines.append(
            f"calrec - {name}: ndcg@10 {d['delta']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        )
    return "\n".join(lines)


def write_report(model_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes MODEL_DIR/report.html from what is there, and says on the page what is not.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR.
    """
    model_dir = pathlib.Path(model_dir)
    results = read_metrics(model_dir)
    manifest = json.loads((model_dir / "manifest.json").read_text())
    sections = [_stages(model_dir, manifest)]
    if not results:
        sections.append("<h2>Evaluation</h2><p>Not evaluated yet: run <code>calrec eval</code>.</p>")
    for split, result in results.items():
        sections += [_result(split, result), _examples(model_dir / "eval" / split)]
    sections.append(_configuration(model_dir, manifest))
    path = model_dir / "report.html"
    title = html.escape(f"CALRec run {model_dir.name}")
    path.write_text(_PAGE.format(title=title, body="\n".join(sections)))
    return path


def _rows(result) -> list[tuple[str, Mapping[str, Any]]]:
    return [("calrec", result["metrics"]), *result["baselines"].items()]


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.4f} [{value['low']:.4f},{value['high']:.4f}]"


def _stages(model_dir: pathlib.Path, manifest) -> str:
    parts = ["<h2>Training</h2>"]
    for name, stage in manifest["stages"].items():
        parts.append(
            f"<h3>{html.escape(name)}: {html.escape(stage['mixture'])}, "
            f"{stage['train_steps']} steps</h3>"
        )
        path = model_dir / name / "metrics.jsonl"
        if not path.exists():
            parts.append("<p>Not started.</p>")
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        parts.append(f'<div class="charts">{"".join(_curves(lines))}</div>')
    return "\n".join(parts)


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart a loss, training and validation together."""
    names = [name for name in ("loss", "nig", "tt", "ut") if any(name in line for line in lines)]
    return [
        charts.line_chart(
            name,
            {
                split: [(x["step"], x[name]) for x in lines if x["split"] == split and name in x]
                for split in ("train", "validation")
            },
        )
        for name in names
    ]


def _result(split: str, result: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in METRICS)
    body = ""
    for name, values in _rows(result):
        cells = ""
        for metric in METRICS:
            v = values[metric]
            cells += (
                f"<td>{v['value']:.4f}<br><small>{v['low']:.4f}–{v['high']:.4f}<br>"
                f"ties {v['tie_low']:.4f}–{v['tie_high']:.4f}</small></td>"
            )
        body += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    paired = ""
    for name, deltas in result["paired"].items():
        cells = ""
        for metric in METRICS:
            d = deltas[metric]
            mark = ' class="mark"' if d["low"] > 0 else ""
            cells += (
                f"<td{mark}>{d['delta']:+.4f}<br>"
                f"<small>{d['low']:+.4f} to {d['high']:+.4f}</small></td>"
            )
        paired += f"<tr><td>calrec − {html.escape(name)}</td>{cells}</tr>"
    return f"""<h2>{html.escape(result["domain"])}, {html.escape(split)} split</h2>
<p>{result["n"]} users, the whole catalogue of {result["items"]} items. Values are expected over random
tie-breaking, with 95 % bootstrap intervals over users; “ties” are the values if every tie went
against or for the target.</p>
<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>
<h3>Differences on the same users</h3>
<div class="scroll"><table><tr><th></th>{head}</tr>{paired}</table></div>"""


def _examples(directory: pathlib.Path) -> str:
    examples = json.loads((directory / "examples.json").read_text())
    return "\n".join(["<h2>Examples</h2>", *map(_example, examples)])


def _example(prediction: Mapping[str, Any]) -> str:
    target, rank = prediction["target"], prediction["rank"]
    generated = "".join(
        f"<li>{html.escape(g['text'])} <span class=soft>{g['logprob']:.2f}</span></li>"
        for g in prediction["generated"][:5]
    )
    ranked = "".join(
        f"<li{' class=mark' if item['item_id'] == target else ''}>{_item(prediction, item['item_id'])}"
        f" <span class=soft>{item['score']:.4f}</span></li>"
        for item in prediction["ranked"][:10]
    )
    history = "".join(f"<li>{_item(prediction, i)}</li>" for i in prediction["history"])
    place = f"{rank['low']}" if rank["low"] == rank["high"] else f"{rank['low']}–{rank['high']}"
    return f"""<details><summary>{html.escape(prediction["user_id"])}: target at rank {place}:
<span class=mark>{_item(prediction, target)}</span></summary>
<h4>History</h4><ol>{history}</ol>
<h4>Generated, with log-probabilities</h4><ol>{generated}</ol>
<h4>Retrieved, with scores</h4><ol>{ranked}</ol></details>"""


def _item(prediction: Mapping[str, Any], item_id: str) -> str:
    return html.escape(f"{item_id} {prediction['texts'].get(item_id, '')}".strip())


def _configuration(model_dir: pathlib.Path, manifest) -> str:
    path = model_dir / "config.gin"
    config = path.read_text() if path.exists() else "config.gin is missing"
    versions = ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())
    return f"""<h2>Configuration</h2><p class="soft">{html.escape(versions)}; vocabulary
{html.escape(manifest["vocabulary"])}</p>
<details><summary>config.gin</summary><pre>{html.escape(config)}</pre></details>"""
