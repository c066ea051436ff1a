"""Prepares a domain: makes a dataset of the store from raw files, with statistics."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calrec_jax.data.preparation import duckdb_engine, statistics
from calrec_jax.data.preparation.engine import Engine, Prepared, Report
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.sources import RawFiles, Source, Table, find_files, get_source
from calrec_jax.data.sources.times import UNITS
from calrec_jax.data.store import datasets
from calrec_jax.errors import CalrecError
from calrec_jax.files import as_json, write_json


def prepare(
    source: str,
    input_dir: str | os.PathLike | None,
    data_dir: str | os.PathLike,
    domain: str,
    rules: Rules = Rules(),
    *,
    events: Sequence[str] = (),
    items: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    event_columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    time_unit: str = "s",
    delimiter: str | None = None,
    engine: str = "duckdb",
    beam_options: Sequence[str] = (),
    beam_scratch: str | None = None,
    report: Report = lambda phase, done: None,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Reads raw files, applies `rules`, and writes the dataset `domain` into `data_dir`.

    Memory does not grow with the number of events. stats.json and rejects.jsonl (raw lines that
    were not used, each with its reason) are written into the dataset's folder. The same files give
    the same bytes, with any engine.

    Args:
      source, columns, event_columns, item_columns, time_unit, delimiter: the format of the files,
        see `sources.get_source`.
      input_dir, events, items: the files, see `sources.find_files`.
      engine: "duckdb" (one machine), or "beam" (Apache Beam, an optional dependency: one machine
        or many).
      beam_options, beam_scratch: see `beam_engine.run`.
      report: called with the progress.
      warn: called with a message about what is possible, but looks wrong.

    Returns:
      The content of stats.json.

    Raises:
      CalrecError: unknown source, missing file, empty domain, impossible name, full disk, or
        another process that prepares the same domain.
    """
    run = _get_engine(engine, beam_options, beam_scratch)
    files_source = get_source(
        source,
        columns,
        time_unit,
        event_columns=event_columns,
        item_columns=item_columns,
        delimiter=delimiter,
    )
    datasets.check_name(domain)
    downloads = datasets.domain_dir(data_dir, ".downloads")
    folder = None if input_dir is None else os.fspath(input_dir)
    files = find_files(files_source, folder, events, items, download_dir=downloads)
    with datasets.workspace(data_dir, domain) as scratch:
        writer = datasets.DomainWriter(scratch, domain)
        prepared = run(domain, files_source, files, rules, scratch, writer, report)
        _warn(prepared, files_source, warn)
        _check_columns("--item_columns", item_columns or {}, prepared)
        _check_columns("--columns", columns or {}, prepared)
        _check(domain, rules, prepared)
        stats = _describe(domain, source, files, rules, prepared)
        made = writer.finish({name: stats[name] for name in ("source", "rules", "checksums")})
        write_json(made / "stats.json", stats)
        (scratch / "rejects.jsonl").rename(made / "rejects.jsonl")
        datasets.publish(scratch, made, data_dir, domain)
    return stats


def _warn(prepared: Prepared, source: Source, warn: Callable[[str], None]) -> None:
    """Warns of what looks wrong, before the dataset replaces an older one."""
    times, without_order = prepared.times, prepared.counts["events_without_order"]
    if 2 * times.early > times.known:
        message = f"{times.early} of {times.known} events with a time are dated before 1990"
        if isinstance(source, Table):
            message += f": numbers are read as {UNITS[source.time_unit]}, see --time_unit"
        warn(message)
    if times.alone > 1 and 2 * times.at_once > times.alone:
        warn(
            f"{times.at_once} of {times.alone} events without an order have the same time: it does "
            f"not tell which of them came first"
        )
    if without_order:
        warn(
            f"{without_order} events have no order, unlike others of their users, and are left out"
        )
    if times.future:
        warn(f"{times.future} events are dated in the future; --latest=DATE leaves them out")


def _get_engine(engine: str, beam_options: Sequence[str], beam_scratch: str | None) -> Engine:
    if engine == "beam":
        from calrec_jax.data.preparation import beam_engine

        return functools.partial(beam_engine.run, options=beam_options, beam_scratch=beam_scratch)
    if engine != "duckdb":
        raise CalrecError(f"unknown engine {engine!r}; known: beam, duckdb")
    if beam_options or beam_scratch is not None:
        raise CalrecError("the options of Beam go with the engine 'beam' alone")
    return duckdb_engine.run


