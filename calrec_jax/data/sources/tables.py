"""Tables of one's own: JSON lines, CSV or Parquet, with a mapping of their columns to ours."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from calrec_jax.data.sources import records, rows
from calrec_jax.data.sources.records import Event, Item, Reject
from calrec_jax.data.sources.source import Row, Rows, Source
from calrec_jax.errors import CalrecError

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EVENT_NAMES = ("user_id", "item_id", "order", "timestamp")
_TEXT_NAMES = ("title", "category", "brand", "price")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Events with user_id, item_id, order and/or timestamp; items with item_id and text fields.

    Attributes:
      columns: ((our name, theirs), ...), for both kinds of files. A name that is not in it is the
        same in both; one that is neither of an event nor a usual field is one more text field.
      time_unit: of timestamps that are numbers: "s", "ms", "us" or "ns".
    """

    columns: tuple[tuple[str, str], ...] = ()
    time_unit: str = "s"

    def with_columns(self, columns: Mapping[str, str], time_unit: str) -> Table:
        """The same format with this mapping. Raises CalrecError where it is not possible."""
        for name, theirs in columns.items():
            if not _NAME.fullmatch(name):
                raise CalrecError(
                    f"{name!r} cannot name a field: use lower-case letters, digits and underscores"
                )
            if not theirs:
                raise CalrecError(f"--columns names no column for {name}")
        if time_unit not in _UNITS:
            raise CalrecError(f"unknown time unit {time_unit!r}; known: {', '.join(_UNITS)}")
        return dataclasses.replace(self, columns=tuple(columns.items()), time_unit=time_unit)

    def parse_event(self, row: Row) -> Event:
        record = self._record(row)
        names = self._theirs
        user_id = records.identifier(record, names["user_id"])
        item_id = records.identifier(record, names["item_id"])
        order = integer(record, names["order"])
        timestamp = self._seconds(record, names["timestamp"])
        if order is None and timestamp is None:
            raise Reject(f"neither {names['order']} nor {names['timestamp']}")
        return Event(user_id, item_id, order, timestamp)

    def parse_item(self, row: Row) -> Item:
        record = self._record(row)
        item_id = records.identifier(record, self._theirs["item_id"])
        return records.item(
            item_id, {name: _field(record, name, key) for name, key in self._text_columns.items()}
        )

    def _record(self, row: Row) -> Mapping[str, Any]:
        return row

    @functools.cached_property
    def _theirs(self) -> dict[str, str]:
        """{our name: their column} of all that is read."""
        return {name: name for name in (*_EVENT_NAMES, *_TEXT_NAMES)} | dict(self.columns)

    @functools.cached_property
    def _text_columns(self) -> dict[str, str]:
        return {name: key for name, key in self._theirs.items() if name not in _EVENT_NAMES}

    def _event_columns(self) -> rows.Columns:
        ids = [self._theirs[name] for name in ("user_id", "item_id")]
        times = {name: self._theirs[name] for name in ("order", "timestamp")}
        mapped = [times[name] for name, _ in self.columns if name in times]
        return rows.Columns(needed=(*ids, *mapped), one_of=tuple(times.values()))

    def _item_columns(self) -> rows.Columns:
        texts = self._text_columns
        mapped = [texts[name] for name, _ in self.columns if name in texts]
        return rows.Columns(needed=(self._theirs["item_id"], *mapped), others=tuple(texts.values()))

    def _seconds(self, record: Mapping[str, Any], key: str) -> int | None:
        value = _number_if_written(records.given(record, key))
        if value is None:
            return None
        seconds = None
        if isinstance(value, str):
            seconds = _iso_seconds(value)
        elif records.is_number(value):
            seconds = int(value // _PER_SECOND[self.time_unit])
        if seconds is None:
            raise Reject(f"{key} is neither a number nor an ISO 8601 date")
        expected = f"{_UNITS[self.time_unit]} were expected, see --time_unit"
        return records.seconds_of_our_time(seconds, expected)


class JsonLines(Table):
    """One JSON object a line."""

    def event_rows(self, path: str) -> Rows:
        return rows.lines(path)

    def item_rows(self, path: str) -> Rows:
        return rows.lines(path)

    def _record(self, row: Row) -> Mapping[str, Any]:
        return rows.json_object(row)


class Csv(Table):
    """Comma-separated values in UTF-8, with a header line; an empty cell is a missing value."""

    def event_rows(self, path: str) -> Rows:
        return rows.csv_rows(path, self._event_columns())

    def item_rows(self, path: str) -> Rows:
        return rows.csv_rows(path, self._item_columns())


class Parquet(Table):
    """Parquet. Its dates and times are instants; without a time zone they are taken as UTC."""

    def event_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._event_columns(), _PER_SECOND[self.time_unit])

    def item_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._item_columns(), _PER_SECOND[self.time_unit])


def integer(record: Mapping[str, Any], key: str) -> int | None:
    """The integer under `key`, also one in digits; None where there is none.

    Raises:
      Reject: it is no whole number of 64 bits.
    """
    return records.whole(_number_if_written(records.given(record, key)), key)


def _field(record: Mapping[str, Any], name: str, key: str) -> str:
    if name == "category":
        return records.path(record, key)
    value = records.text(record, key)
    return records.price(value) if name == "price" else value


def _number_if_written(value: Any) -> Any:
    """A number for the string that writes it, None for an empty one; else `value` as it is."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    if not value:
        return None
    if _INTEGER.fullmatch(value):
        return int(value)
    if _NUMBER.fullmatch(value) and math.isfinite(float(value)):
        return float(value)
    return value


def _iso_seconds(value: str) -> int | None:
    """Unix seconds of an ISO 8601 date or time, in UTC unless it says otherwise."""
    try:
        moment = datetime.datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return math.floor(moment.timestamp())
    except (ValueError, OverflowError):
        return None


TABLES = (
    JsonLines(
        "jsonl",
        event_names=("interactions.jsonl", "interactions.jsonl.gz"),
        item_names=("items.jsonl", "items.jsonl.gz"),
    ),
    Csv(
        "csv",
        event_names=("interactions.csv", "interactions.csv.gz"),
        item_names=("items.csv", "items.csv.gz"),
    ),
    Parquet("parquet", event_names=("interactions.parquet",), item_names=("items.parquet",)),
)
