"""The ranges of values in configurations, and one clear line for a value outside of its range.

Values of other types than the field's are left alone: the check of types reports them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from calrec_jax.errors import CalrecError


def require_one_of(config: Any, field: str, choices: Sequence[str]) -> None:
    """Raises CalrecError where the field of a configuration holds none of the choices."""
    value = getattr(config, field)
    if value not in choices:
        raise CalrecError(f"{type(config).__name__}.{field} {value!r} is none of {choices}")


def require_at_least_one(config: Any, *fields: str) -> None:
    """Raises CalrecError where one of the fields holds a number below 1."""
    for name, value in _numbers(config, fields):
        if value < 1:
            raise CalrecError(f"{name} is {value}: it must be at least 1")


def require_not_negative(config: Any, *fields: str) -> None:
    """Raises CalrecError where one of the fields holds a negative number, infinity or NaN."""
    for name, value in _numbers(config, fields):
        if not 0 <= value < math.inf:
            raise CalrecError(f"{name} is {value}: it must be finite and not negative")


def require_at_most_one(config: Any, field: str, zero: bool) -> None:
    """Raises CalrecError where the field holds a number that is not between 0 and 1.

    Args:
      zero: whether 0 is in the range, as 1 is.
    """
    for name, value in _numbers(config, [field]):
        if not 0 <= value <= 1 or (value == 0 and not zero):
            raise CalrecError(f"{name} is {value}: give one in {'[' if zero else '('}0, 1]")


def _numbers(config: Any, fields: Sequence[str]) -> Iterator[tuple[str, float]]:
    """("Class.field", value) of each field that holds a number."""
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, (int, float)):
            yield f"{type(config).__name__}.{field}", value
