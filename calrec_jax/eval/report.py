"""report.html: what a run did, on one self-contained page; and the result table for terminals."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.eval import charts, report_data
from calrec_jax.metrics import METRICS
from calrec_jax.train import manifest as manifests

_LOSSES = {
    "loss": "loss",
    "nig": "next item (NIG)",
    "tt": "target-target contrast (TT)",
    "ut": "user-target contrast (UT)",
}
_GENERATED, _RANKED = 10, 10  # shown of each example

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: light-dark(#666, #aaa);
  --better: light-dark(#1a7f3c, #62cf87); --worse: light-dark(#b3261e, #f2887f); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }}
h1, h2, h3 {{ line-height: 1.2; overflow-wrap: break-word; }} h2 {{ margin-top: 2.5rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; padding-left: 0;
  background: Canvas; }}
small, .soft {{ color: var(--soft); }}
.better {{ color: var(--better); }} .worse {{ color: var(--worse); }}
li.better {{ font-weight: 600; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; }}
.charts svg {{ width: 100%; height: auto; }}
details {{ border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem;
  margin: .5rem 0; }}
summary {{ cursor: pointer; overflow-wrap: anywhere; }}
ol {{ padding-left: 2rem; }} li {{ overflow-wrap: anywhere; }}
pre {{ overflow-x: auto; font-size: .85rem; }} .text {{ white-space: pre-wrap; }}
@media (max-width: 40rem) {{ body {{ font-size: 15px; }} h1 {{ font-size: 1.5rem; }}
  th, td {{ padding: .3rem .45rem; }} th:first-child, td:first-child {{ white-space: normal; }} }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def read_metrics(model_dir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """{split: what its metrics.json holds}.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR, or a file in it is damaged.
    """
    _read_manifest(model_dir)
    paths = sorted(pathlib.Path(model_dir).glob("eval/*/metrics.json"))
    return {path.parent.name: _read_json(path) for path in paths}


def text_table(result: Mapping[str, Any]) -> str:
    """The metrics of a metrics.json beside its baselines, with 95 % intervals, as plain text."""
    model = _model(result)
    differences = {f"{model} - {name}": values for name, values in result["paired"].items()}
    width = max(map(len, [model, *result["baselines"], *differences]))
    lines = [f"{result['domain']} {result['split']}: {result['n']} users, {result['items']} items"]
    lines.append(" " * width + "".join(f"{metric:>14}" for metric in METRICS))
    for name, values in _rows(result):
        lines += _text_rows(name, width, values, "value", "")
    lines.append("")
    for name, values in differences.items():
        lines += _text_rows(name, width, values, "delta", "+")
    lines.append("")
    lines.append("below each value: its 95 % interval over users; ties are broken at random")
    lines += _choices(result)
    return "\n".join(lines)


def _text_rows(name: str, width: int, values, key: str, sign: str) -> list[str]:
    centres = [f"{values[metric][key]:{sign}.4f}" for metric in METRICS]
    intervals = [
        f"{_short(values[metric]['low'])},{_short(values[metric]['high'])}" for metric in METRICS
    ]
    return [
        f"{name:<{width}}" + "".join(f"{x:>14}" for x in centres),
        " " * width + "".join(f"{x:>14}" for x in intervals),
    ]


def _short(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def write_report(model_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes MODEL_DIR/report.html from what is there, and says on the page what is not.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR, or a file in it is damaged.
    """
    model_dir = pathlib.Path(model_dir)
    manifest, results = _read_manifest(model_dir), read_metrics(model_dir)
    sections = [_result(split, result) for split, result in results.items()]
    sections += _unfinished(model_dir, results)
    sections.append(_stages(model_dir, manifest))
    if (model_dir / report_data.NAME).exists():
        sections.append(report_data.section(_read_json(model_dir / report_data.NAME)))
    sections += [_examples(model_dir / "eval" / split, split) for split in results]
    sections.append(_configuration(model_dir, manifest))
    title = html.escape(f"CALRec run {model_dir.absolute().name}")
    path = model_dir / "report.html"
    path.write_text(_PAGE.format(title=title, body="\n".join(sections)), "utf-8")
    return path


