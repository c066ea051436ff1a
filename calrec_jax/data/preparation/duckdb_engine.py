"""Prepares a domain of any size on one machine: DuckDB joins, counts and sorts on the disk.

The rules are in `sequences`. This engine only brings the data to them, in batches, so that memory
does not grow with the number of events.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import json
import operator
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from calrec_jax.data.preparation import duckdb_queries as queries
from calrec_jax.data.preparation import sequences
from calrec_jax.data.preparation.engine import Prepared, Report
from calrec_jax.data.preparation.sequences import Positioned, Rules, User
from calrec_jax.data.preparation.statistics import ItemStatistics, UserStatistics
from calrec_jax.data.sources import (
    Event,
    Item,
    RawFiles,
    Rejected,
    Source,
    read_events,
    read_items,
)
from calrec_jax.data.store.datasets import DomainWriter
from calrec_jax.errors import CalrecError, is_full_disk
from calrec_jax.text.items import Fields

_SETTINGS = {
    "memory_limit": "1GB",
    "threads": 2,
    "preserve_insertion_order": False,
    "autoinstall_known_extensions": False,
}
_ROWS = 50_000  # rows in memory at a time
_USES = 500_000  # items whose uses are counted in memory before they are written to the disk

_EVENTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("order", pa.string()),
        ("timestamp", pa.int64()),
        ("nanosecond", pa.int32()),
        ("position", pa.int64()),
    ]
)
_LISTINGS = pa.schema(
    [
        ("item_id", pa.string()),
        ("fields", pa.string()),  # JSON
        ("names", pa.list_(pa.string())),  # of the fields
        ("problem", pa.string()),
        ("position", pa.int64()),
    ]
)
_USE = pa.schema(
    [
        ("item_id", pa.string()),
        ("trained", pa.bool_()),  # it is in a training sequence
        ("validation", pa.int64()),  # how often it is a target of this split
        ("test", pa.int64()),
    ]
)


def run(
    domain: str,
    source: Source,
    files: RawFiles,
    rules: Rules,
    scratch: pathlib.Path,
    writer: DomainWriter,
    report: Report,
) -> Prepared:
    """An `engine.Engine`: see there.

    Raises:
      CalrecError: also where DuckDB cannot work in the scratch folder.
    """
    scratch = scratch.absolute()  # DuckDB could take a relative path for a URL, or expand its ~
    if any(character in str(scratch) for character in "?\\"):
        raise CalrecError(
            f"the engine 'duckdb' cannot work in {scratch}: DuckDB has another meaning for ? and "
            f"\\ in a path; choose another folder for the store"
        )
    with _database(scratch) as db, (scratch / "rejects.jsonl").open("w") as rejects:
        raw = _RawReader(db, source, rules, report, rejects)
        raw.read(files)
        counts = dict(raw.counts)
        sequences.check_times(domain, counts.pop("events_untimed"))
        report("sorting", counts["events_read"])
        times = queries.describe_times(db, raw.now)
        counts |= queries.select_items(db) | queries.select_events(db, rules)
        ids_apart = queries.ids_apart(db)
        counts |= queries.select_core(db, rules)
        queries.export_events(db, scratch / "events.parquet")
    # Users are written while the database is closed, which frees its memory.
    users = _write_users(domain, rules, scratch, writer, report)
    with _database(scratch) as db:
        _Uses.read(db, scratch)
        counts |= queries.select_catalogue(db, bought=rules.catalogue == "bought")
        items = _write_items(db, scratch / "items.parquet", writer, report)
        cold = queries.cold_targets(db)
    rejected, left_out = dict(raw.rejected), dict(raw.left_out)
    return Prepared(counts, rejected, left_out, times, users, items, cold, ids_apart)


@contextlib.contextmanager
def _database(scratch: pathlib.Path) -> Iterator[duckdb.DuckDBPyConnection]:
    settings = _SETTINGS | {"temp_directory": str(scratch / "spilled")}
    try:
        with duckdb.connect(str(scratch / "tables.duckdb"), config=settings) as db:
            yield db
    except duckdb.Error as error:
        # DuckDB may fill 90 % of the disk with spilled data, and then reports "out of memory".
        if is_full_disk(error) or "max_temp_directory_size" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, duckdb.IOException):
            raise OSError(str(error)) from error
        raise


class _RawReader:
    """Reads raw files into the tables `events` and `listings`.

    Args:
      rejects: the open file rejects.jsonl.

    Attributes:
      counts: {name: number} of what was read and left out.
      rejected: {reason: number of lines}.
      left_out: {reason: number of items' fields}.
      now: the current time in Unix seconds.
    """

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        source: Source,
        rules: Rules,
        report: Report,
        rejects: TextIO,
    ):
        self._db, self._source, self._rules = db, source, rules
        self._report, self._rejects = report, rejects
        self.counts = dict.fromkeys(sequences.READ_COUNTS, 0)
        self.rejected: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.now = time.time()

    def read(self, files: RawFiles) -> None:
        """Reads all files, items first: they are fewer, so a mistake in them is found sooner."""
        self._fill("listings", _LISTINGS, self._listings(files), "items_read")
        self._fill("events", _EVENTS, self._events(files), "events_read")

    def _fill(self, table: str, schema: pa.Schema, rows: Iterator[tuple], count: str) -> None:
        _create(self._db, table, schema)
        while batch := list(itertools.islice(rows, _ROWS)):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)]
            self._db.register("batch", pa.table(arrays, schema=schema))
            self._db.execute(f"INSERT INTO {table} FROM batch")
            self._report(f"reading {table}", self.counts[count])

    def _listings(self, files: RawFiles) -> Iterator[tuple]:
        for file, line, item in self._parse(files.items, read_items):
            self.counts["items_read"] += 1
            self.left_out.update(item.left_out)
            text = json.dumps(item.fields, sort_keys=True)
            problem = sequences.item_problem(item.fields, self._rules)
            where = sequences.position(file, line)
            yield item.item_id, text, list(item.fields), problem, where

    def _events(self, files: RawFiles) -> Iterator[tuple]:
        for file, line, event in self._parse(files.events, read_events):
            self.counts["events_read"] += 1
            problem = sequences.event_problem(event, self._rules)
            if problem:
                self.counts[problem] += 1
            else:
                yield sequences.to_row(event, sequences.position(file, line))

    def _parse(
        self,
        paths: Sequence[str],
        read: Callable[[Source, str], Iterator[tuple[int, Event | Item | Rejected]]],
    ) -> Iterator[tuple[int, int, Any]]:
        """(index of the file, line, event or item) of each line that can be used."""
        for file, path in enumerate(paths):
            for line, parsed in read(self._source, path):
                if type(parsed) is not Rejected:
                    yield file, line, parsed
                else:
                    self._reject(parsed)

    def _reject(self, rejected: Rejected) -> None:
        self.rejected[rejected.reason] += 1
        self._rejects.write(json.dumps(rejected._asdict()) + "\n")


def _create(db: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema) -> None:
    db.register("batch", schema.empty_table())
    db.execute(f"CREATE TABLE {table} AS FROM batch")


def _write_users(
    domain: str, rules: Rules, scratch: pathlib.Path, writer: DomainWriter, report: Report
) -> UserStatistics:
    statistics, uses = UserStatistics(), _Uses(scratch)
    for done, (user_id, events) in enumerate(_users(scratch / "events.parquet"), start=1):
        user = sequences.make_user(domain, user_id, events, rules)
        statistics.add(user)
        if user.splits:
            writer.add_user(user_id, user.splits)
            uses.add(user)
        if done % _ROWS == 0:
            report("writing users", done)
    uses.flush()
    return statistics


def _users(path: pathlib.Path) -> Iterator[tuple[str, list[Positioned]]]:
    for user_id, rows in itertools.groupby(_rows(path), operator.itemgetter(0)):
        yield user_id, list(map(sequences.from_row, rows))


def _rows(path: pathlib.Path) -> Iterator[tuple]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Uses:
    """Counts which items are in training sequences and which are targets; partly on the disk."""

    def __init__(self, scratch: pathlib.Path):
        self._scratch, self._files = scratch, 0
        self._clear()

    def _clear(self) -> None:
        self._used, self._trained = set(), set()
        self._targets = {"validation": collections.Counter(), "test": collections.Counter()}

    def add(self, user: User) -> None:
        """Counts a user's sequences."""
        for split, sequence in user.splits.items():
            self._used.update(sequence.item_ids)
            if split == "train":
                self._trained.update(sequence.item_ids)
            else:
                self._targets[split][sequence.target] += 1
        if len(self._used) >= _USES:
            self.flush()

    def flush(self) -> None:
        """Moves the counts since the last flush to the disk."""
        validation, test = self._targets["validation"], self._targets["test"]
        rows = [(i, i in self._trained, validation[i], test[i]) for i in self._used]
        columns = zip(*rows, strict=True) if rows else [[]] * len(_USE)
        arrays = [pa.array(c, t) for c, t in zip(columns, _USE.types, strict=True)]
        table = pa.table(arrays, schema=_USE)
        pq.write_table(table, self._scratch / f"uses_{self._files}.parquet")
        self._files += 1
        self._clear()

    @staticmethod
    def read(db: duckdb.DuckDBPyConnection, scratch: pathlib.Path) -> None:
        """Makes the table `uses`, which may have several rows for an item."""
        _create(db, "uses", _USE)
        for path in sorted(scratch.glob("uses_*.parquet")):
            db.register("batch", pq.read_table(path))
            db.execute("INSERT INTO uses FROM batch")


def _write_items(
    db: duckdb.DuckDBPyConnection, path: pathlib.Path, writer: DomainWriter, report: Report
) -> ItemStatistics:
    statistics = ItemStatistics()
    queries.export_catalogue(db, path)

    def items() -> Iterator[tuple[str, Fields]]:
        for item_id, text, *_ in _rows(path):
            fields = json.loads(text)
            statistics.add(item_id, fields)
            if statistics.items % _ROWS == 0:
                report("writing items", statistics.items)
            yield item_id, fields

    writer.write_items(queries.field_names(db), items())
    return statistics
