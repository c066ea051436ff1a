"""Prepares a domain with Apache Beam, on any of its runners: one machine, or many.

What the rules decide is in `sequences`; the dataset is, byte for byte, that of `duckdb_engine`.

Each step is a pipeline. It hands rows to the next in files, one JSON array a line, and tells the
driver sums alone, so that the driver's memory does not grow with users, items or events. All
machines must reach the store and local raw files by the same paths, which are then to be absolute.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import pathlib
import pickle
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from calrec_jax.data import beam_transforms as transforms
from calrec_jax.data import sequences, shards
from calrec_jax.data.beam_transforms import Facts, Sums
from calrec_jax.data.duckdb_engine import Prepared, Report
from calrec_jax.data.quiet_beam import PipelineOptions, StandardOptions, beam
from calrec_jax.data.sequences import Rules
from calrec_jax.data.shards import Split
from calrec_jax.data.sources import RawFiles, Source
from calrec_jax.data.statistics import SPLITS
from calrec_jax.data.store import DomainWriter
from calrec_jax.errors import CalrecError, is_full_disk

# "DirectRunner" may download another runner and start it; this one is what it was before.
_IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_COUNTED = (
    *(name for name in sequences.READ_COUNTS if name != "events_untimed"),
    "items_listed_again",
    "items_listed_differently",
    "items_without_text",
    "items_without_required",
    "events_without_order",
    "events_without_item",
    "events_without_required",
    "events_not_in_core",
    "users_not_in_core",
    "items_not_in_core",
    "items_not_bought",
)


def run(
    domain: str,
    source: Source,
    files: RawFiles,
    rules: Rules,
    scratch: pathlib.Path,
    writer: DomainWriter,
    report: Report,
    options: Sequence[str] = (),
) -> Prepared:
    """Reads the raw files, applies the rules and writes all records.

    Args:
      scratch: for what is temporary, and for rejects.jsonl.
      options: Beam's, as "--runner=FlinkRunner". Without a runner all is done in this process.

    Raises:
      CalrecError: a file cannot be read, events lack the time that the rules need, or Beam does not
        take the options or the scratch folder's path.
      OSError, tf.errors.OpError: the disk is full or not writable.
    """
    if any(character in "*?[" for character in str(scratch)):
        raise CalrecError(
            f"the engine 'beam' cannot work in {scratch}: Beam would take * ? and [ for wild "
            f"cards; choose another store"
        )
    engine = _Engine(domain, rules, scratch, pipeline_options(options))
    report("reading", 0)
    facts = engine.read(source, files)
    sequences.check_times(domain, facts.counts["events_untimed"])
    report("joining", facts.counts["events_read"])
    counts = facts.counts + engine.select(facts.ordered)
    report("counting", counts["events_known"])
    if rules.k_core:
        users, events, items = engine.shrink_to_core()
        counts["events_not_in_core"] = counts["events_known"] - events
        counts["items_not_in_core"] = counts["items_usable"] - items
    report("writing", counts["events_known"] - counts["events_not_in_core"])
    written = engine.write(writer)
    if rules.k_core:
        counts["users_not_in_core"] = users - _users_made(written)
    counts["items_not_bought"] = written.counts["items_not_bought"]
    return Prepared(
        {name: counts[name] for name in _COUNTED},
        dict(facts.rejected),
        facts.future_events,
        written.users,
        written.items,
        {split: written.counts[f"cold_{split}"] for split in ("validation", "test")},
    )


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """Options for Beam. Raises CalrecError where Beam does not take them."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions(list(flags))
            standard = options.view_as(StandardOptions)
            standard.runner = standard.runner or _IN_PROCESS
            options.get_all_options(display_warnings=True)
            beam.Pipeline(options=options)  # whose runner may be unknown
    except (SystemExit, ValueError, ImportError, AttributeError) as error:
        lines = complaint.getvalue().splitlines() or str(error).splitlines() or [repr(error)]
        given = shlex.join(flags)
        raise CalrecError(f"Beam does not take the options {given}: {lines[-1]}") from error
    sys.stderr.write(complaint.getvalue())  # of options that the runner may know, or nobody does
    return options


