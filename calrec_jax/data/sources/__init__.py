"""Sources: raw dumps in the formats that are known, read line by line into events and items.

A line that cannot be used becomes a `Rejected` with its reason; input is parsed and never
evaluated.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from calrec_jax.data.sources.amazon import AMAZON
from calrec_jax.data.sources.files import RawFiles, find_files
from calrec_jax.data.sources.movies import MOVIES
from calrec_jax.data.sources.records import Event, Item, Reject, Rejected
from calrec_jax.data.sources.source import Source, read_events, read_items
from calrec_jax.data.sources.tables import TABLES, Table
from calrec_jax.errors import CalrecError

SOURCES: dict[str, Source] = {source.name: source for source in (*AMAZON, *MOVIES, *TABLES)}


def get_source(name: str, columns: Mapping[str, str] | None = None, time_unit: str = "s") -> Source:
    """The source called `name`.

    Args:
      columns: {our name: their column}, of jsonl, csv and parquet alone. Our names are user_id,
        item_id, order and timestamp, and those of text fields.
      time_unit: of their timestamps that are numbers: "s", "ms", "us" or "ns".

    Raises:
      CalrecError: there is no such source, or it takes no columns or no unit, or not these.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise CalrecError(f"unknown source {name!r}{hint}; known: {', '.join(sorted(SOURCES))}")
    source = SOURCES[name]
    if isinstance(source, Table):
        return source.with_columns(columns or {}, time_unit)
    if columns or time_unit != "s":
        tables = ", ".join(table.name for table in TABLES)
        raise CalrecError(
            f"{name} has columns and a time unit of its own: --columns and --time_unit are for "
            f"{tables}"
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
    "find_files",
    "get_source",
    "read_events",
    "read_items",
]
