"""Statistics that describe a dataset: sums over users and items, which merge in any order."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calrec_jax.data.store.checksums import checksum, item_digest, sequence_digest
from calrec_jax.text.items import SPLITS, Fields

if TYPE_CHECKING:  # code that only reads the store must not import the sources
    from calrec_jax.data.preparation.sequences import User
    from calrec_jax.data.sources import Event

FIELDS = ("title", "category", "brand", "price")  # the default template's


@dataclasses.dataclass
class UserStatistics:
    """Sums over users. Without arguments, the sums over no users.

    Attributes:
      counts: {name: number}: users left out by each rule, users and events that stay, and more.
      examples: {split: number of sequences}.
      digests: {split: sum of the sequences' digests}.
      lengths: {number of events: number of users that have so many}.
      pairs, same_time: pairs of consecutive events with known times; those whose times are equal.
      timed_targets, same_time_targets: test targets with known times; those whose time is that of
        the item before.
      first, last: Unix seconds of the oldest and the newest event; None where no time is known.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    digests: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    pairs: int = 0
    same_time: int = 0
    timed_targets: int = 0
    same_time_targets: int = 0
    first: int | None = None
    last: int | None = None

    def add(self, user: User) -> None:
        """Counts one user, kept or left out."""
        self.counts["repeats_merged"] += user.repeats_merged
        if user.problem:
            self.counts[user.problem] += 1
            return
        self.counts["users"] += 1
        self.counts["events"] += len(user.events)
        self.counts["events_unused"] += user.events_unused
        self.lengths[len(user.events)] += 1
        for split, sequence in user.splits.items():
            self.examples[split] += 1
            self.digests[split] += sequence_digest(sequence)
        self._add_times(user.events)
        if "test" in user.splits and user.splits["test"].timestamps:
            _, end = user.windows["test"]
            self.timed_targets += 1
            self.same_time_targets += _same_time(*user.events[end - 2 : end])

    def _add_times(self, events: Sequence[Event]) -> None:
        for before, event in itertools.pairwise(events):
            if before.timestamp is not None and event.timestamp is not None:
                self.pairs += 1
                self.same_time += _same_time(before, event)
        times = [event.timestamp for event in events if event.timestamp is not None]
        if times:
            self.first = _least(self.first, min(times))
            self.last = _greatest(self.last, max(times))

    def merge(self, other: UserStatistics) -> None:
        """Adds the sums of `other`."""
        for name in ("counts", "examples", "digests", "lengths"):
            getattr(self, name).update(getattr(other, name))
        for name in ("pairs", "same_time", "timed_targets", "same_time_targets"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first = _least(self.first, other.first)
        self.last = _greatest(self.last, other.last)

    def result(self) -> dict[str, Any]:
        """The entries of stats.json about users."""
        return {
            "users": self.counts["users"],
            "events": self.counts["events"],
            "examples": {split: self.examples[split] for split in SPLITS},
            "repeats_merged": self.counts["repeats_merged"],
            "users_too_short": self.counts["users_too_short"],
            "users_without_example": self.counts["users_without_example"],
            "events_unused": self.counts["events_unused"],
            "lengths": describe_lengths(self.lengths),
            "same_time": _share(self.same_time, self.pairs),
            "same_time_target_share": _share(self.same_time_targets, self.timed_targets),
            "time": {"first": _date(self.first), "last": _date(self.last)},
        }

    def checksums(self) -> dict[str, str]:
        """{split: checksum}."""
        return {split: checksum(self.digests[split]) for split in SPLITS}


@dataclasses.dataclass
class ItemStatistics:
    """Sums over the items of the catalogue. Without arguments, the sums over no items.

    Attributes:
      items: the number of items.
      with_field: {field: number of items that have it}.
      digests: the sum of the items' digests.
    """

    items: int = 0
    with_field: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    digests: int = 0

    def add(self, item_id: str, fields: Fields) -> None:
        """Counts one item with `fields`, of which none is empty."""
        self.items += 1
        self.with_field.update(fields.keys())
        self.digests += item_digest(item_id, fields)

    def merge(self, other: ItemStatistics) -> None:
        """Adds the sums of `other`."""
        self.items += other.items
        self.with_field.update(other.with_field)
        self.digests += other.digests

    def result(self) -> dict[str, Any]:
        """The entries of stats.json about items."""
        names = dict.fromkeys((*FIELDS, *sorted(self.with_field)))
        return {
            "items": self.items,
            "missing_share": {
                name: _share(self.items - self.with_field[name], self.items) for name in names
            },
        }

    def checksums(self) -> dict[str, str]:
        """{"items": checksum}."""
        return {"items": checksum(self.digests)}


def describe_lengths(lengths: Mapping[int, int]) -> dict[str, float | int | None]:
    """Mean, median, 90th percentile and maximum of users' numbers of events.

    A percentile is the least length that so many percent of the users do not exceed.

    Args:
      lengths: {length: number of users that have it}.
    """
    users = sum(lengths.values())
    if not users:
        return dict.fromkeys(("mean", "median", "p90", "max"))
    return {
        "mean": sum(length * n for length, n in lengths.items()) / users,
        "median": _percentile(lengths, 50, users),
        "p90": _percentile(lengths, 90, users),
        "max": max(lengths),
    }


def _percentile(lengths: Mapping[int, int], percent: int, users: int) -> int:
    reached = 0
    for length in sorted(lengths):
        reached += lengths[length]
        if 100 * reached >= percent * users:
            break
    return length


def cold_target_shares(
    cold: Mapping[str, int], examples: Mapping[str, int]
) -> dict[str, float | None]:
    """The shares of test and validation targets that are in no training sequence.

    Args:
      cold: {"validation", "test": number of such targets}.
      examples: {"validation", "test": number of all targets}.
    """
    return {
        "cold_target_share": _share(cold["test"], examples["test"]),
        "cold_validation_target_share": _share(cold["validation"], examples["validation"]),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _date(seconds: int | None) -> str | None:
    """The ISO date, of any year: times that are milliseconds by mistake are far in the future."""
    return None if seconds is None else str(np.datetime64(seconds, "s").astype("datetime64[D]"))


def _same_time(a: Event, b: Event) -> bool:
    """Whether times are equal, to the nanosecond (the store keeps only seconds)."""
    return (a.timestamp, a.nanosecond) == (b.timestamp, b.nanosecond)


def _least(a: int | None, b: int | None) -> int | None:
    return min((x for x in (a, b) if x is not None), default=None)


def _greatest(a: int | None, b: int | None) -> int | None:
    return max((x for x in (a, b) if x is not None), default=None)
