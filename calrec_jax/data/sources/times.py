"""Times and orders, exactly as they are written: rounding could change the order of events."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from typing import Any

from calrec_jax.data.sources.records import Instant, Number, Reject, is_number

UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_BILLION = 10**9
_YEAR_2100 = 4_102_444_800  # in Unix seconds
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SECOND = datetime.timedelta(seconds=1)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,9})?")
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")
_FRACTION = re.compile(r"[.,]([0-9]+)")
# "2023-01-05 10:22:11 -0500" and "... UTC", as shops and databases write them.
_ZONE_APART = re.compile(r"(?<=[0-9]) +(?:UTC|GMT|Z|(?=[+-][0-9]{2}))")
# Python's default context would round to 28 digits.
_EXACT = decimal.Context(prec=decimal.MAX_PREC)
_FLOOR = decimal.Context(prec=60, rounding=decimal.ROUND_FLOOR)

Moment = tuple[int, int]
"""(Unix seconds, nanosecond in that second)."""


def moment(
    value: Any, key: str, unit: str = "s", hint: str = "", dates: bool = False
) -> Moment | None:
    """The time that `value`, found under `key`, stands for; None where it is missing.

    Args:
      value: a number, an ISO 8601 date or time (in UTC unless it has a zone), or an Instant.
      unit: the unit of numbers: "s", "ms", "us" or "ns".
      hint: ends the message about a time after 2100, which another unit may explain.
      dates: whether numbers are dates (see `date_in_digits`) and not times in `unit`.

    Raises:
      Reject: `value` is none of these, or not between 1970 and 2100.
    """
    value = _number_if_written(value)
    if value is None:
        return None
    if isinstance(value, (Instant, str)):
        time = _moment_of_date(value)
    else:
        time = _moment_of_number(_exact(value), _PER_SECOND[unit], dates)
    if time is None:
        wanted = "a date like those before it" if dates else "a number"
        raise Reject(f"{key} is neither {wanted} nor an ISO 8601 date")
    if time[0] <= 0:
        raise Reject("time stamp is not after 1970")
    if time[0] >= _YEAR_2100:
        raise Reject(f"time stamp is after 2100: {UNITS[unit]} were expected{hint}")
    return time


def order(value: Any, key: str) -> Number | None:
    """The number that `value`, found under `key`, stands for: a date stands for its Unix seconds.

    Raises:
      Reject: `value` is neither a 64-bit number nor a date.
    """
    value = _number_if_written(value)
    if value is None:
        return None
    is_date = isinstance(value, (Instant, str))
    exact = _seconds_of_date(value) if is_date else _exact(value)
    if exact is None:
        raise Reject(f"{key} is neither a 64-bit number nor an ISO 8601 date")
    return exact


def _seconds_of_date(value: Instant | str) -> Number | None:
    """The Unix seconds of a date or time, with their fraction; None for what is neither."""
    time = _moment_of_date(value)
    if time is None:
        return None
    seconds, nanosecond = time
    return _exact(_EXACT.scaleb(decimal.Decimal(seconds * _BILLION + nanosecond), -9))


def number(value: Any) -> Number | None:
    """`value`, a 64-bit number or a string of its digits, as a number; None for all others."""
    return _exact(_number_if_written(value))


def date_in_digits(number: Number) -> Moment | None:
    """The midnight that begins YYYYMMDD, or the first day of YYYY; None for all other numbers."""
    if 1900 <= number <= 2099:
        number = number * 10_000 + 101
    if not 1900_00_00 <= number <= 2099_99_99 or not isinstance(number, int):
        return None
    return of_iso(str(number))


def of_iso(value: str) -> Moment | None:
    """The time of an ISO 8601 date (its beginning) or time, in UTC unless it has a zone.

    There may be a space before the zone, and the zone may be written as "UTC". None where `value`
    is no such text.
    """
    if _MONTH.fullmatch(value):
        value += "-01"
    elif ":" in value:
        value = _ZONE_APART.sub("", value)
    try:
        when = datetime.datetime.fromisoformat(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    digits = _FRACTION.search(value)  # `when` has only six of them
    nanosecond = int(digits[1][:9].ljust(9, "0")) if digits else 0
    return (when - _EPOCH) // _SECOND, nanosecond


def _moment_of_date(value: Instant | str) -> Moment | None:
    return of_iso(value) if isinstance(value, str) else divmod(value.nanoseconds, _BILLION)


def _number_if_written(value: Any) -> Any:
    """The number that a string writes, None for an empty string, and any other value as it is."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    if not value:
        return None
    if len(value) < 20 and value.isascii() and value.isdigit():
        return int(value)
    return decimal.Decimal(value) if _NUMBER.fullmatch(value) else value


def _exact(value: Any) -> Number | None:
    """`value` as a 64-bit number, where equal numbers have one form; None for what is none."""
    if type(value) is int:
        return value if is_number(value) else None
    if isinstance(value, float) and math.isfinite(value):
        value = decimal.Decimal(repr(value))  # the shortest number that this float stands for
    if not isinstance(value, decimal.Decimal) or not is_number(value):
        return None
    integer = int(value)
    return integer if integer == value else value.normalize(_EXACT)


def _moment_of_number(number: Number | None, per_second: int, dates: bool) -> Moment | None:
    if dates or number is None:
        return None if number is None else date_in_digits(number)
    if isinstance(number, int):
        seconds, rest = divmod(number, per_second)
        return seconds, rest * (_BILLION // per_second)
    nanoseconds = _FLOOR.multiply(number, _BILLION // per_second)
    return divmod(int(nanoseconds.to_integral_value(decimal.ROUND_FLOOR)), _BILLION)
