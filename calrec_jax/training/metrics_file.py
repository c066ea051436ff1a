"""metrics.jsonl: what is logged of a stage, one JSON object a line."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

from calrec_jax import files


class MetricsFile:
    """metrics.jsonl of one stage, open for appending. `step` and `split` come first in a line."""

    def __init__(self, path: pathlib.Path, resume_step: int):
        """Opens the file. Lines after `resume_step` are dropped: they will be written again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            lines = path.read_text("utf-8", "replace").splitlines()
            kept = [line for line in lines if _step(line) <= resume_step]
            files.write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the operating system."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step(line: str) -> float:
    """The step of a line; infinity where a kill left the line incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
