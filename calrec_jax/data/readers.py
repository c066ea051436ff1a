"""Readers of raw dumps: each turns a folder into items and events, line by line.

A line that cannot be used is counted and kept in rejects.jsonl with its reason; input is parsed and
never evaluated.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import html
import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from calrec_jax.errors import CalrecError

_MARKUP = re.compile(r"</?[A-Za-z!][^<>]*>")
_MAX_PRICE_LENGTH = 40  # "$1,234.56 - $2,345.67" is 21; longer ones are remains of a web page


@dataclasses.dataclass(frozen=True)
class Event:
    """One purchase. `order` sorts a user's events (time, or a rank where time is not known)."""

    user_id: str
    item_id: str
    order: int
    timestamp: int | None


@dataclasses.dataclass
class RawDomain:
    """A domain as read: {item id: fields} and events in the file's order."""

    name: str
    items: dict[str, dict[str, str]]
    events: list[Event]


class Rejects:
    """rejects.jsonl: every raw line that was not used, with its reason."""

    def __init__(self, path: pathlib.Path):
        self._file = path.open("w")
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, source: str, line: int, reason: str, text: str) -> None:
        """Keeps one line (its first 500 characters)."""
        self.counts[reason] += 1
        record = {"source": source, "line": line, "reason": reason, "text": text[:500]}
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Flushes the file."""
        self._file.close()


class _Reject(Exception):
    """Why a line cannot be used."""


def clean_text(value: str) -> str:
    """HTML entities resolved, markup removed, white space folded."""
    return " ".join(_MARKUP.sub(" ", html.unescape(value)).split())


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise CalrecError(f"{path} is missing: the source needs it")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from enumerate(file, start=1)
    except (EOFError, OSError, zlib.error) as error:
        raise CalrecError(f"{path} cannot be read to its end: {error}") from error


def _records(path: pathlib.Path, parse: Callable[[dict], Any], rejects: Rejects) -> Iterator[Any]:
    """`parse` of every line's object; lines it cannot use go to `rejects`."""
    for number, raw in _lines(path):
        try:
            record = json.loads(raw)
            if not isinstance(record, dict):
                raise _Reject("not a JSON object")
            yield parse(record)
        except UnicodeDecodeError:
            rejects.add(path.name, number, "not UTF-8", raw.decode(errors="replace"))
        except (RecursionError, ValueError):
            rejects.add(path.name, number, "not JSON", raw.decode(errors="replace"))
        except _Reject as reason:
            rejects.add(path.name, number, str(reason), raw.decode(errors="replace"))


def _unicode(value: str, key: str) -> str:
    """`value`, unless it holds half a surrogate pair ("\\ud83d"), which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Reject(f"{key} is not Unicode") from None
    return value


def _value(record: dict, key: str) -> Any:
    """What `key` holds; None too for the NaN with which pandas writes what is missing."""
    value = record.get(key)
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(record: dict, key: str) -> str:
    value = _value(record, key)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _Reject(f"{key} is neither a string nor a number")
    return clean_text(_unicode(value, key))


def _identifier(record: dict, key: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Reject(f"no {key}")
    return _unicode(value, key).strip()


def _integer(record: dict, key: str) -> int | None:
    value = record.get(key)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) >= 2**63:
        raise _Reject(f"{key} is not a 64-bit integer")
    return int(value)


def _category(record: dict) -> str:
    """A category path is written from the root to the leaf, joined by spaces."""
    value = _value(record, "category")
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(level, str) for level in value):
        value = " ".join(value)
    if isinstance(value, str):
        return clean_text(_unicode(value, "category"))
    raise _Reject("category is neither a string nor a list of strings")


def _fields(record: dict) -> dict[str, str]:
    price = _text(record, "price")
    fields = {
        "title": _text(record, "title"),
        "category": _category(record),
        "brand": _text(record, "brand"),
        "price": price if len(price) <= _MAX_PRICE_LENGTH else "",
    }
    return {name: value for name, value in fields.items() if value}


def _read(name, items_path, parse_item, events_path, parse_event, rejects) -> RawDomain:
    items: dict[str, dict[str, str]] = {}
    for item_id, fields in _records(items_path, parse_item, rejects):
        items.setdefault(item_id, fields)  # the first listing of an id counts
    return RawDomain(name, items, list(_records(events_path, parse_event, rejects)))


def read_amazon2018(directory: pathlib.Path, name: str, rejects: Rejects) -> RawDomain:
    """Amazon 2018: reviews.json.gz (reviewerID, asin, unixReviewTime) and meta.json.gz."""

    def event(record: dict) -> Event:
        time = _integer(record, "unixReviewTime")
        if time is None:
            raise _Reject("no unixReviewTime")
        return Event(_identifier(record, "reviewerID"), _identifier(record, "asin"), time, time)

    return _read(
        name,
        directory / "meta.json.gz",
        lambda record: (_identifier(record, "asin"), _fields(record)),
        directory / "reviews.json.gz",
        event,
        rejects,
    )


def read_jsonl(directory: pathlib.Path, name: str, rejects: Rejects) -> RawDomain:
    """interactions.jsonl.gz (user_id, item_id, order and/or timestamp) and items.jsonl.gz.

    Where the first event has an order, all are sorted by it, else by time: ranks and seconds do not
    compare.
    """
    by: list[str] = []

    def event(record: dict) -> Event:
        given = {key: _integer(record, key) for key in ("order", "timestamp")}
        user, item = _identifier(record, "user_id"), _identifier(record, "item_id")
        known = [key for key, value in given.items() if value is not None]
        if not known:
            raise _Reject("neither order nor timestamp")
        by[:] = by or known[:1]
        order = given[by[0]]
        if order is None:
            raise _Reject(f"no {by[0]}, unlike the first event")
        return Event(user, item, order, given["timestamp"])

    return _read(
        name,
        directory / "items.jsonl.gz",
        lambda record: (_identifier(record, "item_id"), _fields(record)),
        directory / "interactions.jsonl.gz",
        event,
        rejects,
    )


READERS = {"amazon2018": read_amazon2018, "jsonl": read_jsonl}