def _read_manifest(model_dir: str | pathlib.Path) -> Mapping[str, Any]:
    manifest = manifests.read(model_dir)
    if manifest is None:
        raise CalrecError(
            f"{model_dir} is no MODEL_DIR: it has no {manifests.NAME}; give the folder that "
            f"`calrec train` wrote"
        )
    return manifest


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: remove it, and make it again ({error})") from error


def _rows(result) -> list[tuple[str, Mapping[str, Any]]]:
    return [(_model(result), result["metrics"]), *result["baselines"].items()]


def _model(result: Mapping[str, Any]) -> str:
    """The first metrics.json files were of one model alone, and did not name it."""
    return result.get("model", "calrec")


def _choices(result) -> list[str]:
    """A sentence for each baseline that was chosen on validation."""
    return [
        f"{name}: {chosen['part']} + {chosen['weight']:g} x BM25, chosen by NDCG@10 of "
        f"{chosen['users']:,} validation users"
        for name, chosen in result.get("choices", {}).items()
    ]


def _result(split: str, result: Mapping[str, Any]) -> str:
    values = [
        (name, [_value_cell(values[metric]) for metric in METRICS])
        for name, values in _rows(result)
    ]
    deltas = [
        (name, [_delta_cell(deltas[metric]) for metric in METRICS])
        for name, deltas in result["paired"].items()
    ]
    sample = "" if result["n"] == result["users"] else f" (a sample of {result['users']:,})"
    return f"""<h2>{_name(result["domain"])}, {html.escape(split)} split</h2>
<p>{result["n"]:,} users{sample}, the whole catalogue of {result["items"]:,} items, checkpoint
{html.escape(result["config"]["checkpoint"])}. Values are expected over random tie-breaking, with
95 % bootstrap intervals over users; “ties” are the values if every tie went against or for the
target.</p>
{_table(values)}
<p>{"<br>".join(map(html.escape, _choices(result)))}</p>
<h3>{_name(_model(result))} minus each baseline, on the same users</h3>
{_table(deltas)}"""


def _value_cell(v: Mapping[str, float]) -> str:
    return (
        f"<td>{v['value']:.4f}<br><small>{v['low']:.4f}–{v['high']:.4f}<br>"
        f"ties {v['tie_low']:.4f}–{v['tie_high']:.4f}</small></td>"
    )


def _delta_cell(d: Mapping[str, float]) -> str:
    mark = "better" if d["low"] > 0 else "worse" if d["high"] < 0 else ""
    return (
        f'<td><span class="{mark}">{d["delta"]:+.4f}</span><br>'
        f"<small>{d['low']:+.4f}, {d['high']:+.4f}</small></td>"
    )


def _table(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in METRICS)
    body = "".join(f"<tr><td>{_name(name)}</td>{''.join(cells)}</tr>" for name, cells in rows)
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _name(name: str) -> str:
    """A name that may break after its underscores, where the screen is narrow."""
    return html.escape(name).replace("_", "_<wbr>")


def _unfinished(model_dir: pathlib.Path, results: Mapping[str, Any]) -> list[str]:
    """What to say of evaluations that are not there, or not complete."""
    begun = [
        path
        for path in sorted(model_dir.glob("eval/*/predictions.jsonl"))
        if path.parent.name not in results
    ]
    if not begun and not results:
        return ["<h2>Evaluation</h2><p>Not evaluated yet: run <code>calrec eval</code>.</p>"]
    return [
        f"<h2>{html.escape(path.parent.name)} split</h2><p>The evaluation stopped after "
        f"{len(path.read_text('utf-8').splitlines()):,} users: run <code>calrec eval</code> again "
        f"to go on.</p>"
        for path in begun
    ]


