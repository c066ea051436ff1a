"""report.html: what a run did, on one self-contained page."""

from __future__ import annotations

import html
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import ModelDir
from calrec_jax.report import (
    browser,
    charts,
    evaluation,
    files,
    page,
    training_data,
)
from calrec_jax.report.page import Section, breakable

_LOSSES = {
    "loss": "loss",
    "nig": "next item (NIG)",
    "tt": "target-target contrast (TT)",
    "ut": "user-target contrast (UT)",
    "ndcg@10": "NDCG@10",  # of a baseline that is trained
}


def write(model_dir: str | os.PathLike) -> pathlib.Path:
    """Writes MODEL_DIR/report.html from the files that are there, and lists the missing ones on it.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR, or a file in it is damaged or of an earlier version.
    """
    model_dir = ModelDir(model_dir)
    manifest = files.read_manifest(model_dir)
    results = files.evaluations(model_dir)
    sections = [evaluation.section(*result) for result in results.items()]
    sections += _unfinished(model_dir, results)
    sections.append(("Training", _stages(model_dir, manifest)))
    if model_dir.data.exists():
        data = training_data.read(model_dir.data)
        sections.append(("Training data", training_data.stages(data)))
    sections += [
        browser.section(model_dir.evaluation(name), result) for name, result in results.items()
    ]
    sections.append(("Configuration", _configuration(model_dir, manifest)))
    page.write(model_dir.report, f"CALRec run {model_dir.path.absolute().name}", sections)
    return model_dir.report


def _unfinished(model_dir: ModelDir, results: Mapping[str, Any]) -> Iterator[Section]:
    """Sections on evaluations that are missing or not complete."""
    begun = [
        folder
        for folder in model_dir.evaluations()
        if folder.predictions.exists() and folder.name not in results
    ]
    if not begun and not results:
        yield "Evaluation", "<p>Not evaluated yet: run <code>calrec eval</code>.</p>"
    for folder in begun:
        done = folder.predictions.read_bytes().count(b"\n")
        yield (
            f"Evaluation {breakable(folder.name)}",
            f"<p>The evaluation stopped after {done:,} users: run <code>calrec eval</code> again "
            f"to go on.</p>",
        )


def _stages(model_dir: ModelDir, manifest: Mapping[str, Any]) -> str:
    parts = []
    for stage_name, stage in manifest["stages"].items():
        lines = _read_lines(model_dir.stage(stage_name).metrics)
        steps = f"{stage['train_steps']:,} steps"
        reached = max((line["step"] for line in lines), default=0)
        if 0 < reached < stage["train_steps"]:
            steps = f"{reached:,} of {steps}"
        parts.append(f"<h3>{breakable(stage_name)}: {breakable(stage['mixture'])}, {steps}</h3>")
        curves = "".join(_curves(lines))
        parts.append(f'<div class="charts">{curves}</div>' if curves else "<p>Not begun.</p>")
    return "\n".join(parts)


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl, without the half line that a killed process may have left."""
    if not path.exists():
        return []
    try:
        whole, _, _ = path.read_text("utf-8").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
    except (ValueError, RecursionError) as error:
        raise CalrecError(f"{path} is damaged: remove what is ({error})") from error
    for line in lines:
        files.require(path, line, ("step", "split"), "remove the line")
    return lines


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart for each loss, with training and validation together."""
    return [
        charts.line_chart(
            title,
            {
                split: [(x["step"], x[loss]) for x in lines if x["split"] == split and loss in x]
                for split in ("train", "validation")
            },
        )
        for loss, title in _LOSSES.items()
        if any(loss in line for line in lines)
    ]


def _configuration(model_dir: ModelDir, manifest: Mapping[str, Any]) -> str:
    path = model_dir.config
    config = path.read_text("utf-8", "replace") if path.exists() else f"{path.name} is missing"
    versions = ", ".join(f"{package} {v}" for package, v in manifest["versions"].items())
    return f"""<p class="soft">{html.escape(versions)}; vocabulary
{html.escape(manifest["vocabulary"])}</p>
<details><summary>config.gin</summary><pre>{html.escape(config)}</pre></details>"""
