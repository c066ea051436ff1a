"""The progress of an evaluation: a bar on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def evaluation() -> Iterator[Callable[..., None]]:
    """Yields a function that shows (users done, users in all, verb = "evaluated")."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, verb="evaluated": print(
            f"{verb} {done}/{total} users", file=sys.stderr, flush=True
        )
        return
    columns = (
        TextColumn("{task.description} users"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("evaluated", total=None)
        yield lambda done, total, verb="evaluated": bar.update(
            task, completed=done, total=total, description=verb
        )
