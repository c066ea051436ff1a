"""Sweep files, and a stand-in for `calrec` that runs their trials in no time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from calrec_jax.metrics import METRICS
from calrec_jax.sweeps.run_trials import run_trials
from calrec_jax.sweeps.sweep_file import Sweep

HEAD = "base_args: [--gin_file=a.gin, --gin.BATCH_SIZE=4]\nmetric: {name: ndcg@10, mode: max}\n"
GRID = HEAD + "grid: {losses.LossConfig.alpha: [0, 0.125], TRAIN_STEPS: [10, 20]}\n"


def write(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a sweep file; returns its path."""
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


class Calrec:
    """Stands in for `calrec`: records its calls, and writes what eval writes.

    Args:
      values: {trial id: the value of all metrics}, 0.5 by default.
      codes: {(command, trial id): the exit code, or an exception that is raised}, 0 by default.
    """

    def __init__(
        self,
        values: Mapping[str, float] | None = None,
        codes: Mapping[tuple[str, str], int | BaseException] | None = None,
    ):
        self.calls, self.values, self.codes = [], values or {}, codes or {}

    def __call__(self, argv: Sequence[str], log: BinaryIO) -> int:
        command, *rest = argv
        if command == "train":
            model_dir = pathlib.Path(rest[-1].removeprefix("--gin.MODEL_DIR='").removesuffix("'"))
        else:
            model_dir = pathlib.Path(rest[0].removeprefix("--model_dir="))
        self.calls.append((command, model_dir.name))
        log.write(f"{command} speaks\n".encode())
        code = self.codes.get((command, model_dir.name), 0)
        if isinstance(code, BaseException):
            raise code
        if command == "eval" and code == 0:
            value = self.values.get(model_dir.name, 0.5)
            metrics = {
                name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in METRICS
            }
            path = model_dir / "eval" / "validation" / "metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"metrics": metrics}))
        return code


def run(sweep: Sweep, sweep_dir: pathlib.Path, calrec: Calrec, parallel: int = 1) -> int:
    """Runs the trials of a sweep; returns the exit code."""
    return run_trials(sweep, sweep_dir, calrec, parallel, on_event=lambda line: None)
