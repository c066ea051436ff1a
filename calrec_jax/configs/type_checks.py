"""Checks configurations against their type hints: gin itself binds values of any type."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any

from calrec_jax.errors import CalrecError


def check(config: Any) -> None:
    """Checks the fields of a dataclass, and of the dataclasses in them, at any depth.

    Raises:
      CalrecError: a value is not of the type of its field; the line names both.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not _fits(value, hint):
            shown = repr(value)
            shown = shown if len(shown) <= 80 else f"{shown[:76]} ..."
            raise CalrecError(
                f"{type(config).__name__}.{field.name} is {shown}, which is not of type "
                f"{field.type}"
            )
        for inner in value if isinstance(value, (list, tuple)) else [value]:
            if dataclasses.is_dataclass(inner):
                check(inner)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if origin is collections.abc.Mapping:
        keys, values = arguments
        return isinstance(value, origin) and all(
            _fits(k, keys) and _fits(v, values) for k, v in value.items()
        )
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    return not isinstance(hint, type) or isinstance(value, hint)
