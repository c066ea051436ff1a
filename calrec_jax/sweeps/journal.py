"""trials.jsonl, the journal of a sweep: what happened to each trial."""

from __future__ import annotations

import json
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError


class Journal:
    """The journal of a sweep: one JSON object a line, each an event, never rewritten.

    Args:
      sweep_dir: the folder of trials.jsonl; it is made if it is not there.
    """

    def __init__(self, sweep_dir: pathlib.Path):
        self.path = sweep_dir / "trials.jsonl"
        self._lock = threading.Lock()
        sweep_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            # A kill may have left half a line at the end.
            data = self.path.read_bytes()
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, event: Mapping[str, Any]) -> None:
        """Appends one event, and returns when it is on the disk."""
        with self._lock, self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def last(self) -> dict[str, dict[str, Any]]:
        """{trial id: its last event}, in the order in which the trials first appeared.

        Raises:
          CalrecError: a line is damaged.
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
                    f"{self.path} is damaged in line {number}: remove that line; a trial without "
                    f"a line of its end is run again"
                ) from error
        return events