def _stages(model_dir: pathlib.Path, manifest: Mapping[str, Any]) -> str:
    parts = ["<h2>Training</h2>"]
    for name, stage in manifest["stages"].items():
        lines = _read_lines(model_dir / name / "metrics.jsonl")
        steps = f"{stage['train_steps']:,} steps"
        reached = max((line["step"] for line in lines), default=0)
        if 0 < reached < stage["train_steps"]:
            steps = f"{reached:,} of {steps}"
        parts.append(f"<h3>{_name(name)}: {_name(stage['mixture'])}, {steps}</h3>")
        curves = "".join(_curves(lines))
        parts.append(f'<div class="charts">{curves}</div>' if curves else "<p>Not begun.</p>")
    return "\n".join(parts)


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; a kill may have left half a line at the end."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text("utf-8").rpartition("\n")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: {error}") from error


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart a loss, training and validation together."""
    return [
        charts.line_chart(
            title,
            {
                split: [(x["step"], x[name]) for x in lines if x["split"] == split and name in x]
                for split in ("train", "validation")
            },
        )
        for name, title in _LOSSES.items()
        if any(name in line for line in lines)
    ]


def _examples(directory: pathlib.Path, split: str) -> str:
    path = directory / "examples.json"
    heading = f"<h2>Examples of the {html.escape(split)} split</h2>"
    if not path.exists():
        return f"{heading}<p>{path.name} is missing: run <code>calrec eval</code> again.</p>"
    return "\n".join([heading, *map(_example, _read_json(path))])


def _example(prediction: Mapping[str, Any]) -> str:
    target, rank = prediction["target"], prediction["rank"]
    generated = [
        f"<li>{html.escape(g['text']) or '<i>nothing</i>'} "
        f'<span class="soft">{g["logprob"]:.2f}</span></li>'
        for g in prediction["generated"]
    ]
    if len(generated) > _GENERATED:
        more = len(generated) - _GENERATED
        generated[_GENERATED:] = [f'<li class="soft">and {more} more</li>']
    ranked = [
        f'<li class="{"better" if item["item_id"] == target else ""}">'
        f'{_item(prediction, item["item_id"])} <span class="soft">{item["score"]:.4f}</span></li>'
        for item in prediction["ranked"][:_RANKED]
    ]
    history = [f"<li>{_item(prediction, item_id)}</li>" for item_id in prediction["history"]]
    place = f"{rank['low']:,}"
    if rank["high"] > rank["low"]:
        place += f"–{rank['high']:,} (tied)"
    return f"""<details><summary>{html.escape(prediction["user_id"])}: target at rank {place}:
{_item(prediction, target)}</summary>
<h4>History, oldest first</h4><ol>{"".join(history)}</ol>
{_list("Generated, with log-probabilities", generated)}
<h4>Retrieved, with scores</h4><ol>{"".join(ranked)}</ol></details>"""


def _list(heading: str, entries: Sequence[str]) -> str:
    """An ordered list, or nothing: a model that scores items writes no texts."""
    return f"<h4>{heading}</h4><ol>{''.join(entries)}</ol>" if entries else ""


def _item(prediction: Mapping[str, Any], item_id: str) -> str:
    text = prediction["texts"].get(item_id, "")
    return f'<span class="soft">{html.escape(item_id)}</span> {html.escape(text)}'


def _configuration(model_dir: pathlib.Path, manifest: Mapping[str, Any]) -> str:
    path = model_dir / "config.gin"
    config = path.read_text("utf-8") if path.exists() else "config.gin is missing"
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return f"""<h2>Configuration</h2><p class="soft">{html.escape(versions)}; vocabulary
{html.escape(manifest["vocabulary"])}</p>
<details><summary>config.gin</summary><pre>{html.escape(config)}</pre></details>"""
