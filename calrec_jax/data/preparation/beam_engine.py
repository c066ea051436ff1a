"""Prepares a domain with Apache Beam, on any of its runners: on one machine, or on many.

The rules are in `sequences`; the dataset is, byte for byte, that of `duckdb_engine`.

Each step is a pipeline. It passes rows to the next one in files, one JSON array per line, and only
sums to the driver, so that the driver's memory does not grow with users, items or events. All
machines must reach the raw files and the scratch folder by the same names; only the driver works
in the store.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import operator
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from calrec_jax.data.preparation import beam_transforms as transforms
from calrec_jax.data.preparation import sequences
from calrec_jax.data.preparation.beam_scratch import Scratch, own_folder, temporary_files_in
from calrec_jax.data.preparation.beam_transforms import Facts, Sums
from calrec_jax.data.preparation.engine import Prepared, Report, Times
from calrec_jax.data.preparation.quiet_beam import PipelineOptions, StandardOptions, beam
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.preparation.statistics import SPLITS
from calrec_jax.data.sources import RawFiles, Source
from calrec_jax.data.store import shards
from calrec_jax.data.store.datasets import DomainWriter
from calrec_jax.data.store.shards import Split
from calrec_jax.errors import CalrecError, is_full_disk

# "DirectRunner" may download and start another runner; this is the runner that it used to be.
_IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_COUNTED = (
    *(name for name in sequences.READ_COUNTS if name != "events_untimed"),
    "items_listed_again",
    "items_listed_differently",
    "items_without_text",
    "items_without_required",
    "events_duplicated",
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
    beam_scratch: str | None = None,
) -> Prepared:
    """An `engine.Engine`: see there.

    Args:
      options: Beam's options, such as "--runner=FlinkRunner". Without a runner, the pipelines run
        in this process.
      beam_scratch: a path, or a URL of Beam's file systems; the folder in which a folder for the
        workers' files is made, and deleted at the end. None: `scratch`.

    Raises:
      CalrecError: also where Beam does not take the options or cannot work in the scratch folder.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(temporary_files_in(scratch / "temporary"))
        beam_options = pipeline_options(options)
        parent = str(scratch) if beam_scratch is None else beam_scratch
        shared = stack.enter_context(own_folder(parent, domain))
        engine = _Engine(domain, rules, shared, beam_options)
        return _run(engine, source, files, scratch, writer, report)


def _run(
    engine: _Engine,
    source: Source,
    files: RawFiles,
    workspace: pathlib.Path,
    writer: DomainWriter,
    report: Report,
) -> Prepared:
    report("reading", 0)
    facts = engine.read(source, files, workspace / "rejects.jsonl")
    sequences.check_times(engine.domain, facts.counts["events_untimed"])
    report("joining", facts.counts["events_read"])
    now = time.time()
    selected, at_once = engine.select(now)
    counts = facts.counts + selected
    ids_apart = None if counts["events_listed"] else engine.least_ids(now)
    report("counting", counts["events_known"])
    passes = 0
    if engine.rules.k_core:
        core = engine.shrink_to_core()
        passes = core["passes"]
        counts["events_not_in_core"] = counts["events_known"] - core["events"]
        counts["items_not_in_core"] = counts["items_usable"] - core["items"]
    report("writing", counts["events_known"] - counts["events_not_in_core"])
    written = engine.write(writer, passes)
    if engine.rules.k_core:
        counts["users_not_in_core"] = core["users"] - _users_made(written)
    counts["items_not_bought"] = written.counts["items_not_bought"]
    return Prepared(
        {name: counts[name] for name in _COUNTED},
        dict(facts.rejected),
        dict(facts.left_out),
        Times(
            *(counts[f"times_{name}"] for name in ("known", "future", "early", "alone")), at_once
        ),
        written.users,
        written.items,
        {split: written.counts[f"cold_{split}"] for split in ("validation", "test")},
        ids_apart,
    )


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from flags. Raises CalrecError where Beam does not accept them."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions(list(flags))
            standard = options.view_as(StandardOptions)
            standard.runner = standard.runner or _IN_PROCESS
            options.get_all_options(display_warnings=True)
            beam.Pipeline(options=options)  # raises if the runner is unknown
    except (SystemExit, ValueError, ImportError, AttributeError) as error:
        message = complaint.getvalue() if isinstance(error, SystemExit) else str(error)
        lines = message.splitlines() or [repr(error)]
        given = shlex.join(flags)
        raise CalrecError(f"Beam does not take the options {given}: {lines[-1]}") from error
    sys.stderr.write(complaint.getvalue())  # about options that only the runner may know
    return options


