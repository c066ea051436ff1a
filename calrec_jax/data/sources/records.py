"""The records that raw lines become, and how the values in a line are checked and cleaned.

All functions are pure: the same value gives the same outcome whatever was read before.
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

MAX_PRICE_LENGTH = 40  # "$1,234.56 - $2,345.67" has 21; longer ones are remains of a web page
TEXT_LENGTH = 500  # characters of a rejected line that are kept
_WIDEST_ID = 2**128  # above the integers of databases; Python refuses to write the longest ones
_EXACT_FLOAT = 2**53
_MARKUP = re.compile(r"</?[A-Za-z!][^<>]*>")
_EDGES = re.compile(r"(<!--|-->|</?(?:script|style)\b[^<>]*>)", re.IGNORECASE)
# JavaScript and CSS that stand in a text without <script> or <style>, as in Amazon's dump of 2018.
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
"""A 64-bit number, exactly as it was written; whole numbers are int."""


# Named tuples, not dataclasses: there are millions, and named tuples are made three times as fast.
class Event(NamedTuple):
    """One purchase or rating. It has an order, a timestamp or both.

    Attributes:
      order: a number that sorts a user's events, such as a rank, or None.
      timestamp: Unix seconds between 1970 and 2100, rounded down, or None.
      nanosecond: the nanosecond within that second, from 0.
    """

    user_id: str
    item_id: str
    order: Number | None
    timestamp: int | None
    nanosecond: int = 0


class Item(NamedTuple):
    """One listing of an item.

    Attributes:
      fields: {field: clean text}, without fields that are empty or left out.
      left_out: for each field that is present but cannot be used, the reason: one of a few fixed
        texts.
    """

    item_id: str
    fields: dict[str, str]
    left_out: tuple[str, ...] = ()


class Instant:
    """A value of a date or time type, as Parquet has them: `nanoseconds` since 1970, UTC."""

    __slots__ = ("nanoseconds",)

    def __init__(self, nanoseconds: int):
        self.nanoseconds = nanoseconds

    def __str__(self) -> str:
        """The date in ISO 8601, of any year; unless it is midnight, with the time of day."""
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
      line: the line's number from 1: the first one of a row over several lines, and the row's
        number in a Parquet file.
      reason: one of a few fixed texts, so that rejected lines can be counted by reason.
      text: the first 500 characters of the line, as valid Unicode.
    """

    file: str
    line: int
    reason: str
    text: str


class Reject(Exception):
    """The reason why a line cannot be used. The reader of the file turns it into a `Rejected`."""


class LeftOut(Reject):
    """The reason why a field of an item cannot be used; the item stays, without the field."""


def clean_text(value: str) -> str:
    """`value` with HTML entities resolved, without markup, and with white space folded.

    Styles, scripts and comments are removed together with their contents.
    """
    if "&" in value:
        value = html.unescape(value)
    if "<" in value:
        value = _MARKUP.sub(" ", _shown(value))
    return " ".join(value.split())


def is_code(text: str) -> bool:
    """Whether a clean text is the remains of a web page: JavaScript or CSS."""
    may_be_code = ";" in text or "{" in text or "()" in text  # faster than the pattern
    return may_be_code and _CODE.search(text) is not None


def given(record: Mapping[str, Any], key: str) -> Any:
    """The value under `key`; None where it is missing, also for NaN, as pandas writes that."""
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

    An integer may be of NumPy, or a float or a decimal: pandas writes 12.0 in a column in which
    another value is missing.

    Raises:
      Reject: the id is missing, neither a string nor an integer, or not Unicode.
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
    """`value` as an integer; None for NaN and the infinities. Raises Reject for fractions."""
    if not math.isfinite(value):
        return None
    if value != int(value):
        raise Reject(f"{key} is neither a string nor an integer")
    if isinstance(value, float) and abs(value) >= _EXACT_FLOAT:
        raise Reject(f"{key} is a float of 2**53 or more, in which integers lose digits")
    return int(value)


def text(record: Mapping[str, Any], key: str) -> str:
    """The clean text under `key`, a string, a number or a list of them; "" where there is none.

    The elements of a list are joined by spaces, without those that are missing or the remains of a
    web page.

    Raises:
      LeftOut: the value is of another type, or the remains of a web page.
      Reject: it is not Unicode.
    """
    return _clean(given(record, key), key)


def path(record: Mapping[str, Any], key: str) -> str:
    """A category path from the root to the leaf, as `text`; of a list of paths, the first one."""
    value = given(record, key)
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return _clean(value, key)


def price(written: str) -> str:
    """A price as it is written ("$12.99 - $20.00"); "" for a text that is certainly not a price.

    Such are texts longer than any price, words for a missing value ("None", "$nan"), and texts
    without a letter, a digit or a currency ("\u2014").
    """
    if len(written) > MAX_PRICE_LENGTH or written.strip(_CURRENCIES + " ").lower() in _NO_PRICE:
        return ""
    is_price = any(mark.isalnum() or mark in _CURRENCIES for mark in written)
    return written if is_price else ""


def text_of_price(record: Mapping[str, Any], key: str) -> str:
    """The price under `key`, as `text` reads it. Raises LeftOut also where it is no price."""
    written = text(record, key)
    if written and not price(written):
        raise LeftOut(f"{key} is no price")
    return written


def item(
    item_id: str,
    record: Mapping[str, Any],
    readers: Mapping[str, Callable[[Mapping[str, Any]], str]],
) -> Item:
    """The item in `record`, without empty fields.

    Args:
      readers: {field: function that reads it from a record}.
    """
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
    """Whether `value` is a number of 64 bits or a float (True is no number)."""
    if type(value) is int:
        return _is_int64(value)
    if isinstance(value, decimal.Decimal):
        return value.is_finite() and _is_int64(value)
    return isinstance(value, float)


def _is_int64(value: Number) -> bool:
    # Python refuses to write the longest integers.
    return -(2**63) <= value < 2**63


def _shown(value: str) -> str:
    """`value` without what no browser shows: styles, scripts and comments that are closed."""
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
    """The name of what closes a script, a style or a comment, given one of its edges."""
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
    """The shortest text from which the number can be read back."""
    if not isinstance(value, decimal.Decimal):
        return str(value)
    value = value.normalize(_EXACT)
    return format(value, "f") if -20 < value.adjusted() else str(value)


def _joined(values: list, key: str) -> str:
    texts = [_string(value, key) for value in values if value is not None and value == value]
    cleaned = clean_text(" ".join(texts))
    if is_code(cleaned):
        each_cleaned = map(clean_text, texts)
        cleaned = " ".join(value for value in each_cleaned if value and not is_code(value))
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
    """`value`. Raises Reject where it holds half a surrogate pair ("\\ud83d"), as no file can."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Reject(f"{key} is not Unicode") from None
    return value
