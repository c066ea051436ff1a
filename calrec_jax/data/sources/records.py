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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

MAX_PRICE_LENGTH = 40  # "$1,234.56 - $2,345.67" is 21; longer ones are remains of a web page
TEXT_LENGTH = 500  # of a rejected line, in characters
_WIDEST_ID = 2**128  # wider than integers of databases; Python would not write the longest
_EXACT_FLOAT = 2**53
_MARKUP = re.compile(r"</?[A-Za-z!][^<>]*>")
_EDGES = re.compile(r"(<!--|-->|</?(?:script|style)\b[^<>]*>)", re.IGNORECASE)
# JavaScript and CSS that stand in a text without their tags, as in the Amazon dump of 2018.
_CODE = re.compile(
    r"""
    \bvar\ \w+\ ?=[^=;]{0,200};  # var aPageStart = (new Date()).getTime();
    | \bnew\ Date\(\)
    | \bfunction\ ?\w*\ ?\([\w, ]{0,100}\)\ ?\{
    | \b(?:window|document)\.\w+(?:\.\w+){0,9}\ ?[=(]
    | \bP\.when\(
    | (?<!\S)[.#][A-Za-z][^{};]{0,200}\{\ ?(?:[a-z-]{2,40}\ ?:|\})  # .a-box-inner{color:#fff}
    | (?<!\S)@(?:media|import|charset|font-face|keyframes)\b[^{};]{0,200}[{;]
    | \b[a-z]+\{[a-z-]{2,40}:[^{}]{1,200}[;}]  # body{margin:0}
    """,
    re.VERBOSE,
)
_NO_PRICE = frozenset(("none", "nan", "null", "nil", "n/a", "na", "undefined"))
_CURRENCIES = "$\u20ac\u00a3\u00a5\u20b9"
# Python's usual context would round to 28 digits.
_EXACT = decimal.Context(prec=decimal.MAX_PREC)

Number = int | decimal.Decimal
"""A number of 64 bits as it was written: whole ones are int."""


# Named tuples, not dataclasses: there are millions, and these are made three times as fast.
class Event(NamedTuple):
    """One purchase or rating. It has an order, a timestamp or both.

    Attributes:
      order: sorts a user's events (a rank, for example), or None.
      timestamp: Unix seconds between 1970 and 2100, rounded down, or None.
      nanosecond: of that second, from 0.
    """

    user_id: str
    item_id: str
    order: Number | None
    timestamp: int | None
    nanosecond: int = 0


class Item(NamedTuple):
    """One listing of an item.

    Attributes:
      fields: {field: clean text}, without those that are empty or left out.
      left_out: why fields that are there cannot be used, one of few fixed reasons for each.
    """

    item_id: str
    fields: dict[str, str]
    left_out: tuple[str, ...] = ()


class Instant:
    """A date or a time that is no number in its file: `nanoseconds` since 1970, UTC."""

    __slots__ = ("nanoseconds",)

    def __init__(self, nanoseconds: int):
        self.nanoseconds = nanoseconds

    def __str__(self) -> str:
        """ISO 8601, of any year: a date, and where it is no midnight a time with its fraction."""
        seconds, nanosecond = divmod(self.nanoseconds, 10**9)
        when = np.datetime64(seconds, "s")
        if not (seconds % 86_400 or nanosecond):
            return str(when.astype("datetime64[D]"))
        fraction = f".{nanosecond:09d}".rstrip("0") if nanosecond else ""
        return str(when).replace("T", " ") + fraction


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


class LeftOut(Reject):
    """Why a field of an item cannot be used; the item stays, without it."""


def clean_text(value: str) -> str:
    """HTML entities resolved; markup, styles, scripts and comments removed; white space folded."""
    if "&" in value:
        value = html.unescape(value)
    if "<" in value:
        value = _MARKUP.sub(" ", _shown(value))
    return " ".join(value.split())


def is_code(text: str) -> bool:
    """Whether a clean text is the remains of a web page: JavaScript or CSS."""
    may_be = ";" in text or "{" in text or "()" in text  # sooner told
    return may_be and _CODE.search(text) is not None


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
    """The clean text under `key`, a string, a number or a list of them; "" where there is none.

    What a list holds is joined by spaces, without what is missing or the remains of a web page.

    Raises:
      LeftOut: it is something else, or the remains of a page.
      Reject: it is not Unicode.
    """
    return _clean(given(record, key), key)