@dataclasses.dataclass(frozen=True)
class _Engine:
    """The steps, in their order.

    Rows are in folders of `scratch`: "listings" and "events" as they are read; "items", those that
    can be used; "kept", the events that the rules have left so far; "core", the ids of its items.
    """

    domain: str
    rules: Rules
    scratch: pathlib.Path
    options: PipelineOptions

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[beam.Pipeline]:
        try:
            with beam.Pipeline(options=self.options) as pipeline:
                yield pipeline
        except Exception as error:
            if _is_full_disk(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    def _rows(self, pipeline: beam.Pipeline, name: str) -> beam.PCollection:
        """The rows that an earlier step has written."""
        pattern = str(self.scratch / name / "part-*")
        lines = pipeline | f"read {name}" >> beam.io.ReadFromText(pattern)
        return lines | f"decode {name}" >> beam.Map(json.loads)

    def _write_rows(self, rows: beam.PCollection, name: str) -> None:
        prefix = str(self.scratch / name / "part")
        lines = rows | f"encode {name}" >> beam.Map(json.dumps)
        lines | f"write {name}" >> beam.io.WriteToText(prefix)

    def _tell(self, value: beam.PCollection, name: str) -> None:
        """Saves the one element of a collection, for `_told`."""
        value | f"tell {name}" >> beam.Map(transforms.save, self.scratch / name)

    def _told(self, name: str) -> Any:
        return pickle.loads((self.scratch / name).read_bytes())

    def _tell_sums(self, name: str, *transformed: beam.pvalue.DoOutputsTuple) -> beam.PCollection:
        """Saves what several `Summing`s have added up, and returns it."""
        parts = tuple(outputs.sums for outputs in transformed) | f"all of {name}" >> beam.Flatten()
        sums = parts | f"add {name}" >> beam.CombineGlobally(Sums.of)
        self._tell(sums, name)
        return sums

    def read(self, source: Source, files: RawFiles) -> Facts:
        """Makes "listings" and "events", and rejects.jsonl in the order of the files' lines."""
        kinds = {"listings": files.items, "events": files.events}
        now = time.time()
        with self._pipeline() as pipeline:
            for kind, paths in kinds.items():
                read = transforms.ReadFile(kind, source, self.rules, now, self.scratch)
                rows = (
                    pipeline
                    | f"files of {kind}" >> beam.Create(list(enumerate(paths)))
                    | f"spread files of {kind}" >> beam.Reshuffle()
                    | f"parse {kind}" >> beam.ParDo(read)
                )
                self._write_rows(rows, kind)
        found = Facts()
        with (self.scratch / "rejects.jsonl").open("wb") as rejects:
            for name in (f"{kind}_{n}" for kind, paths in kinds.items() for n in range(len(paths))):
                found.add(self._told(f"{name}.facts"))
                with (self.scratch / f"{name}.rejects").open("rb") as of_file:
                    shutil.copyfileobj(of_file, rejects)
        return found

    def select(self, ordered: bool) -> collections.Counter:
        """Makes "items" of the first listings, and "kept" of the events of these items.

        Args:
          ordered: whether any event has an order.
        """
        first_listing = transforms.FirstListing(self.rules)
        sortable = transforms.Sortable(ordered)
        with self._pipeline() as pipeline:
            items = (
                self._rows(pipeline, "listings")
                | "listings by item" >> beam.Map(_first)
                | "group listings" >> beam.GroupByKey()
                | "first listing" >> beam.ParDo(first_listing).with_outputs(main="problems")
            )
            events = self._rows(pipeline, "events") | "sortable" >> beam.ParDo(
                sortable
            ).with_outputs(main="rows")
            known = (
                {"problems": items.problems, "rows": events.rows}
                | "join" >> beam.CoGroupByKey()
                | "known" >> beam.ParDo(transforms.Known()).with_outputs(main="rows")
            )
            self._write_rows(items.usable, "items")
            self._write_rows(known.rows, "kept")
            self._tell_sums("selected", items, events, known)
        return self._told("selected").counts

    def shrink_to_core(self) -> tuple[int, int, int]:
        """Leaves of "kept" what is in the k-core, and makes "core".

        Returns:
          How many users there were; events that are left; items of the core.
        """
        users = []
        for n in itertools.count():
            told = self._shrink(f"core_{n}")
            users.append(told["users"])
            if told["events"] == told["events_before"] or not self.rules.k_core_iterated:
                return users[0], told["events"], told["items"]

    def _shrink(self, name: str) -> collections.Counter:
        """Takes events of small users and of small items out of "kept", both counted in it."""
        k = self.rules.k_core
        with self._pipeline() as pipeline:
            users = (
                self._rows(pipeline, "kept")
                | "by user" >> beam.Map(_first)
                | "group by user" >> beam.GroupByKey()
                | "mark users" >> beam.ParDo(transforms.MarkUser(k)).with_outputs(main="marked")
            )
            items = (
                users.marked
                | "group by item" >> beam.GroupByKey()
                | "large items" >> beam.ParDo(transforms.LargeItem(k)).with_outputs(main="rows")
            )
            self._write_rows(items.rows, f"{name}_kept")
            self._write_rows(items.ids, f"{name}_ids")
            self._tell_sums(name, users, items)
        for made, place in ((f"{name}_kept", "kept"), (f"{name}_ids", "core")):
            shutil.rmtree(self.scratch / place, ignore_errors=True)
            (self.scratch / made).rename(self.scratch / place)
        return self._told(name).counts

    def write(self, writer: DomainWriter) -> Sums:
        """Writes the shards of all splits and of the catalogue."""
        folders = {split: writer.folder("sequences") for split in SPLITS}
        folders["items"] = writer.folder("items")
        write_shard = transforms.shard_writer(self.domain, folders, self.scratch)
        with self._pipeline() as pipeline:
            users = self._users(pipeline)
            items = self._catalogue(pipeline, users.uses)
            sums = beam.pvalue.AsSingleton(self._tell_sums("written", users, items))
            placed = (
                users.records | "place sequences" >> beam.Map(transforms.place_sequence, sums),
                items.listed | "place items" >> beam.Map(transforms.place_item, sums),
            )
            written = (
                placed
                | "all records" >> beam.Flatten()
                | "by shard" >> beam.GroupByKey()
                | "write shards" >> beam.MapTuple(write_shard)
                | "all shards" >> beam.combiners.ToList()
            )
            self._tell(written, "shards")
        sums, written = self._told("written"), self._told("shards")
        records = {split: sums.users.examples[split] for split in SPLITS}
        records["items"] = sums.items.items
        splits = {
            split: _split(self.domain, split, folder, records[split], written)
            for split, folder in folders.items()
        }
        writer.take_shards(sorted(sums.items.with_field), splits)
        return sums

    def _users(self, pipeline: beam.Pipeline) -> beam.pvalue.DoOutputsTuple:
        """The outputs of `MakeUser`; the main one is "records"."""
        make_user = transforms.MakeUser(self.domain, self.rules)
        return (
            self._rows(pipeline, "kept")
            | "by user" >> beam.Map(_first)
            | "group by user" >> beam.GroupByKey()
            | "make users" >> beam.ParDo(make_user).with_outputs(main="records")
        )

    def _catalogue(self, pipeline: beam.Pipeline, uses) -> beam.pvalue.DoOutputsTuple:
        """The outputs of `SelectItem`; the main one is "listed"."""
        joined = {
            "fields": self._rows(pipeline, "items"),
            "use": uses | "add uses" >> beam.CombinePerKey(transforms.add_uses),
        }
        if self.rules.k_core:
            joined["core"] = self._rows(pipeline, "core")
        select = transforms.SelectItem(self.rules)
        return (
            joined
            | "join items" >> beam.CoGroupByKey()
            | "select items" >> beam.ParDo(select).with_outputs(main="listed")
        )


def _users_made(sums: Sums) -> int:
    """How many users had any event left."""
    names = ("users", "users_too_short", "users_without_example")
    return sum(sums.users.counts[name] for name in names)


def _first(row: Sequence) -> tuple[Any, Sequence]:
    """A row, by what comes first in it."""
    return row[0], row


def _split(domain, split, folder, records: int, written) -> Split:
    """What was written of a split. Adds shards that have got no record."""
    n = shards.num_shards(records, "items" if split == "items" else "sequences")
    lengths, num_bytes = [0] * n, 0
    for name, shard, length, size in written:
        if name == split:
            lengths[shard] = length
            num_bytes += size
    for shard in (shard for shard in range(n) if not lengths[shard]):
        shards.shard_path(folder, domain, split, shard, n).touch()
    return Split(lengths, num_bytes)


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None and not is_full_disk(error):
        error = error.__cause__ or error.__context__
    return error is not None