@dataclasses.dataclass(frozen=True)
class _Engine:
    """The steps, in the order in which they run.

    Rows are in folders of `scratch`: "listings" and "events" as they are read; "items", the items
    that can be used; "kept_N", the events that stay after the rules and N passes of the k-core;
    "core_N", the ids of the items that stay after N passes.
    """

    domain: str
    rules: Rules
    scratch: Scratch
    options: PipelineOptions

    @contextlib.contextmanager
    def _pipeline(self) -> Iterator[beam.Pipeline]:
        try:
            with beam.Pipeline(options=self.options) as pipeline:
                yield pipeline
        except Exception as error:
            if _is_full_disk(error):
                raise CalrecError(
                    f"no space left on the disk of {self.scratch.folder}, or on that of a worker's "
                    f"temporary files; nothing that was there before is lost"
                ) from error
            raise

    def _rows(self, pipeline: beam.Pipeline, name: str) -> beam.PCollection:
        """The rows that an earlier step has written into the folder `name`."""
        pattern = self.scratch.path(f"{name}/part-*")
        lines = pipeline | f"read {name}" >> beam.io.ReadFromText(pattern)
        return lines | f"decode {name}" >> beam.Map(json.loads)

    def _write_rows(self, rows: beam.PCollection, name: str) -> None:
        lines = rows | f"encode {name}" >> beam.Map(json.dumps)
        lines | f"write {name}" >> beam.io.WriteToText(self.scratch.path(f"{name}/part"))

    def _save(self, value: beam.PCollection, name: str) -> None:
        """Saves the one element of a collection for the driver."""
        value | f"save {name}" >> beam.Map(self.scratch.save, name)

    def _save_sums(self, name: str, *transformed: beam.pvalue.DoOutputsTuple) -> beam.PCollection:
        """Adds up the sums of several `Summing`s, saves the total for the driver and returns it."""
        parts = tuple(outputs.sums for outputs in transformed) | f"all of {name}" >> beam.Flatten()
        sums = parts | f"add {name}" >> beam.CombineGlobally(Sums.total)
        self._save(sums, name)
        return sums

    def read(self, source: Source, files: RawFiles, rejects_path: pathlib.Path) -> Facts:
        """Makes "listings" and "events", and writes `rejects_path` in the order of the files."""
        kinds = {"listings": files.items, "events": files.events}
        with self._pipeline() as pipeline:
            for kind, paths in kinds.items():
                read = transforms.ReadFile(kind, source, self.rules, self.scratch)
                rows = (
                    pipeline
                    | f"files of {kind}" >> beam.Create(list(enumerate(paths)))
                    | f"spread files of {kind}" >> beam.Reshuffle()
                    | f"parse {kind}" >> beam.ParDo(read)
                )
                self._write_rows(rows, kind)
        facts = Facts()
        with rejects_path.open("wb") as rejects:
            for name in (f"{kind}_{n}" for kind, paths in kinds.items() for n in range(len(paths))):
                facts.add(self.scratch.load(f"{name}.facts"))
                with self.scratch.open(f"{name}.rejects") as file_rejects:
                    shutil.copyfileobj(file_rejects, rejects)
        return facts

    def select(self, now: float) -> tuple[collections.Counter, int]:
        """Makes "items" from the first listings, and "kept_0" from the events of these items.

        Args:
          now: the current time in Unix seconds.

        Returns:
          (counts by name, `Times.at_once`).
        """
        first_listing = transforms.FirstListing(self.rules)
        with self._pipeline() as pipeline:
            items = (
                self._rows(pipeline, "listings")
                | "listings by item" >> beam.Map(_first)
                | "group listings" >> beam.GroupByKey()
                | "first listing" >> beam.ParDo(first_listing).with_outputs(main="problems")
            )
            rows = self._rows(pipeline, "events")
            events = self._sortable(rows, now)
            at_once = (
                rows
                | "times" >> beam.FlatMap(transforms.time_of)
                | "count times" >> beam.combiners.Count.PerElement()
                | "counts" >> beam.Values()
                | "most at once" >> beam.CombineGlobally(transforms.most)
            )
            self._save(at_once, "at_once")
            known = (
                {"problems": items.problems, "rows": events.rows}
                | "join" >> beam.CoGroupByKey()
                | "known" >> beam.ParDo(transforms.KnownItems()).with_outputs(main="rows")
            )
            self._write_rows(items.usable, "items")
            self._write_rows(known.rows, "kept_0")
            self._save_sums("selected", items, events, known)
        return self.scratch.load("selected").counts, self.scratch.load("at_once")

    def _sortable(self, rows: beam.PCollection, now: float) -> beam.pvalue.DoOutputsTuple:
        return (
            rows
            | "events by user" >> beam.Map(_first)
            | "group events" >> beam.GroupByKey()
            | "sortable"
            >> beam.ParDo(transforms.Sortable(self.rules, now)).with_outputs(main="rows")
        )

    def least_ids(self, now: float) -> tuple[str, str] | None:
        """(least item id of sortable events, least of listings); None where either has none."""
        with self._pipeline() as pipeline:
            events = self._sortable(self._rows(pipeline, "events"), now)
            ids = {"events": events.rows, "listings": self._rows(pipeline, "listings")}
            for name, rows in ids.items():
                least = (
                    rows
                    | f"ids of {name}" >> beam.Map(operator.itemgetter(0))
                    | f"least of {name}" >> beam.CombineGlobally(transforms.least)
                )
                self._save(least, f"least_{name}")
        least_ids = [self.scratch.load(f"least_{name}") for name in ids]
        return None if None in least_ids else tuple(least_ids)

    def shrink_to_core(self) -> collections.Counter:
        """Removes the events outside the k-core, in as many passes as needed.

        Returns:
          The numbers of "users" before, of "events" and "items" in the core, and of "passes".
        """
        users = []
        for n in itertools.count(1):
            core = self._shrink(n)
            self.scratch.delete_folder(f"kept_{n - 1}")
            users.append(core["users"])
            if core["events"] == core["events_before"] or not self.rules.k_core_iterated:
                core["users"], core["passes"] = users[0], n
                return core

    def _shrink(self, n: int) -> collections.Counter:
        """Makes "kept_N" and "core_N" from "kept_(N-1)", without users and items that are small."""
        k = self.rules.k_core
        with self._pipeline() as pipeline:
            users = (
                self._rows(pipeline, f"kept_{n - 1}")
                | "by user" >> beam.Map(_first)
                | "group by user" >> beam.GroupByKey()
                | "mark users" >> beam.ParDo(transforms.MarkUser(k)).with_outputs(main="marked")
            )
            items = (
                users.marked
                | "group by item" >> beam.GroupByKey()
                | "large items" >> beam.ParDo(transforms.LargeItem(k)).with_outputs(main="rows")
            )
            self._write_rows(items.rows, f"kept_{n}")
            self._write_rows(items.ids, f"core_{n}")
            self._save_sums(f"shrunk_{n}", users, items)
        return self.scratch.load(f"shrunk_{n}").counts

    def write(self, writer: DomainWriter, passes: int) -> Sums:
        """Writes the shards of all splits and of the catalogue.

        Args:
          passes: the number of passes of the k-core.

        Returns:
          The sums over all users and items.
        """
        with self._pipeline() as pipeline:
            users = self._users(pipeline, f"kept_{passes}")
            items = self._catalogue(pipeline, users.uses, f"core_{passes}")
            sums = beam.pvalue.AsSingleton(self._save_sums("written", users, items))
            placed = (
                users.records | "place sequences" >> beam.Map(transforms.place_sequence, sums),
                items.listed | "place items" >> beam.Map(transforms.place_item, sums),
            )
            written = (
                placed
                | "all records" >> beam.Flatten()
                | "by shard" >> beam.GroupByKey()
                | "write shards" >> beam.Map(transforms.write_shard, self.scratch)
                | "all shards" >> beam.combiners.ToList()
            )
            self._save(written, "shards")
        sums = self.scratch.load("written")
        splits = self._take_shards(writer, sums)
        writer.take_shards(sorted(sums.items.with_field), splits)
        return sums

    def _take_shards(self, writer: DomainWriter, sums: Sums) -> dict[str, Split]:
        """Moves all shards into the store's workspace, and makes those that have no records."""
        written = self.scratch.load("shards")
        splits = {}
        for split in (*SPLITS, "items"):
            config = "items" if split == "items" else "sequences"
            records = sums.items.items if split == "items" else sums.users.examples[split]
            n = shards.num_shards(records, config)
            sizes = {
                shard: (length, size) for name, shard, length, size in written if name == split
            }
            for shard in range(n):
                path = shards.shard_path(writer.folder(config), self.domain, split, shard, n)
                if shard in sizes:
                    self.scratch.take(transforms.shard_name(split, shard), path)
                else:
                    path.touch()
            lengths = [sizes.get(shard, (0, 0))[0] for shard in range(n)]
            splits[split] = Split(lengths, sum(size for _, size in sizes.values()))
        return splits

    def _users(self, pipeline: beam.Pipeline, kept: str) -> beam.pvalue.DoOutputsTuple:
        """The outputs of `MakeUser`; the main one is "records"."""
        make_user = transforms.MakeUser(self.domain, self.rules)
        return (
            self._rows(pipeline, kept)
            | "by user" >> beam.Map(_first)
            | "group by user" >> beam.GroupByKey()
            | "make users" >> beam.ParDo(make_user).with_outputs(main="records")
        )

    def _catalogue(
        self, pipeline: beam.Pipeline, uses: beam.PCollection, core: str
    ) -> beam.pvalue.DoOutputsTuple:
        """The outputs of `SelectItem`; the main one is "listed"."""
        joined = {
            "fields": self._rows(pipeline, "items"),
            "use": uses | "add uses" >> beam.CombinePerKey(transforms.add_uses),
        }
        if self.rules.k_core:
            joined["core"] = self._rows(pipeline, core)
        select = transforms.SelectItem(self.rules)
        return (
            joined
            | "join items" >> beam.CoGroupByKey()
            | "select items" >> beam.ParDo(select).with_outputs(main="listed")
        )


def _users_made(sums: Sums) -> int:
    """The number of users that had any event left."""
    names = ("users", "users_too_short", "users_without_example")
    return sum(sums.users.counts[name] for name in names)


def _first(row: Sequence) -> tuple[Any, Sequence]:
    """(the first value of a row, the row), to group rows by it."""
    return row[0], row


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None and not is_full_disk(error):
        error = error.__cause__ or error.__context__
    return error is not None
