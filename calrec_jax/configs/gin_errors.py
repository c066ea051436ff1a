"""Gin's error messages in one line, with the nearest known name."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import tokenize
from collections.abc import Iterable

from gin import config as gin_config


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` may be a misspelling of, if one is like it."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)), None)


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or all of them."""
    known = sorted(set(known))
    nearest = near(name, known)
    if nearest:
        return f": did you mean {nearest}?"
    return f"; known are {', '.join(known)}" if known else ""


def explain(error: Exception, where: str) -> str:
    """The error in one line.

    Args:
      where: the file or the flag that was read, in case gin names no location.
    """
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    where = _location(error) or where
    at = f" ({where})" if where else ""
    for pattern, explanation in _EXPLANATIONS:
        match = re.search(pattern, text)
        if match:
            return explanation(at, *match.groups())
    if isinstance(error, (SyntaxError, tokenize.TokenError)):
        return (
            f"not in gin's syntax{at}: a value is a Python literal, so a string needs quotes, as "
            f"in --gin.MODEL_DIR='\"runs/a\"'"
        )
    return f"{type(error).__name__}: {first}{at}"


def _location(error: Exception) -> str:
    """The innermost location that gin's message names."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    match = re.search(r'In file "([^"]*)", line (\d+)', str(error))
    return f"{match[1]}, line {match[2]}" if match else ""


def _missing_file(at: str, file: str, folders: str) -> str:
    searched = [folder or "the working directory" for folder in re.findall(r"'([^']*)'", folders)]
    listed = f"; looked in {', '.join(searched)}" if len(searched) > 1 else ""
    return f"no gin file {file}{'' if at == f' ({file})' else at}{listed}"


def _unknown_configurable(at: str, name: str) -> str:
    return f"unknown gin configurable {name}{at}{hint(name, _configurables(name.count('.')))}"


def _unknown_parameter(at: str, configurable: str, name: str) -> str:
    parameters = inspect.signature(gin_config._REGISTRY.get_match(configurable).wrapped).parameters
    return f"{configurable} has no parameter {name}{at}{hint(name, parameters)}"


def _unknown_attribute(at: str, selector: str, module: str, name: str) -> str:
    known = [n for n in dir(sys.modules.get(module)) if not n.startswith("_")]
    return f"unknown gin configurable {selector}{at}{hint(name, known)}"


def _not_imported(at: str, name: str) -> str:
    return f"{name} is not imported{at}: add `from PACKAGE import {name}` to the gin file"


def _missing_arguments(at: str, arguments: str, configurable: str) -> str:
    names = ", ".join(re.findall(r"'([^']*)'", arguments))
    return f"the gin configuration binds no {names} of {configurable}{at}: include a file that does"


def _refused(at: str, reason: str, configurable: str) -> str:
    return f"{reason} (in gin's {configurable})" if not at else f"{reason}{at}"


_EXPLANATIONS = (
    (r"^Unable to open file: (.*)\. Searched config paths: \[(.*)\]", _missing_file),
    (r"^No configurable matching reference '@([\w./]*)(?:\(\))?'", _unknown_configurable),
    (r"^No configurable matching '([^']*)'", _unknown_configurable),
    (r"^Configurable '([^']*)' doesn't have a parameter named '([^']*)'", _unknown_parameter),
    (
        r"^Couldn't resolve selector (.*); <module '([^']*)'.* no attribute (\w*)",
        _unknown_attribute,
    ),
    (r"^'(\w*)' was not provided by an import statement", _not_imported),
    (
        r"(?s)No values supplied .* for arguments: (\[.*?\]).*configurable '(.*?)'",
        _missing_arguments,
    ),
    (r"^(.*)\n  In call to configurable '(.*?)'", _refused),
)


def _configurables(dots: int) -> list[str]:
    """The names that gin knows, each with the last `dots` parts of its module."""
    selectors = gin_config._REGISTRY._selector_map
    ours = [selector for selector in selectors if not selector.startswith("gin.")]
    return [".".join(selector.split(".")[-1 - dots :]) for selector in ours]
