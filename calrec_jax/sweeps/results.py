"""The results of a sweep: where each trial stands, what it measured, and results.csv."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Mapping

from calrec_jax import files
from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import ModelDir
from calrec_jax.sweeps.journal import Journal
from calrec_jax.sweeps.sweep_file import Sweep, Trial


@dataclasses.dataclass(frozen=True)
class Result:
    """The state of a trial, and what it measured.

    Attributes:
      state: "finished", "failed", "stopped", "begun" (it runs, or was killed), or "waiting".
      metrics: as in metrics.json; empty unless finished.
    """

    trial: Trial
    state: str
    metrics: Mapping[str, Mapping[str, float]]


def read_results(sweep: Sweep, sweep_dir: pathlib.Path) -> list[Result]:
    """The results of all trials, the best first; also of finished trials that the file had once.

    Raises:
      CalrecError: a finished trial's metrics.json is missing or damaged.
    """
    events = Journal(sweep_dir).last()
    trials = {trial.id: trial for trial in sweep.trials}
    earlier = {
        trial_id: Trial(event["name"], event["overrides"])
        for trial_id, event in events.items()
        if event["event"] == "finished"
    }
    results = []
    for trial in (earlier | trials).values():
        state = events[trial.id]["event"] if trial.id in events else "waiting"
        path = ModelDir(sweep_dir / trial.id).evaluation(sweep.split).metrics
        results.append(Result(trial, state, _metrics(path) if state == "finished" else {}))
    sign = -1 if sweep.mode == "max" else 1

    def order(result: Result) -> tuple[bool, float]:
        value = result.metrics.get(sweep.metric, {}).get("value")
        return value is None, sign * (value or 0.0)

    return sorted(results, key=order)


def _metrics(path: pathlib.Path) -> Mapping[str, Mapping[str, float]]:
    try:
        return dict(json.loads(path.read_text("utf-8"))["metrics"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalrecError(
            f"{path} of a finished trial is missing or damaged: remove the trial's last line from "
            f"trials.jsonl to run it again"
        ) from error


def write_csv(results: Iterable[Result], path: pathlib.Path) -> None:
    """Writes results.csv: a row a trial.

    Its columns are the trial, its state, each override, and value, low and high of each metric.
    """
    results = list(results)
    names = sorted({name for result in results for name in result.trial.overrides})
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    parts = ("value", "low", "high")
    columns = [f"{name} {part}".removesuffix(" value") for name in metrics for part in parts]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "name", "state", *names, *columns])
    for result in results:
        overrides = [result.trial.overrides.get(name, "") for name in names]
        values = [result.metrics.get(name, {}).get(part, "") for name in metrics for part in parts]
        writer.writerow([result.trial.id, result.trial.name, result.state, *overrides, *values])
    files.write_text(path, text.getvalue())
