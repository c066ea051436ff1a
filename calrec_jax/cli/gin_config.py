"""Gin, in T5X's manner: repeated --gin_file, --gin.NAME=VALUE, --gin_search_paths.

The only module that knows gin. Configs use gin's dynamic registration, so library code carries no
decorators.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import gin
from gin import config as gin_config

from calrec_jax.errors import CalrecError

_MACRO, _REQUIRED = "gin.macro", "gin.REQUIRED"


def search_root() -> pathlib.Path:
    """The directory that holds `gin/`: the installed package, or the checkout around it."""
    package = pathlib.Path(__file__).resolve().parent.parent
    return package if (package / "gin").is_dir() else package.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --gin_file and --gin_search_paths. --gin.NAME=VALUE is taken by `split_bindings`."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file, given again for more; 'gin/runs/quickstart.gin' works from anywhere",
    )
    group.add_argument(
        "--gin_search_paths",
        default="",
        metavar="A,B",
        help="where gin files and their includes are looked for, besides here and the package",
    )
    group.add_argument(
        "--gin.NAME=VALUE",
        dest="_",
        default=argparse.SUPPRESS,
        metavar="",
        help="binds a macro or a parameter; VALUE is a Python literal, so strings need quotes: "
        "--gin.MODEL_DIR='\"runs/a\"'",
    )


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(gin bindings, the other arguments)."""
    prefix = "--gin."
    bindings = [arg.removeprefix(prefix) for arg in argv if arg.startswith(prefix)]
    return bindings, [arg for arg in argv if not arg.startswith(prefix)]


def parse(files: Sequence[str], bindings: Sequence[str], search_paths: str = "") -> None:
    """Makes files and bindings the configuration of this process, in place of any before.

    Raises:
      CalrecError: a file is missing, a name is unknown (the line gives the nearest), a value is no
        literal, or a required macro is unbound.
    """
    gin.clear_config(clear_constants=False)
    gin_config._LOCATION_PREFIXES[:] = []  # gin offers no way to take its list back
    for path in ["", *filter(None, search_paths.split(",")), str(search_root())]:
        gin.add_config_file_search_path(path)
    for binding in bindings:
        if "=" not in binding:
            raise CalrecError(f"--gin.{binding} has no value: write --gin.{binding}=VALUE")
    try:
        gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
    except OSError as error:
        raise CalrecError(f"gin: {_first_line(error)}") from error
    except (ValueError, AttributeError, ImportError, SyntaxError, NameError, TypeError) as error:
        raise CalrecError(f"gin: {_explain(error)}") from error
    except Exception as error:  # tokenize.TokenError, by name in newer Pythons only
        raise CalrecError(f"gin: {_first_line(error)}: is a quote or bracket missing?") from error
    _check_macros()


def configured(selector: str) -> Any:
    """An instance of the configurable class `selector`, with what is bound to it.

    Raises:
      CalrecError: nothing is bound to it, a binding is missing, or a value is refused.
    """
    try:
        return gin.get_configurable(selector)()
    except CalrecError:
        raise
    except (ValueError, TypeError) as error:
        raise CalrecError(f"gin: {_explain(error)}") from error


def config_string() -> str:
    """The configuration as one gin file, to be parsed again."""
    return gin.config_str()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _where(error: Exception) -> str:
    found = re.search(r'In (file "[^"]*", line \d+|bindings string)', str(error))
    return f" (in {found.group(1)})" if found else ""


def _explain(error: Exception) -> str:
    """One line of gin's message, with the nearest known name."""
    line = _first_line(error)
    known, name = [], ""
    if match := re.search(r"Configurable '([^']*)' doesn't have a parameter named '([^']*)'", line):
        name = match.group(2)
        known = list(inspect.signature(gin.get_configurable(match.group(1))).parameters)
    elif match := re.search(r"No configurable matching '([^']*)'", line):
        name, known = match.group(1), _configurables()
    elif match := re.search(r"Couldn't resolve selector ([\w.]*);.* no attribute (\w*)", line):
        line, name = f"unknown name {match.group(1)}", match.group(1)
        known = _configurables()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if name else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{line}{_where(error)}{hint}"


def _configurables() -> list[str]:
    """Names of what gin knows, as short as configs write them."""
    names = [".".join(key.split(".")[-2:]) for key in gin_config._REGISTRY._selector_map]
    return [*names, *(name.split(".")[-1] for name in names)]


def _check_macros() -> None:
    """Every macro that is set is used, and every macro that is required is set."""
    values = {
        scope: params["value"]
        for (scope, selector), params in gin_config._CONFIG.items()
        if selector == _MACRO
    }
    used = {
        reference.config_key[0]
        for reference in gin_config.iterate_references(gin_config._CONFIG)
        if reference.config_key[1] == _MACRO
    }
    for name in sorted(values.keys() - used):
        near = difflib.get_close_matches(name, used, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"used are {', '.join(sorted(used))}"
        raise CalrecError(f"gin: unknown macro {name}: {hint}")
    for name in sorted(used):
        value = values.get(name)
        required = isinstance(value, gin_config.ConfigurableReference) and (
            value.config_key[0] == _REQUIRED
        )
        if name not in values or required:
            raise CalrecError(f"gin: {name} is required: give --gin.{name}=VALUE")
