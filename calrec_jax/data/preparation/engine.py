"""What every engine takes, finds and raises: one semantics, whoever reads, joins and sorts."""

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
"""Told what is being done, and to how many events, users or items it has been done."""


@dataclasses.dataclass(frozen=True)
class Times:
    """What times look like.

    Attributes:
      known: how many events have one.
      future: how many are dated after now.
      early: how many before 1990.
      alone: how many have a time and no order, so that the time sorts them.
      at_once: how many of these have the most frequent time.
    """

    known: int
    future: int
    early: int
    alone: int
    at_once: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What an engine has found while it wrote a domain.

    Attributes:
      counts: what was read, and what the rules left out before users were made, by name.
      rejected: lines by the reason why they were not used; they are in rejects.jsonl.
      fields_left_out: fields of listings by the reason why they were not used.
      times: of the events that stay until duplicates are sought.
      users, items: what was written.
      cold: {"validation", "test"}: how many targets are in no training sequence.
      ids_apart: where no event has an item that is listed, the first item id of each in the order
        of text: (of events, of items).
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
    """Brings raw files to the rules of `sequences`; all engines write the same records."""

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
          domain: whose sequences they are.
          source, files: what is read, and how.
          scratch: a workspace of the store, for what is temporary and for rejects.jsonl.
          writer: takes the records; the caller finishes it.
          report: told how far it is.

        Raises:
          CalrecError: a file cannot be read, or events lack the time that the rules need.
          OSError, tf.errors.OpError: the disk is full or not writable.
        """
