"""Tables of the user's own: JSON, CSV or Parquet, with a mapping from our names to columns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from calrec_jax.data.sources import records, rows, times
from calrec_jax.data.sources.records import Event, Item, Reject, Rejected
from calrec_jax.data.sources.source import Row, Rows, Source, text_names
from calrec_jax.errors import CalrecError

_TIME_NAMES = ("order", "timestamp")
_EVENT_NAMES = ("user_id", "item_id", *_TIME_NAMES)
_NOT_OF_ITEMS = ("user_id", *_TIME_NAMES)
_TEXT_NAMES = ("title", "category", "brand", "price")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FIRST_ROWS = 1000  # rows that decide whether a file's numbers are dates in digits


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How files without a fixed format are written: the arguments of `sources.get_source`."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    event_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    item_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_unit: str = "s"
    delimiter: str | None = None

    @property
    def mappings(self) -> dict[str, Mapping[str, str]]:
        """{flag of `calrec prepare`: mapping}."""
        names = ("columns", "event_columns", "item_columns")
        return {f"--{name}": getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Events with user_id, item_id, order and/or timestamp; items with item_id and text fields.

    Attributes:
      event_columns, item_columns: ((our name, column in the files), ...) for events and for items.
        A column that is not mapped has our name. Other names in `item_columns` than the usual ones
        become additional fields.
      time_unit: the unit of timestamps that are numbers: "s", "ms", "us" or "ns".
      dates: whether such numbers are dates, 20240401 or 2024, and not times in `time_unit`.
    """

    event_columns: tuple[tuple[str, str], ...] = ()
    item_columns: tuple[tuple[str, str], ...] = ()
    time_unit: str = "s"
    dates: bool = False

    def configured(self, options: TableOptions) -> Table:
        """This format, read with `options`. Raises CalrecError where these are impossible."""
        for flag, columns in options.mappings.items():
            _check_columns(flag, columns)
        if options.time_unit not in times.UNITS:
            raise CalrecError(
                f"unknown time unit {options.time_unit!r}; known: {', '.join(times.UNITS)}"
            )
        if options.delimiter is not None:
            raise CalrecError(f"{self.name} has no delimiter: --delimiter is for csv")
        events = {name: c for name, c in options.columns.items() if name in _EVENT_NAMES}
        items = {name: c for name, c in options.columns.items() if name not in _NOT_OF_ITEMS}
        return dataclasses.replace(
            self,
            event_columns=tuple((events | dict(options.event_columns)).items()),
            item_columns=tuple((items | dict(options.item_columns)).items()),
            time_unit=options.time_unit,
        )

    def parse_event(self, row: Row) -> Event:
        record = self._record(row)
        names = self._event_keys
        user_id = records.identifier(record, names["user_id"])
        item_id = records.identifier(record, names["item_id"])
        order = times.order(records.given(record, names["order"]), names["order"])
        timestamp, nanosecond = self._time(record) or (None, 0)
        if order is None and timestamp is None:
            raise Reject(f"neither {names['order']} nor {names['timestamp']}")
        return Event(user_id, item_id, order, timestamp, nanosecond)

    def parse_item(self, row: Row) -> Item:
        record = self._record(row)
        item_id = records.identifier(record, self._item_key)
        return records.item(item_id, record, self._readers)

    def fitted(self, path: str) -> Table:
        """This format; numbers are dates if all of the first 1000 rows' numbers are (20240401)."""
        first_rows = itertools.islice(self.event_rows(path), _FIRST_ROWS)
        numbers = [number for _, row in first_rows if (number := self._number(row)) is not None]
        dates = bool(numbers) and None not in map(times.date_in_digits, numbers)
        return dataclasses.replace(self, dates=dates)

    def _number(self, row: Row | Rejected) -> records.Number | None:
        """The timestamp of a row of events if it is a number, otherwise None."""
        if type(row) is Rejected:
            return None
        try:
            return times.number(records.given(self._record(row), self._event_keys["timestamp"]))
        except Reject:
            return None

    def _record(self, row: Row) -> Mapping[str, Any]:
        return row

    @functools.cached_property
    def _event_keys(self) -> dict[str, str]:
        """{our name: column} of all that is read of events."""
        return {name: name for name in _EVENT_NAMES} | dict(self.event_columns)

    @functools.cached_property
    def _item_key(self) -> str:
        return dict(self.item_columns).get("item_id", "item_id")

    @functools.cached_property
    def _text_keys(self) -> dict[str, str]:
        """{field: column} of items."""
        keys = {name: name for name in _TEXT_NAMES} | dict(self.item_columns)
        return {name: key for name, key in keys.items() if name != "item_id"}

    @functools.cached_property
    def _readers(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        kinds = {"category": records.path, "price": records.text_of_price}
        return {
            name: functools.partial(kinds.get(name, records.text), key=key)
            for name, key in self._text_keys.items()
        }

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

    def _time(self, record: Mapping[str, Any]) -> times.Moment | None:
        key = self._event_keys["timestamp"]
        value = records.given(record, key)
        return times.moment(value, key, self.time_unit, ", see --time_unit", self.dates)


class JsonLines(Table):
    """One JSON object per line, or one array of objects."""

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
      delimiter: the character between cells; None: inferred from the header line.
    """

    delimiter: str | None = None

    def configured(self, options: TableOptions) -> Csv:
        """This format, read with `options`, as `Table.configured` says."""
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
    """Parquet. Its dates and times become instants; without a time zone they are taken as UTC."""

    def event_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._columns_of_events())

    def item_rows(self, path: str) -> Rows:
        return rows.parquet_rows(path, self._columns_of_items())


def _check_columns(flag: str, columns: Mapping[str, str]) -> None:
    """Raises CalrecError where `columns`, given with `flag`, cannot be a mapping for its files."""
    for name, column in columns.items():
        if not _NAME.fullmatch(name):
            raise CalrecError(
                f"{name!r} cannot name a field: use lower-case letters, digits and underscores, "
                f"beginning with a letter"
            )
        if not column:
            raise CalrecError(f"{flag} names no column for {name}")
        if flag == "--event_columns" and name not in _EVENT_NAMES:
            raise CalrecError(
                f"{flag} has {name}={column}: events have {', '.join(_EVENT_NAMES)} alone"
            )
        if flag == "--item_columns" and name in _NOT_OF_ITEMS:
            raise CalrecError(
                f"{flag} has {name}={column}: items have item_id and text fields alone"
            )


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
