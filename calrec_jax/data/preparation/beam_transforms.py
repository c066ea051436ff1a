"""The work of Apache Beam's workers for `beam_engine`: each class or function handles one element.

A runner may repeat this work, or do it twice at the same time. So counts are returned together with
the rows that they are about, and files are written by `Scratch`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from calrec_jax.data.preparation import sequences
from calrec_jax.data.preparation.beam_scratch import Scratch
from calrec_jax.data.preparation.quiet_beam import TaggedOutput, beam, no_annotations
from calrec_jax.data.preparation.sequences import BEFORE_OUR_DATA, EventRow, Rules, User
from calrec_jax.data.preparation.statistics import ItemStatistics, UserStatistics
from calrec_jax.data.sources import Event, Item, Rejected, Source, read_events, read_items
from calrec_jax.data.store import shards
from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Fields

ListingRow = tuple[str, dict[str, str], int]
"""(item id, fields, position)."""


@dataclasses.dataclass
class Sums:
    """Sums over rows. Without arguments, the sums over no rows.

    Attributes:
      counts: {name: number}.
      users, items: statistics of what is written.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    users: UserStatistics = dataclasses.field(default_factory=UserStatistics)
    items: ItemStatistics = dataclasses.field(default_factory=ItemStatistics)

    @staticmethod
    def total(parts: Iterable[Sums]) -> Sums:
        """The sum of all parts."""
        total = Sums()
        for part in parts:
            total.counts.update(part.counts)
            total.users.merge(part.users)
            total.items.merge(part.items)
        return total


class PlainDoFn(beam.DoFn):
    """A DoFn whose annotations are for readers alone: Beam would choose coders by them."""

    def default_type_hints(self) -> None:
        """None: Beam infers no types."""


class Summing(PlainDoFn):
    """A DoFn with an additional output "sums": the `Sums` of each bundle."""

    def start_bundle(self) -> None:
        self.sums = Sums()

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        sums = beam.window.GlobalWindows.windowed_value(self.sums)
        yield TaggedOutput("sums", sums)


