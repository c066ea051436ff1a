"""Preemption: SIGTERM becomes a save and an exit that asks to be started again."""

from __future__ import annotations

import itertools
import signal
import threading
from typing import Any

import jax


class Preempted(Exception):
    """Training was stopped by SIGTERM, has saved, and goes on when it is started again."""


class PreemptionNotice:
    """While it is active, SIGTERM only sets a flag, which the loop reads between steps.

    With several processes, JAX's coordination service carries the notice, so that all of them stop
    after the same step: each must call `received` equally often.
    """

    # The service agrees on a number that no process has reached yet. Steps begin anew in each
    # stage, so a notice between two stages would be lost; the number of calls only grows.
    _calls = itertools.count(1)

    def __init__(self):
        self._flag = threading.Event()

    def __enter__(self) -> PreemptionNotice:
        self._previous_handler = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: self._flag.set())
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def received(self) -> bool:
        """Whether to stop now; the same answer in every process."""
        if jax.process_count() == 1:
            return self._flag.is_set()
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(next(self._calls))
