"""What a raw line becomes, and how the values in it are checked and cleaned.

Everything here is pure: the same value gives the same outcome whatever was read before.
"""

from __future__ import annotations

import decimal
import html
import math
import numbers
import re
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_PRICE_LENGTH = 40  # "$1,234.56 - $2,345.67" is 21; longer ones are remains of a web page
TEXT_LENGTH = 500  # of a rejected line, in characters
_YEAR_2100 = 4_102_444_800  # in Unix seconds
_WIDEST_ID = 2**128  # wider than integers of databases; Python would not write the longest
_EXACT_FLOAT = 2**53
_MARKUP = re.compile(r"</?[A-Za-z!][^<>]*>")


# Named tuples, not dataclasses: there are millions, and these are made three times as fast.
class Event(NamedTuple):
    """One purchase or rating. It has an order, a timestamp or both.

    Attributes:
      order: sorts a user's events (a rank, for example), or None.
      timestamp: Unix seconds between 1970 and 2100, or None.
    """

    user_id: str
    item_id: str
    order: int | None
    timestamp: int | None


class Item(NamedTuple):
    """One listing of an item. `fields` is {field: clean text}, without those that are empty."""

    item_id: str
    fields: dict[str, str]


class Rejected(NamedTuple):
    """A line that cannot be used.

    Attributes:
      file: the file's name, without its folder.
      line: from 1; of a row over several lines, the first; of a Parquet file, the row.
      reason: one of few fixed ones, so that they can be counted.
      text: the first 500 characters of the line, in valid Unicode.
    """

    file: str
    line: int
    reason: str
    text: str


class Reject(Exception):
    """Why a line cannot be used; becomes a `Rejected` where the file and the line are known."""


def clean_text(value: str) -> str:
    """HTML entities resolved, markup removed, white space folded."""
    if "&" in value:
        value = html.unescape(value)
    if "<" in value:
        value = _MARKUP.sub(" ", value)
    return " ".join(value.split())


def given(record: Mapping[str, Any], key: str) -> Any:
    """What `key` holds; None too for the NaN with which pandas writes what is missing."""
    value = record.get(key)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def identifier(record: Mapping[str, Any], key: str) -> str:
    """The id under `key`, as `id_text` writes it. Raises Reject where there is none."""
    value = record.get(key)
    if type(value) is str and value.isascii():  # nearly all are, and there are millions
        value = value.strip()
        if value:
            return value
    return id_text(value, key)


def id_text(value: Any, key: str) -> str:
    """An id, found under `key`, as text: a string without white space around it, or digits.

    An integer may come as a float or a decimal (12.0, as which pandas has it in a column where one
    is missing), or as one of NumPy's.

    Raises:
      Reject: there is none, it is neither a string nor an integer, or it is not Unicode.
    """
    if isinstance(value, str):
        value = value.strip()
    elif isinstance(value, (float, decimal.Decimal)):
        value = _integer_of(value, key)
    if value is None or value == "":
        raise Reject(f"no {key}")
    if isinstance(value, str):
        return _unicode(value, key)
    if isinstance(value, uuid.UUID):
        return str(value)
    whole_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole_number or abs(value) >= _WIDEST_ID:
        raise Reject(f"{key} is neither a string nor an integer")
    return str(value)


def _integer_of(value: float | decimal.Decimal, key: str) -> int | None:
    """The integer that `value` is; None for NaN and the infinities. Raises Reject for fractions."""
    if not math.isfinite(value):
        return None
    if value != int(value):
        raise Reject(f"{key} is neither a string nor an integer")
    if isinstance(value, float) and abs(value) >= _EXACT_FLOAT:
        raise Reject(f"{key} is a float of 2**53 or more, in which integers lose digits")
    return int(value)


def text(record: Mapping[str, Any], key: str) -> str:
    """The clean text under `key`, a string or a number; "" where there is none.

    Raises:
      Reject: it is something else, or not Unicode.
    """
    value = given(record, key)
    if value is None:
        return ""
    if isinstance(value, str):
        return clean_text(_unicode(value, key))
    if is_number(value):
        return str(value)
    raise Reject(f"{key} is neither a string nor a number")


def path(record: Mapping[str, Any], key: str) -> str:
    """A category path, from the root to the leaf and joined by spaces; of several, the first.

    Raises:
      Reject: it is neither a string, nor a list of strings, nor a list of those; or not Unicode.
    """
    value = given(record, key)
    if value is None:
        return ""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list) and all(isinstance(level, str) for level in value):
        value = " ".join(value)
    if isinstance(value, str):
        return clean_text(_unicode(value, key))
    raise Reject(f"{key} is neither a string nor a list of strings")


def price(written: str) -> str:
    """A price as it is written ("$12.99 - $20.00"); "" for the remains of a web page."""
    return written if len(written) <= MAX_PRICE_LENGTH else ""


def item(item_id: str, fields: Mapping[str, str]) -> Item:
    """An item without the fields that are empty."""
    return Item(item_id, {name: value for name, value in fields.items() if value})


def whole(value: Any, key: str) -> int | None:
    """`value`, found under `key`, as an integer; None stays None.

    Raises:
      Reject: it is no whole number of 64 bits.
    """
    if type(value) is int or value is None:
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    else:
        raise Reject(f"{key} is not a 64-bit integer")
    if number is not None and not _is_int64(number):
        raise Reject(f"{key} is not a 64-bit integer")
    return number


def seconds_of_our_time(seconds: int, expected: str = "seconds were expected") -> int:
    """`seconds`, if they are Unix seconds between 1970 and 2100.

    Args:
      expected: what to say where they are after 2100, which another unit would explain.

    Raises:
      Reject: they are not.
    """
    if seconds <= 0:
        raise Reject("time stamp is not after 1970")
    if seconds >= _YEAR_2100:
        raise Reject(f"time stamp is after 2100: {expected}")
    return seconds


def is_number(value: Any) -> bool:
    """Whether it is one that can be written in a few digits (True is no number)."""
    if type(value) is int:
        return _is_int64(value)
    return isinstance(value, (float, decimal.Decimal))


def _is_int64(value: int) -> bool:
    # Python would refuse to write the longest integers at all.
    return -(2**63) <= value < 2**63


def _unicode(value: str, key: str) -> str:
    """`value`, unless it holds half a surrogate pair ("\\ud83d"), which no file can hold."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Reject(f"{key} is not Unicode") from None
    return value
