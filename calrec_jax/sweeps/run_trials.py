"""Runs the trials of a sweep, each `calrec train` and then `calrec eval`.

A sweep directory holds trials.jsonl, to which each event appends a line, and a MODEL_DIR for
each trial, named by its id. Everything else (results.csv, the table) is derived from these.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

from calrec_jax.errors import EXIT_STOPPED, CalrecError
from calrec_jax.locks import try_flock
from calrec_jax.sweeps.journal import Journal
from calrec_jax.sweeps.sweep_file import Sweep, Trial

# Runs `calrec ARGUMENTS`, its output going to a file; returns the exit code.
Execute = Callable[[Sequence[str], BinaryIO], int]


def run_trials(
    sweep: Sweep,
    sweep_dir: pathlib.Path,
    execute: Execute,
    parallel: int = 1,
    on_event: Callable[[str], None] = print,
) -> int:
    """Runs the trials that are not finished, each from where it stopped.

    A trial that fails is recorded and the others go on. One that is stopped ends the sweep.

    Args:
      execute: runs the commands of the trials.
      parallel: how many trials run at once.
      on_event: called with a line for each trial that begins or ends.

    Returns:
      0, 1 if a trial failed, or 42 if one was stopped.

    Raises:
      CalrecError: the directory belongs to a sweep with other base_args or split, or another
        process is running one of its trials.
    """
    journal = Journal(sweep_dir)
    events = journal.last()
    for event in events.values():
        if event["settings"] != sweep.settings:
            raise CalrecError(
                f"{sweep_dir} holds trials of {event['settings']}, this sweep has "
                f"{sweep.settings}: give it a --sweep_dir of its own"
            )
    finished = {trial_id for trial_id, event in events.items() if event["event"] == "finished"}
    unfinished = [trial for trial in sweep.trials if trial.id not in finished]
    stop = threading.Event()

    def run_one(trial: Trial) -> str:
        if stop.is_set():
            return "waiting"
        try:
            state = _run_trial(sweep, trial, sweep_dir, journal, execute, on_event)
        except BaseException:
            stop.set()  # a full disk, for example, would end the next trial too
            raise
        if state == "stopped":
            stop.set()
        return state

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        states = list(pool.map(run_one, unfinished))
    if stop.is_set():
        return EXIT_STOPPED
    return 1 if "failed" in states else 0


def _run_trial(
    sweep: Sweep,
    trial: Trial,
    sweep_dir: pathlib.Path,
    journal: Journal,
    execute: Execute,
    on_event: Callable[[str], None],
) -> str:
    """Trains and evaluates one trial; returns its state."""
    model_dir = sweep_dir.absolute() / trial.id
    model_dir.mkdir(exist_ok=True)
    about = {"id": trial.id, "name": trial.name, "overrides": dict(trial.overrides)}

    def record(event: str, **more: str | int) -> None:
        at = {"event": event, "time": round(time.time(), 3)}
        journal.append(at | about | more | {"settings": sweep.settings})
        details = "".join(f"  {name} {value}" for name, value in more.items())
        on_event(f"{event:<9} {trial.id} {trial.name}{details}")

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
    """Locks the log until the trial ends, also where a command outlives a sweep that was killed.

    Raises:
      CalrecError: another process holds the lock.
    """
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
            "--gin.EvaluationConfig.name=None",  # the folder is the split's
        ],
    }
