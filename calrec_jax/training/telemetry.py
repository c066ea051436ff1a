"""What a run tells while it trains: metrics.jsonl, TensorBoard, and a line of progress."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

import jax
from tensorboardX import SummaryWriter

from calrec_jax import whole


class Telemetry:
    """All that a stage tells, through one object. Process 0 alone writes.

    Args:
      directory: of the stage; holds metrics.jsonl and TensorBoard's events.
      name: of the stage.
      first_step, last_step: where this process starts and the stage ends.
      log_period: steps between two lines.
      epochs: step -> {domain: epochs seen}.
    """

    def __init__(
        self,
        directory,
        name: str,
        first_step: int,
        last_step: int,
        log_period: int,
        epochs: Callable[[int], Mapping[str, float]] = lambda step: {},
    ):
        self._progress = Progress(name, first_step, last_step)
        self._name, self._last, self._period = name, last_step, log_period
        self._epochs = epochs
        self._file = self._events = None
        if jax.process_index() == 0:
            self._file = MetricsFile(pathlib.Path(directory) / "metrics.jsonl", first_step)
            # A process that was killed may have written events of later steps.
            self._events = SummaryWriter(str(directory), purge_step=first_step + 1)

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step."""
        rates = self._progress.update(step, metrics)
        if step % self._period == 0 or step == self._last:
            epochs = {f"epochs/{name}": value for name, value in self._epochs(step).items()}
            self._write(step, "train", metrics | rates | epochs)
            if self._file:
                self._progress.show(step, metrics, rates)

    def validation(self, step: int, losses: Mapping[str, float]) -> None:
        """Takes validation losses."""
        self._write(step, "validation", losses)
        if self._file:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            line = f"{self._name} {step}/{self._last}  validation  {shown}"
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


class MetricsFile:
    """metrics.jsonl of one stage: one object a line, `step` and `split` first."""

    def __init__(self, path: pathlib.Path, resume_step: int):
        """Opens for appending. Lines after `resume_step` are dropped: they will come again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            lines = path.read_text("utf-8", "replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= resume_step]
            whole.write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")  # torn by a kill


class Progress:
    """One line on the terminal: step, loss, examples/s, tokens/s, time left.

    Rates count from the start of this process, less what validation and saving took.
    """

    def __init__(self, name: str, first_step: int, last_step: int):
        self._name, self._first, self._last = name, first_step, last_step
        self._seconds = self._examples = self._tokens = 0.0
        self._mark = time.monotonic()

    def restart_clock(self) -> None:
        """Leaves out the time since the last `update`."""
        self._mark = time.monotonic()

    def update(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Counts one step in. Returns {"examples_per_second", "tokens_per_second"}."""
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        self._examples += metrics["examples"]
        self._tokens += metrics["tokens"]
        return {
            "examples_per_second": self._examples / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
        }

    def show(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Prints the line."""
        left = (self._last - step) * self._seconds / max(step - self._first, 1)
        names = [name for name in ("loss", "nig", "tt", "ut") if name in metrics]
        losses = " ".join(f"{name} {metrics[name]:.4f}" for name in names)
        print(
            f"{self._name} {step}/{self._last}  {losses}  "
            f"{rates['examples_per_second']:.1f} examples/s  "
            f"{rates['tokens_per_second']:,.0f} tokens/s  {_clock(left)} left",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
