"""The interface of engines: all of them take the same arguments and write the same dataset."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.preparation.statistics import ItemStatistics, UserStatistics
from calrec_jax.data.sources import RawFiles, Source
from calrec_jax.data.store.datasets import DomainWriter

Report = Callable[[str, int], None]
"""Called with the current phase and the number of events, users or items that it has done."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Counts of events by their times.

    Attributes:
      known: events that have a time.
      future: events dated after now.
      early: events dated before 1990.
      alone: events that have no order and are sorted by time alone.
      at_once: how many of the latter have the most frequent of their times.
    """

    known: int
    future: int
    early: int
    alone: int
    at_once: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What an engine reports of a domain that it has written.

    Attributes:
      counts: {name: number} of what was read, and of what the rules left out before they were
        applied to users.
      rejected: {reason: number} of lines that were not used; the lines are in rejects.jsonl.
      fields_left_out: {reason: number} of fields of listings that were not used.
      times: counts over the events that were read, before duplicates are removed.
      users, items: statistics of what was written.
      cold: {"validation", "test": the number of targets that are in no training sequence}.
      ids_apart: None if events have items that are listed; otherwise (the least item id of events,
        the least of listings), for a message.
    """

    counts: dict[str, int]
    rejected: dict[str, int]
    fields_left_out: dict[str, int]
    times: Times
    users: UserStatistics
    items: ItemStatistics
    cold: dict[str, int]
    ids_apart: tuple[str, str] | None


class Engine(Protocol):
    """Applies the rules of `sequences` to raw files; all engines write the same records."""

    def __call__(
        self,
        domain: str,
        source: Source,
        files: RawFiles,
        rules: Rules,
        scratch: pathlib.Path,
        writer: DomainWriter,
        report: Report,
    ) -> Prepared:
        """Reads the raw files, applies the rules and writes all records.

        Args:
          domain: the name of the domain.
          source: the format of the files.
          files: the raw files.
          scratch: a workspace of the store, for temporary files and for rejects.jsonl.
          writer: takes the records; the caller finishes it.
          report: called with the progress.

        Raises:
          CalrecError: a file cannot be read, or events lack the times that the rules need.
          OSError, tf.errors.OpError: the disk is full or not writable.
        """
