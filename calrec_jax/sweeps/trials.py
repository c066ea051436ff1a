"""The trials of a sweep: what they are, where each stands, and what came out.

A sweep directory holds trials.jsonl, to which each event appends a line, and a MODEL_DIR for
each trial, named by its id. Everything else (results.csv, the table) is derived from these.
"""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from calrec_jax import files
from calrec_jax.errors import EXIT_STOPPED, CalrecError
from calrec_jax.locks import try_flock
from calrec_jax.model_dir import ModelDir
from calrec_jax.sweeps.sweep_file import Sweep, Trial

# Runs `calrec ARGUMENTS`, its output going to a file; returns the exit code.
Execute = Callable[[Sequence[str], BinaryIO], int]


class Journal:
    """trials.jsonl: what happened, one JSON object a line, never rewritten."""

    def __init__(self, sweep_dir: pathlib.Path):
        self.path = sweep_dir / "trials.jsonl"
        self._lock = threading.Lock()
        sweep_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            # A kill may have left half a line at the end.
            data = self.path.read_bytes()
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, event: Mapping[str, Any]) -> None:
        """Writes one event; it is on the disk when this returns."""
        with self._lock, self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def last(self) -> dict[str, dict[str, Any]]:
        """{trial id: its last event}, in the order in which the trials first appeared.

        Raises:
          CalrecError: a line is no event.
        """
        if not self.path.exists():
            return {}
        events = {}
        lines = self.path.read_text("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                events[event["id"]] = event
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CalrecError(
                    f"{self.path} is damaged in line {number}: remove that line; a trial of which "
                    f"no line says that it finished goes on"
                ) from error
        return events


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a trial stands.

    Attributes:
      state: "finished", "failed", "stopped", "begun" (if killed), or "waiting".
      metrics: as in metrics.json; empty unless finished.
    """

    trial: Trial
    state: str
    metrics: Mapping[str, Mapping[str, float]]


def run(
    sweep: Sweep,
    sweep_dir: pathlib.Path,
    execute: Execute,
    parallel: int = 1,
    told: Callable[[str], None] = print,
) -> int:
    """Runs the trials that are not finished, each where it stopped.

    A trial that fails is recorded and the others go on. One that is stopped ends the sweep.

    Args:
      parallel: how many at once.
      told: takes a line for each trial that begins or ends.

    Returns:
      0, 1 if a trial failed, or 42 if one was stopped.

    Raises:
      CalrecError: the directory belongs to a sweep with other base_args or split, or another
        process is at one of its trials.
    """
    journal = Journal(sweep_dir)
    events = journal.last()
    for event in events.values():
        if event["settings"] != sweep.settings:
            raise CalrecError(
                f"{sweep_dir} holds trials of {event['settings']}, this sweep has "
                f"{sweep.settings}: give it a --sweep_dir of its own"
            )
    finished = {i for i, event in events.items() if event["event"] == "finished"}
    waiting = [trial for trial in sweep.trials if trial.id not in finished]
    stop = threading.Event()

    def run_one(trial: Trial) -> str:
        if stop.is_set():
            return "waiting"
        try:
            state = _run_trial(sweep, trial, sweep_dir, journal, execute, told)
        except BaseException:
            stop.set()  # a full disk, say: nothing for the next trial
            raise
        if state == "stopped":
            stop.set()
        return state

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        states = list(pool.map(run_one, waiting))
    if stop.is_set():
        return EXIT_STOPPED
    return 1 if "failed" in states else 0


def _run_trial(sweep, trial, sweep_dir, journal: Journal, execute: Execute, told) -> str:
    """Trains and evaluates one trial; returns its state."""
    model_dir = sweep_dir.absolute() / trial.id
    model_dir.mkdir(exist_ok=True)
    about = {"id": trial.id, "name": trial.name, "overrides": dict(trial.overrides)}

    def record(event: str, **more) -> None:
        at = {"event": event, "time": round(time.time(), 3)}
        journal.append(at | about | more | {"settings": sweep.settings})
        told(f"{event:<9} {trial.id} {trial.name}" + "".join(f"  {k} {v}" for k, v in more.items()))

    with (model_dir / "log.txt").open("ab", buffering=0) as log:
        _lock(log, trial)
        record("begun")
        for command, argv in commands(sweep, trial, model_dir).items():
            code = execute([command, *argv], log)
            if code == EXIT_STOPPED:
                record("stopped", command=command)
                return "stopped"
            if code:
                record(
                    "failed",
                    command=command,
                    exit_code=code,
                    log=log.name,
                    end=_last_line(log.name),
                )
                return "failed"
        record("finished")
        return "finished"


def _last_line(path: str) -> str:
    lines = pathlib.Path(path).read_text("utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""


def _lock(log: BinaryIO, trial: Trial) -> None:
    """Holds the log while the trial runs, even if a command is all that is left of its sweep."""
    if try_flock(log) is False:
        raise CalrecError(
            f"trial {trial.id} ({trial.name}) is still run by another process: wait for its end, "
            f"or end it (`fuser {log.name}` names it)"
        )


def commands(sweep: Sweep, trial: Trial, model_dir: pathlib.Path) -> dict[str, list[str]]:
    """The arguments of `calrec train` and `calrec eval` for a trial."""
    overrides = [f"--gin.{name}={value}" for name, value in trial.overrides.items()]
    return {
        "train": [*sweep.base_args, *overrides, f"--gin.MODEL_DIR={str(model_dir)!r}"],
        "eval": [
            f"--model_dir={model_dir}",
            f"--gin.EvaluationConfig.split={sweep.split!r}",
            "--gin.EvaluationConfig.name=None",  # the results are looked for under the split's
        ],
    }


def results(sweep: Sweep, sweep_dir: pathlib.Path) -> list[Result]:
    """All trials, the finished ones of earlier forms of the file too; the best first.

    Raises:
      CalrecError: a finished trial's metrics.json is missing or damaged.
    """
    events = Journal(sweep_dir).last()
    trials = {trial.id: trial for trial in sweep.trials}
    earlier = {
        i: Trial(event["name"], event["overrides"])
        for i, event in events.items()
        if event["event"] == "finished"
    }
    found = []
    for trial in (earlier | trials).values():
        state = events[trial.id]["event"] if trial.id in events else "waiting"
        path = ModelDir(sweep_dir / trial.id).evaluation(sweep.split).metrics
        found.append(Result(trial, state, _metrics(path) if state == "finished" else {}))
    sign = -1 if sweep.mode == "max" else 1

    def order(result: Result) -> tuple[bool, float]:
        value = result.metrics.get(sweep.metric, {}).get("value")
        return value is None, sign * (value or 0.0)

    return sorted(found, key=order)


def _metrics(path: pathlib.Path) -> Mapping[str, Mapping[str, float]]:
    try:
        return dict(json.loads(path.read_text("utf-8"))["metrics"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalrecError(
            f"{path} of a finished trial is missing or damaged: remove the trial's last line from "
            f"trials.jsonl to run it again"
        ) from error


def write_csv(results: Iterable[Result], path: pathlib.Path) -> None:
    """results.csv: a row a trial, a column an override, and value, low and high of each metric."""
    results = list(results)
    names = sorted({name for result in results for name in result.trial.overrides})
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    parts = ("value", "low", "high")
    columns = [f"{name} {part}".removesuffix(" value") for name in metrics for part in parts]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "name", "state", *names, *columns])
    for result in results:
        given = [result.trial.overrides.get(name, "") for name in names]
        values = [result.metrics.get(name, {}).get(part, "") for name in metrics for part in parts]
        writer.writerow([result.trial.id, result.trial.name, result.state, *given, *values])
    files.write_text(path, text.getvalue())
