"""The line on the terminal that shows how far a stage's training is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping


class ProgressLine:
    """Step, losses, examples/s, tokens/s and the time left of one stage.

    Rates count from the start of this process, less the time that validation and saving took.

    Args:
      name: the stage's.
      first_step, last_step: where this process starts and the stage ends.
    """

    def __init__(self, name: str, first_step: int, last_step: int):
        self._name, self._first_step, self._last_step = name, first_step, last_step
        self._seconds = self._examples = self._tokens = 0.0
        self._counted_until = time.monotonic()

    def restart_clock(self) -> None:
        """Leaves the time since the last `update` out of the rates."""
        self._counted_until = time.monotonic()

    def update(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Counts one step in. Returns {"examples_per_second", "tokens_per_second"}."""
        now = time.monotonic()
        self._seconds += now - self._counted_until
        self._counted_until = now
        self._examples += metrics["examples"]
        self._tokens += metrics["tokens"]
        return {
            "examples_per_second": self._examples / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
        }

    def show(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Prints the line to standard error."""
        done, left = step - self._first_step, self._last_step - step
        seconds_left = left * self._seconds / max(done, 1)
        names = [name for name in ("loss", "nig", "tt", "ut") if name in metrics]
        losses = " ".join(f"{name} {metrics[name]:.4f}" for name in names)
        print(
            f"{self._name} {step}/{self._last_step}  {losses}  "
            f"{rates['examples_per_second']:.1f} examples/s  "
            f"{rates['tokens_per_second']:,.0f} tokens/s  {_clock(seconds_left)} left",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
