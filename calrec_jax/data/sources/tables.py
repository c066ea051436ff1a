"""Tables of one's own: JSON, CSV or Parquet, with a mapping of their columns to ours."""

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
from calrec_jax.data.sources.source import Row, Rows, Source, text_names
from calrec_jax.errors import CalrecError

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_TIME_NAMES = ("order", "timestamp")
_EVENT_NAMES = ("user_id", "item_id", *_TIME_NAMES)
_NOT_OF_ITEMS = ("user_id", *_TIME_NAMES)
_TEXT_NAMES = ("title", "category", "brand", "price")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How files are written that have no fixed format: the arguments of `sources.get_source`."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    event_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    item_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_unit: str = "s"
    delimiter: str | None = None

    @property
    def mappings(self) -> dict[str, Mapping[str, str]]:
        """{flag of the command: mapping}."""
        names = ("columns", "event_columns", "item_columns")
        return {f"--{name}": getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Events with user_id, item_id, order and/or timestamp; items with item_id and text fields.

    Attributes:
      event_columns, item_columns: ((our name, theirs), ...), of each kind of files. A name that is
        not in it is the same in both; of items, one that is no usual field is one more.
      time_unit: of timestamps that are numbers: "s", "ms", "us" or "ns".
    """

    event_columns: tuple[tuple[str, str], ...] = ()
    item_columns: tuple[tuple[str, str], ...] = ()
    time_unit: str = "s"

    def configured(self, options: TableOptions) -> Table:
        """The same format, read with `options`. Raises CalrecError where these are impossible."""
        for flag, columns in options.mappings.items():
            _check_columns(flag, columns)
        if options.time_unit not in _UNITS:
            raise CalrecError(
                f"unknown time unit {options.time_unit!r}; known: {', '.join(_UNITS)}"
            )
        if options.delimiter is not None:
            raise CalrecError(f"{self.name} has no delimiter: --delimiter is for csv")
        of_events = {ours: c for ours, c in options.columns.items() if ours in _EVENT_NAMES}
        of_items = {ours: c for ours, c in options.columns.items() if ours not in _NOT_OF_ITEMS}
        return dataclasses.replace(
            self,
            event_columns=tuple((of_events | dict(options.event_columns)).items()),
            item_columns=tuple((of_items | dict(options.item_columns)).items()),
            time_unit=options.time_unit,
        )

    def parse_event(self, row: Row) -> Event:
        record = self._record(row)
        names = self._event_keys
        user_id = records.identifier(record, names["user_id"])
        item_id = records.identifier(record, names["item_id"])
        order = integer(record, names["order"])
        timestamp = self._seconds(record, names["timestamp"])
        if order is None and timestamp is None:
            raise Reject(f"neither {names['order']} nor {names['timestamp']}")
        return Event(user_id, item_id, order, timestamp)

    def parse_item(self, row: Row) -> Item:
        record = self._record(row)
        item_id = records.identifier(record, self._item_key)
        return records.item(
            item_id, {name: _field(record, name, key) for name, key in self._text_keys.items()}
        )

    def _record(self, row: Row) -> Mapping[str, Any]:
        return row

    @functools.cached_property
    def _event_keys(self) -> dict[str, str]:
        """{our name: their column} of all that is read of events."""
        return {name: name for name in _EVENT_NAMES} | dict(self.event_columns)

    @functools.cached_property
    def _item_key(self) -> str:
        return dict(self.item_columns).get("item_id", "item_id")

    @functools.cached_property
    def _text_keys(self) -> dict[str, str]:
        """{field: their column} of items."""
        keys = {name: name for name in _TEXT_NAMES} | dict(self.item_columns)
        return {name: key for name, key in keys.items() if name != "item_id"}

    def _columns_of_events(self) -> rows.Columns:
        keys = self._event_keys
        mapped = [keys[name] for name, _ in self.event_columns if name in _TIME_NAMES]
        return rows.Columns(
            needed=(keys["user_id"], keys["item_id"], *mapped),
            one_of=tuple(keys[name] for name in _TIME_NAMES),
            hint="--columns or --event_columns can say which is which",
        )

    def _columns_of_items(self) -> rows.Columns:
        keys = self._text_keys
        mapped = [keys[name] for name, _ in self.item_columns if name in keys]
        return rows.Columns(
            needed=(self._item_key, *mapped),
            others=tuple(keys.values()),
            hint="--columns or --item_columns can say which is which",
        )

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
    """One JSON object a line, or one array of them."""

    def event_rows(self, path: str) -> Rows:
        return rows.json_lines(path)

    def item_rows(self, path: str) -> Rows:
        return rows.json_lines(path)

    def _record(self, row: Row) -> Mapping[str, Any]:
        return rows.json_object(row)


@dataclasses.dataclass(frozen=True)
class Csv(Table):
    """Separated values in UTF-8, with a header line; an empty cell is a missing value.

    Attributes:
      delimiter: the character between cells; None: the header line tells it.
    """

    delimiter: str | None = None

    def configured(self, options: TableOptions) -> Csv:
        """As `Table.configured`."""
        delimiter = options.delimiter
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise CalrecError(f"{delimiter!r} cannot be a delimiter: give one character, or tab")
        table = super().configured(dataclasses.replace(options, delimiter=None))
        return dataclasses.replace(table, delimiter=delimiter)

    def event_rows(self, path: str) -> Rows:
        return rows.csv_rows(path, self._columns_of_events(), self.delimiter)

    def item_rows(self, path: str) -> Rows:
        return rows.csv_rows(path, self._columns_of_items(), self.delimiter)


class Parquet(Table):
    """Parquet. Its dates and times are instants; without a time zone they are taken as UTC."""

    def event_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._columns_of_events(), _PER_SECOND[self.time_unit])

    def item_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._columns_of_items(), _PER_SECOND[self.time_unit])


def _check_columns(flag: str, columns: Mapping[str, str]) -> None:
    """Raises CalrecError where a mapping is none of columns to what is read of these files."""
    for name, theirs in columns.items():
        if not _NAME.fullmatch(name):
            raise CalrecError(
                f"{name!r} cannot name a field: use lower-case letters, digits and underscores, "
                f"beginning with a letter"
            )
        if not theirs:
            raise CalrecError(f"{flag} names no column for {name}")
        if flag == "--event_columns" and name not in _EVENT_NAMES:
            raise CalrecError(
                f"{flag} has {name}={theirs}: events have {', '.join(_EVENT_NAMES)} alone"
            )
        if flag == "--item_columns" and name in _NOT_OF_ITEMS:
            raise CalrecError(
                f"{flag} has {name}={theirs}: items have item_id and text fields alone"
            )


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
        event_names=text_names("interactions", "jsonl", "ndjson", "json"),
        item_names=text_names("items", "jsonl", "ndjson", "json"),
    ),
    Csv(
        "csv",
        event_names=(*text_names("interactions", "csv", "tsv"), *text_names("*", "inter")),
        item_names=(*text_names("items", "csv", "tsv"), *text_names("*", "item")),
    ),
    Parquet("parquet", event_names=("interactions.parquet",), item_names=("items.parquet",)),
)
