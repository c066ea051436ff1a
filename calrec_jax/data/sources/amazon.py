"""The Amazon review dumps of 2014, 2018 and 2023: one JSON object per line."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from calrec_jax.data.sources import records, rows, times
from calrec_jax.data.sources.records import Event, Item, Reject
from calrec_jax.data.sources.source import Row, Rows, Source


@dataclasses.dataclass(frozen=True)
class Amazon(Source):
    """The format of one year's dump.

    Attributes:
      user_key, item_keys, time_key: keys of a review. The first of `item_keys` that is present is
        used, also for items.
      milliseconds: whether times are in milliseconds, and not in seconds.
      category_keys: the first of them that holds a category is used.
      brand_key: where it holds no brand, the one in "details" is used.
      python_literals: whether a line may be a Python literal ({'asin': ...}) instead of JSON.
    """

    user_key: str = "reviewerID"
    item_keys: tuple[str, ...] = ("asin",)
    time_key: str = "unixReviewTime"
    milliseconds: bool = False
    category_keys: tuple[str, ...] = ("category",)
    brand_key: str = "brand"
    python_literals: bool = False
    several: bool = True

    def event_rows(self, path: str) -> Rows:
        return rows.json_lines(path)

    def item_rows(self, path: str) -> Rows:
        return rows.json_lines(path)

    def parse_event(self, row: Row) -> Event:
        record = self._object(row)
        user_id = records.identifier(record, self.user_key)
        item_id = self._item_id(record)
        unit = "ms" if self.milliseconds else "s"
        time = times.moment(records.given(record, self.time_key), self.time_key, unit)
        if time is None:
            raise Reject(f"no {self.time_key}")
        return Event(user_id, item_id, None, *time)

    def parse_item(self, row: Row) -> Item:
        record = self._object(row)
        return records.item(self._item_id(record), record, self._readers)

    @functools.cached_property
    def _readers(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        return {
            "title": functools.partial(records.text, key="title"),
            "category": self._category,
            "brand": self._brand,
            "price": _price,
        }

    def _category(self, record: Mapping[str, Any]) -> str:
        return next(filter(None, (records.path(record, key) for key in self.category_keys)), "")

    def _brand(self, record: Mapping[str, Any]) -> str:
        return records.text(record, self.brand_key) or _brand_in_details(record)

    def _object(self, line: bytes) -> dict[str, Any]:
        if not self.python_literals:
            return rows.json_object(line)
        try:
            return rows.json_object(line)
        except Reject as reason:
            if str(reason) != "not JSON":
                raise
            return _literal_object(rows.line_text(line))

    def _item_id(self, record: Mapping[str, Any]) -> str:
        for key in self.item_keys:
            if record.get(key) is not None:
                return records.identifier(record, key)
        raise Reject(f"no {self.item_keys[0]}")


def _literal_object(text: str) -> dict[str, Any]:
    """The dict that a Python literal stands for. It is parsed, and never evaluated."""
    try:
        record = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise Reject("neither JSON nor a Python literal") from None
    if type(record) is not dict:
        raise Reject("not a JSON object")
    return record


def _brand_in_details(record: Mapping[str, Any]) -> str:
    details = record.get("details")
    return records.text(details, "Brand") if isinstance(details, dict) else ""


def _price(record: Mapping[str, Any]) -> str:
    """The price as the dump of 2018 writes it; strings are kept as they are."""
    value = records.given(record, "price")
    if records.is_number(value):
        return f"${float(value):.2f}"
    return records.text_of_price(record, "price")


AMAZON = (
    Amazon(
        "amazon2014",
        event_names=("*.json", "*.json.gz"),
        item_names=("meta*.json", "meta*.json.gz"),
        category_keys=("categories", "category"),
        python_literals=True,
    ),
    Amazon(
        "amazon2018",
        event_names=("*.json", "*.json.gz"),
        item_names=("meta*.json", "meta*.json.gz"),
    ),
    Amazon(
        "amazon2023",
        event_names=("*.jsonl", "*.jsonl.gz"),
        item_names=("meta*.jsonl", "meta*.jsonl.gz"),
        user_key="user_id",
        item_keys=("parent_asin", "asin"),
        time_key="timestamp",
        milliseconds=True,
        category_keys=("categories", "main_category"),
        brand_key="store",
    ),
)