@dataclasses.dataclass
class Facts:
    """What is counted while one file is read, or all files.

    Attributes:
      counts: {name: number} of what was read and left out.
      rejected: {reason: number of lines}, in the order in which the reasons occur.
      left_out: {reason: number of items' fields}, in the same kind of order.
      problem: why the file cannot be read, or None.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rejected: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    problem: str | None = None

    def add(self, other: Facts) -> None:
        """Adds the facts of one more file. Raises CalrecError where it could not be read.

        Files must be added in their order.
        """
        if other.problem:
            raise CalrecError(other.problem)
        self.counts.update(other.counts)
        self.rejected.update(other.rejected)
        self.left_out.update(other.left_out)


class ReadFile(PlainDoFn):
    """(index, path) of a raw file -> its EventRows or ListingRows.

    Saves {kind}_{index}.facts, the Facts, and {kind}_{index}.rejects, lines of JSON.

    Args:
      kind: "events" or "listings".
    """

    def __init__(self, kind: str, source: Source, rules: Rules, scratch: Scratch):
        self._kind, self._source = kind, source
        self._rules, self._scratch = rules, scratch

    def process(self, file: tuple[int, str]) -> Iterator[EventRow | ListingRow]:
        index, path = file
        facts = Facts()
        name = f"{self._kind}_{index}"
        with self._scratch.create(f"{name}.rejects") as rejects:
            try:
                yield from self._rows(index, path, facts, rejects)
            except CalrecError as error:  # for the driver: a runner would wrap it
                facts.problem = str(error)
        self._scratch.save(facts, f"{name}.facts")

    def _rows(
        self, index: int, path: str, facts: Facts, rejects: BinaryIO
    ) -> Iterator[EventRow | ListingRow]:
        read, to_row = (
            (read_events, self._event) if self._kind == "events" else (read_items, self._listing)
        )
        for line, parsed in read(self._source, path):
            if type(parsed) is Rejected:
                facts.rejected[parsed.reason] += 1
                rejects.write(f"{json.dumps(parsed._asdict())}\n".encode())
                continue
            row = to_row(parsed, sequences.position(index, line), facts)
            if row is not None:
                yield row

    def _listing(self, item: Item, position: int, facts: Facts) -> ListingRow:
        facts.counts["items_read"] += 1
        facts.left_out.update(item.left_out)
        return item.item_id, item.fields, position

    def _event(self, event: Event, position: int, facts: Facts) -> EventRow | None:
        facts.counts["events_read"] += 1
        problem = sequences.event_problem(event, self._rules)
        if problem:
            facts.counts[problem] += 1
            return None
        return sequences.to_row(event, position)


class FirstListing(Summing):
    """(item id, ListingRows) -> (item id, problem or None).

    Its output "usable" is [item id, fields] where there is no problem.
    """

    def __init__(self, rules: Rules):
        self._rules = rules

    def process(
        self, group: tuple[str, Iterable[ListingRow]]
    ) -> Iterator[tuple[str, str | None] | TaggedOutput]:
        item_id, listings = group
        _, first, _ = min(listings, key=lambda listing: listing[2])
        for _, fields, _ in listings:
            self.sums.counts["items_listed_again"] += 1
            self.sums.counts["items_listed_differently"] += fields != first
        self.sums.counts["items_listed_again"] -= 1
        problem = sequences.item_problem(first, self._rules)
        self.sums.counts[problem or "items_usable"] += 1
        yield item_id, problem
        if problem is None:
            yield TaggedOutput("usable", (item_id, first))


class Sortable(Summing):
    """(user id, EventRows) -> (item id, EventRow) of each that is no duplicate and can be sorted.

    Counts events by their times, too.

    Args:
      now: the current time in Unix seconds.
    """

    def __init__(self, rules: Rules, now: float):
        self._rules, self._now = rules, now

    def process(self, group: tuple[str, Iterable[EventRow]]) -> Iterator[tuple[str, EventRow]]:
        _, rows = group
        rows = list(rows)
        self._count_times(rows)
        single = sequences.without_duplicates(rows, self._rules)
        sortable = sequences.sortable(single)
        self.sums.counts["events_duplicated"] += len(rows) - len(single)
        self.sums.counts["events_without_order"] += len(single) - len(sortable)
        for row in sortable:
            yield row[1], row

    def _count_times(self, rows: list[EventRow]) -> None:
        times = [row[3] for row in rows if row[3] is not None]
        self.sums.counts["times_known"] += len(times)
        self.sums.counts["times_future"] += sum(time > self._now for time in times)
        self.sums.counts["times_early"] += sum(time < BEFORE_OUR_DATA for time in times)
        self.sums.counts["times_alone"] += sum(row[2] is None for row in rows)


def time_of(row: EventRow) -> list[tuple[int, int]]:
    """[(timestamp, nanosecond)] of an event without an order; otherwise []."""
    return [(row[3], row[4])] if row[2] is None else []


def most(counts: Iterable[int]) -> int:
    """The greatest of `counts`; 0 where there are none."""
    return max(counts, default=0)


class KnownItems(Summing):
    """(item id, {"problems": [problem or None] or [], "rows": EventRows}) -> EventRows."""

    def process(self, group: tuple[str, Mapping[str, list[Any]]]) -> Iterator[EventRow]:
        _, joined = group
        rows = joined["rows"]
        self.sums.counts["events_listed"] += len(rows) if joined["problems"] else 0
        (problem,) = joined["problems"] or ["items_without_text"]
        if problem is None:
            self.sums.counts["events_known"] += len(rows)
            yield from rows
        elif problem == "items_without_required":
            self.sums.counts["events_without_required"] += len(rows)
        else:
            self.sums.counts["events_without_item"] += len(rows)


def least(ids: Iterable[str | None]) -> str | None:
    """The first id in the order of text; None where there is none."""
    return min((each for each in ids if each is not None), default=None)


class MarkUser(Summing):
    """(user id, EventRows) -> (item id, (whether the user has k events, EventRow)) for each row."""

    def __init__(self, k: int):
        self._k = k

    def process(
        self, group: tuple[str, Iterable[EventRow]]
    ) -> Iterator[tuple[str, tuple[bool, EventRow]]]:
        _, rows = group
        rows = list(rows)
        self.sums.counts["users"] += 1
        self.sums.counts["events_before"] += len(rows)
        for row in rows:
            yield row[1], (len(rows) >= self._k, row)


class LargeItem(Summing):
    """(item id, the outputs of `MarkUser`) -> EventRows where user and item have k events.

    Its output "ids" is (item id, True) of each item that has k events.
    """

    def __init__(self, k: int):
        self._k = k

    def process(
        self, group: tuple[str, Iterable[tuple[bool, EventRow]]]
    ) -> Iterator[EventRow | TaggedOutput]:
        item_id, marked = group
        if sum(1 for _ in marked) < self._k:
            return
        self.sums.counts["items"] += 1
        yield TaggedOutput("ids", (item_id, True))
        for large, row in marked:
            if large:
                self.sums.counts["events"] += 1
                yield row


Use = tuple[bool, int, int]
"""(an item is in a training sequence, how often it is a validation target, and a test target)."""


SequenceRecord = tuple[str, str, str, bytes]
"""(split, record key, user id, encoded record)."""


class MakeUser(Summing):
    """(user id, EventRows) -> the SequenceRecord of each sequence.

    Its output "uses" is (item id, Use) of each item.
    """

    def __init__(self, domain: str, rules: Rules):
        self._domain, self._rules = domain, rules

    def process(
        self, group: tuple[str, Iterable[EventRow]]
    ) -> Iterator[SequenceRecord | TaggedOutput]:
        user_id, rows = group
        events = map(sequences.from_row, rows)
        user = sequences.make_user(self._domain, user_id, events, self._rules)
        self.sums.users.add(user)
        key = shards.record_key(user_id)
        for split, sequence in user.splits.items():
            yield split, key, user_id, shards.encode_sequence(sequence)
        for use in _uses(user):
            yield TaggedOutput("uses", use)


def _uses(user: User) -> Iterator[tuple[str, Use]]:
    splits = user.splits
    trained = set(splits["train"].item_ids) if "train" in splits else set()
    validation, test = (
        splits[split].target if split in splits else None for split in ("validation", "test")
    )
    for item in {item for sequence in splits.values() for item in sequence.item_ids}:
        yield item, (item in trained, int(item == validation), int(item == test))


def add_uses(uses: Iterable[Use]) -> Use:
    """The sum of `uses`."""
    trained, validation, test = False, 0, 0
    for use in uses:
        trained = trained or use[0]
        validation += use[1]
        test += use[2]
    return trained, validation, test


class SelectItem(Summing):
    """(item id, {"fields", "core", "use": at most one each}) -> (item id, fields), if it is listed.

    Counts cold targets, too. "core" is only there with a k-core.
    """

    def __init__(self, rules: Rules):
        self._core, self._bought = rules.k_core > 0, rules.catalogue == "bought"

    def process(self, group: tuple[str, Mapping[str, list[Any]]]) -> Iterator[tuple[str, Fields]]:
        item_id, joined = group
        for trained, validation, test in joined["use"]:
            if not trained:
                self.sums.counts["cold_validation"] += validation
                self.sums.counts["cold_test"] += test
        if not joined["fields"] or (self._core and not joined["core"]):
            return
        if self._bought and not joined["use"]:
            self.sums.counts["items_not_bought"] += 1
            return
        (fields,) = joined["fields"]
        self.sums.items.add(item_id, fields)
        yield item_id, fields


Shard = tuple[str, int, int]
"""(split, number of its shards, index of the shard)."""

ShardRecord = tuple[str, str, bytes]
"""(record key, user id or item id, encoded record): sorts in the order of the store."""


@no_annotations
def place_sequence(record: SequenceRecord, sums: Sums) -> tuple[Shard, ShardRecord]:
    """The shard of an output of `MakeUser`, and its record."""
    split, key, user_id, encoded = record
    n = shards.num_shards(sums.users.examples[split], "sequences")
    return (split, n, shards.shard_of(key, n)), (key, user_id, encoded)


@no_annotations
def place_item(item: tuple[str, Fields], sums: Sums) -> tuple[Shard, ShardRecord]:
    """The shard of an output of `SelectItem`, of the split "items", and its record."""
    item_id, fields = item
    key = shards.record_key(item_id)
    n = shards.num_shards(sums.items.items, "items")
    encoded = shards.encode_item(item_id, fields, sorted(sums.items.with_field))
    return ("items", n, shards.shard_of(key, n)), (key, item_id, encoded)


def shard_name(split: str, shard: int) -> str:
    """The name of the file in which `write_shard` leaves a shard."""
    return f"shard_{split}_{shard}"


@no_annotations
def write_shard(
    shard_records: tuple[Shard, Iterable[ShardRecord]], scratch: Scratch
) -> tuple[str, int, int, int]:
    """Writes the file of a shard.

    Returns:
      (split, index of the shard, number of its records, their size in bytes).
    """
    (split, _, shard), records = shard_records
    encoded = [record for *_, record in sorted(records)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "shard")  # TensorFlow does not have all of Beam's file systems
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in encoded:
                writer.write(record)
        scratch.put(path, shard_name(split, shard))
    return split, shard, len(encoded), sum(map(len, encoded))