def path(record: Mapping[str, Any], key: str) -> str:
    """A category path, from the root to the leaf; of a list of paths, the first. Else as `text`."""
    value = given(record, key)
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return _clean(value, key)


def price(written: str) -> str:
    """A price as it is written ("$12.99 - $20.00"); "" for what is certainly none.

    That is what is longer than any price, a word for a missing value ("None", "$nan"), and marks
    without a letter, a digit or a currency ("\u2014").
    """
    if len(written) > MAX_PRICE_LENGTH or written.strip(_CURRENCIES + " ").lower() in _NO_PRICE:
        return ""
    is_one = any(mark.isalnum() or mark in _CURRENCIES for mark in written)
    return written if is_one else ""


def text_of_price(record: Mapping[str, Any], key: str) -> str:
    """The price under `key`, as `text`. Raises LeftOut also for what is no price."""
    written = text(record, key)
    if written and not price(written):
        raise LeftOut(f"{key} is no price")
    return written


def item(
    item_id: str,
    record: Mapping[str, Any],
    readers: Mapping[str, Callable[[Mapping[str, Any]], str]],
) -> Item:
    """An item with the fields that `readers` find in `record`, by name; without empty ones."""
    fields, left_out = {}, []
    for name, read in readers.items():
        try:
            value = read(record)
        except LeftOut as reason:
            left_out.append(str(reason))
            continue
        if value:
            fields[name] = value
    return Item(item_id, fields, tuple(left_out))


def is_number(value: Any) -> bool:
    """Whether it is one that can be written in a few digits (True is no number)."""
    if type(value) is int:
        return _is_int64(value)
    if isinstance(value, decimal.Decimal):
        return value.is_finite() and _is_int64(value)
    return isinstance(value, float)


def _is_int64(value: Number) -> bool:
    # Python would refuse to write the longest integers at all.
    return -(2**63) <= value < 2**63


def _shown(value: str) -> str:
    """`value` without the styles, scripts and comments that are closed, which no browser shows."""
    pieces = _EDGES.split(value)  # text, edge, text, edge, ..., text
    edges = range(1, len(pieces), 2)
    closes = {n: _closing(pieces[n]) for n in edges if pieces[n].startswith(("</", "-->"))}
    last = {closing: n for n, closing in closes.items()}
    shown, until = [], ""
    for n, piece in enumerate(pieces):
        if until:
            until = "" if closes.get(n) == until else until
        elif n % 2 and n not in closes and last.get(_closing(piece), 0) > n:
            until = _closing(piece)
            shown.append(" ")
        else:
            shown.append(piece)
    return "".join(shown)


def _closing(edge: str) -> str:
    """What closes a script, a style or a comment, told from one of its edges."""
    if edge in ("<!--", "-->"):
        return "-->"
    return "script" if "script" in edge[:8].lower() else "style"


def _clean(value: Any, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        cleaned = clean_text(_unicode(value, key))
        if is_code(cleaned):
            raise LeftOut(f"{key} is the remains of a web page")
        return cleaned
    if isinstance(value, Instant):
        return str(value)
    if is_number(value):
        return _digits(value)
    if isinstance(value, list):
        return _joined(value, key)
    raise LeftOut(f"{key} is neither a string nor a number")


def _digits(value: float | Number) -> str:
    """The shortest text that gives a number back."""
    if not isinstance(value, decimal.Decimal):
        return str(value)
    value = value.normalize(_EXACT)
    return format(value, "f") if -20 < value.adjusted() else str(value)


def _joined(values: list, key: str) -> str:
    there = [_string(value, key) for value in values if value is not None and value == value]
    cleaned = clean_text(" ".join(there))
    if is_code(cleaned):
        each = map(clean_text, there)
        cleaned = " ".join(value for value in each if value and not is_code(value))
        if not cleaned or is_code(cleaned):
            raise LeftOut(f"{key} is the remains of a web page")
    return cleaned


def _string(value: Any, key: str) -> str:
    if isinstance(value, str):
        return _unicode(value, key)
    if is_number(value):
        return _digits(value)
    raise LeftOut(f"{key} is a list of more than strings and numbers")


def _unicode(value: str, key: str) -> str:
    """`value`, unless it holds half a surrogate pair ("\\ud83d"), which no file can hold."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Reject(f"{key} is not Unicode") from None
    return value
