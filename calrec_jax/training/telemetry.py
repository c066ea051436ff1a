"""What is logged while a stage trains: metrics.jsonl, TensorBoard's events, a line of progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import jax
from tensorboardX import SummaryWriter

from calrec_jax.model_dir import StageDir
from calrec_jax.training.metrics_file import MetricsFile
from calrec_jax.training.progress_line import ProgressLine


class Telemetry:
    """All logs of one stage. Process 0 alone writes them.

    Args:
      stage: the stage's folder, in which metrics.jsonl and TensorBoard's events are written.
      name: the stage's.
      first_step, last_step: where this process starts and the stage ends.
      log_period: steps between two lines.
      epochs: step -> {domain: epochs seen}.
    """

    def __init__(
        self,
        stage: StageDir,
        name: str,
        first_step: int,
        last_step: int,
        log_period: int,
        epochs: Callable[[int], Mapping[str, float]] = lambda step: {},
    ):
        self._name, self._last_step, self._log_period = name, last_step, log_period
        self._epochs = epochs
        self._progress = ProgressLine(name, first_step, last_step)
        self._file = self._events = None
        if jax.process_index() == 0:
            self._file = MetricsFile(stage.metrics, first_step)
            # A process that was killed may have written events of later steps.
            self._events = SummaryWriter(str(stage), purge_step=first_step + 1)

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Counts the metrics of one step in; writes and shows them each `log_period` steps."""
        rates = self._progress.update(step, metrics)
        if step % self._log_period == 0 or step == self._last_step:
            epochs = {f"epochs/{name}": value for name, value in self._epochs(step).items()}
            self._write(step, "train", metrics | rates | epochs)
            if self._file:
                self._progress.show(step, metrics, rates)

    def log_validation(self, step: int, losses: Mapping[str, float]) -> None:
        """Writes and shows validation losses."""
        self._write(step, "validation", losses)
        if self._file:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            line = f"{self._name} {step}/{self._last_step}  validation  {shown}"
            print(line, file=sys.stderr, flush=True)

    def restart_clock(self) -> None:
        """Leaves the time since the last training step out of the rates."""
        self._progress.restart_clock()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file:
            self._file.close()
            self._events.close()

    def _write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._file is None:
            return
        self._file.write(step, split, values)
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