def _describe(
    domain: str, source: str, files: RawFiles, rules: Rules, prepared: Prepared
) -> dict[str, Any]:
    """The content of stats.json, as reading the file gives it."""
    stats = {
        "domain": domain,
        "source": source,
        "files": {
            "events": [os.path.basename(path) for path in files.events],
            "items": [os.path.basename(path) for path in files.items],
        },
        "rules": dataclasses.asdict(rules),
        **prepared.users.result(),
        **prepared.items.result(),
        **statistics.cold_target_shares(prepared.cold, prepared.users.examples),
        **prepared.counts,
        "fields_left_out": prepared.fields_left_out,
        "rejected_lines": prepared.rejected,
        "checksums": prepared.users.checksums() | prepared.items.checksums(),
    }
    return as_json(stats)


def _check(domain: str, rules: Rules, prepared: Prepared) -> None:
    """Raises CalrecError for a dataset that cannot be trained on or evaluated on."""
    users, examples = prepared.users.counts["users"], prepared.users.examples
    if not prepared.counts["events_read"]:
        problem = f"{domain} is empty: its files hold no event"
    elif not prepared.counts["items_read"]:
        problem = f"{domain} is empty: its files hold no item"
    elif prepared.counts["items_without_text"] == _items_listed(prepared):
        problem = (
            f"{domain} is empty: none of its {_items_listed(prepared)} items has any text; with "
            f"jsonl, csv and parquet --columns names columns that are not called title, category, "
            f"brand or price"
        )
    elif prepared.ids_apart:
        event_id, listed_id = prepared.ids_apart
        problem = (
            f"{domain} is empty: no event has an item that is listed; item ids are like "
            f"{event_id!r} in the files of events, and like {listed_id!r} in those of items"
        )
    elif not users:
        problem = f"{domain} is empty: {_what_was_removed(rules, prepared)}"
    elif not examples["train"]:
        needed = "4 events" if rules.split == "leave_one_out" else "2 events before validation_from"
        problem = (
            f"{domain} has nothing to train on: none of its {users} users has the {needed} that "
            f"give a training example"
        )
    elif not (examples["validation"] and examples["test"]):
        split = "test" if examples["validation"] else "validation"
        problem = (
            f"{domain} has no {split} example: no user has an event in that period and one before"
        )
    else:
        return
    raise CalrecError(problem + _what_was_rejected(prepared))


def _items_listed(prepared: Prepared) -> int:
    """The number of different items in the files."""
    return prepared.counts["items_read"] - prepared.counts["items_listed_again"]


def _check_columns(flag: str, columns: Mapping[str, str], prepared: Prepared) -> None:
    """Raises CalrecError where a field of items is mapped to a column that no item has."""
    if not (prepared.items.items or prepared.counts["items_without_text"]):
        return  # the rules left out all items
    not_fields = {"user_id", "item_id", "order", "timestamp"}
    for name, column in columns.items():
        if name not in not_fields and not prepared.items.with_field[name]:
            raise CalrecError(
                f"{flag} has {name}={column}, and no item has anything in {column!r}: is it "
                f"spelt as in the files?"
            )


_REMOVED = {
    "events_not_sampled": "are of users outside the sample",
    "events_too_late": "are too late",
    "events_duplicated": "are the same as others",
    "events_without_order": "have no order, unlike others of their users",
    "events_without_required": "have an item without a field that is required",
    "events_not_in_core": "are outside the k-core",
}


def _what_was_removed(rules: Rules, prepared: Prepared) -> str:
    counts, user_counts = prepared.counts, prepared.users.counts
    reasons = [f"{counts['events_without_item']} have no item with text"]
    reasons += [f"{counts[name]} {reason}" for name, reason in _REMOVED.items() if counts[name]]
    message = (
        f"of {counts['events_read']} events {', '.join(reasons)}, and "
        f"{user_counts['users_too_short']} users have fewer than {rules.min_events} events left"
    )
    without_example = user_counts["users_without_example"]
    if without_example:
        message += f", and {without_example} no target with a history in any period"
    return message


def _what_was_rejected(prepared: Prepared) -> str:
    if not prepared.rejected:
        return ""
    most = sorted(prepared.rejected.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    listed = ", ".join(f"{n} {reason!r}" for reason, n in most)
    return f"; {sum(prepared.rejected.values())} lines were rejected: {listed}"
