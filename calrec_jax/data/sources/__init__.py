"""Sources: raw dumps in the supported formats, read line by line into events and items.

A line that cannot be used becomes a `Rejected` with its reason; input is parsed and never
evaluated.

source.py                         what a source is; a new one is a row of SOURCES below
amazon.py, movies.py, tables.py   the sources
files.py, downloads.py            raw files, found, fetched and opened
rows.py, json_array.py            files as rows: JSON, CSV, Parquet
records.py, times.py              values of a row as events and items
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from calrec_jax.data.sources.amazon import AMAZON
from calrec_jax.data.sources.files import RawFiles, find_files
from calrec_jax.data.sources.movies import MOVIES
from calrec_jax.data.sources.records import Event, Item, Reject, Rejected
from calrec_jax.data.sources.source import Source, read_events, read_items
from calrec_jax.data.sources.tables import TABLES, Table, TableOptions
from calrec_jax.errors import CalrecError

SOURCES: dict[str, Source] = {source.name: source for source in (*AMAZON, *MOVIES, *TABLES)}


def get_source(
    name: str,
    columns: Mapping[str, str] | None = None,
    time_unit: str = "s",
    *,
    event_columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
) -> Source:
    """The source called `name`. The other arguments are for jsonl, csv and parquet alone.

    Args:
      columns: {our name: column in the files}, for events and items alike. Our names are user_id,
        item_id, order and timestamp, and those of text fields.
      time_unit: the unit of timestamps that are numbers: "s", "ms", "us" or "ns".
      event_columns, item_columns: as `columns`, for events or for items alone; they take precedence
        over it.
      delimiter: the character between the cells of csv; None: inferred from the header line.

    Raises:
      CalrecError: there is no such source, it does not take these arguments, or their values are
        impossible.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise CalrecError(f"unknown source {name!r}{hint}; known: {', '.join(sorted(SOURCES))}")
    source = SOURCES[name]
    options = TableOptions(
        columns or {}, event_columns or {}, item_columns or {}, time_unit, delimiter
    )
    if isinstance(source, Table):
        return source.configured(options)
    if options != TableOptions():
        tables = ", ".join(table.name for table in TABLES)
        raise CalrecError(
            f"{name} has columns and a time unit of its own: --columns, --time_unit and the like "
            f"are for {tables}"
        )
    return source


__all__ = [
    "SOURCES",
    "Event",
    "Item",
    "RawFiles",
    "Reject",
    "Rejected",
    "Source",
    "Table",
    "find_files",
    "get_source",
    "read_events",
    "read_items",
]
