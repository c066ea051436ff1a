"""Gin, in T5X's manner: repeated --gin_file, --gin.NAME=VALUE, --gin_search_paths.

The only module that knows gin. Configs use gin's dynamic registration, so library code carries no
decorators. Gin itself lets misspelt macros and scopes pass and explains itself over several lines;
here every name must be one that the configuration refers to, and every mistake is one line.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import sys
import tokenize
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from calrec_jax.configs import gin_errors, type_checks
from calrec_jax.configs.renamed import Renamer
from calrec_jax.errors import CalrecError, local_path

PREFIX = "--gin."  # of a binding on the command line
_MACRO = "gin.macro"
_REQUIRED = ("gin.REQUIRED", "gin.constant")

# What gin raises for mistakes in what it reads; a mistake in the code it calls is another one.
_MISTAKES = (
    AttributeError,
    CalrecError,
    ImportError,
    KeyError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def search_root() -> pathlib.Path:
    """The directory that holds `gin/`: the installed package, or the checkout around it."""
    package = pathlib.Path(__file__).resolve().parent.parent
    return package if (package / "gin").is_dir() else package.parent


def parse(files: Sequence[str], bindings: Sequence[str] = (), search_paths: str = "") -> None:
    """Makes files and bindings the configuration of this process, in place of any before.

    Args:
      files: each is looked for in the working directory, then in `search_paths`, then beside the
        packaged `gin/`.
      bindings: "NAME=VALUE", applied after the files.
      search_paths: folders, separated by commas.

    Raises:
      CalrecError: a file is missing (the line says where it was looked for), a name is unknown (the
        line gives the nearest), or a value is no literal.
    """
    folders = ["", *filter(None, search_paths.split(",")), str(search_root())]
    gin.clear_config()
    renamer = Renamer()
    with _reading_from(folders, renamer) as referred:
        for file in files:
            with _explained(file):
                gin.parse_config_file(file)
        for binding in bindings:
            with _explained(PREFIX + binding):
                _parse_binding(binding)
    _check_names(referred)
    if renamer.found:
        names = ", ".join(f"{old} is now {new}" for old, new in renamer.found.items())
        print(f"calrec: names in gin have changed: {names}", file=sys.stderr)


def configured(cls: type) -> Any:
    """An instance of the class `cls`, which a parsed file configures, with what is bound to it.

    Raises:
      CalrecError: something that it needs is not bound, or a value is refused or of a wrong type.
    """
    selector = f"{cls.__module__}.{cls.__name__}"
    if not gin_config._REGISTRY.get_match(selector):
        raise CalrecError(
            f"the gin configuration says nothing of {cls.__name__}: give a file of gin/runs"
        )
    _check_required(selector)
    with _explained(""):
        instance = gin.get_configurable(selector)()
    type_checks.check(instance)
    return instance


def make_absolute(macros: Sequence[str]) -> None:
    """Binds those of `macros` that are relative paths anew, so that they hold from everywhere.

    Raises:
      CalrecError: one is a URL.
    """
    for name in macros:
        value = gin_config._CONFIG.get((name, _MACRO), {}).get("value")
        if isinstance(value, str):
            absolute = os.path.abspath(local_path(value, name))
            gin.bind_parameter((name, _MACRO, "value"), absolute)


def operative_config() -> str:
    """All that was used since `parse`, defaults included, as one gin file to be parsed again."""
    return gin.operative_config_str(max_line_length=100)


@contextlib.contextmanager
def _reading_from(folders: Sequence[str], renamer: Renamer) -> Iterator[set[str]]:
    """While active, gin looks into `folders`. Yields the macros and scopes that it reads of."""
    referred: set[str] = set()

    class Delegate(gin_config.ParserDelegate):
        def macro(self, name):
            referred.add(name)
            return super().macro(name)

        def configurable_reference(self, scoped_selector, evaluate):
            referred.update(scoped_selector.split("/")[:-1])
            return super().configurable_reference(renamer.selector(scoped_selector), evaluate)

    patches = [
        (gin_config, "ParserDelegate", Delegate),
        (gin_config, "_LOCATION_PREFIXES", list(folders)),
        # Gin's other reader tries paths as packages, loudly, and stumbles over plain folders.
        (
            gin_config,
            "_FILE_READERS",
            [(functools.partial(open, encoding="utf-8"), os.path.isfile)],
        ),
        (config_parser, "ConfigParser", renamer.parser()),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(_patched(*patch))
        yield referred


@contextlib.contextmanager
def _patched(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _parse_binding(binding: str) -> None:
    """Parses one binding; short names work, and all that a module imported by a file holds."""
    try:
        gin.parse_config(binding)
    except ValueError as error:
        if "No configurable matching" not in str(error):
            raise
        imports = gin_config.ImportManager(gin_config._IMPORTS).sorted_imports
        try:
            gin.parse_config([*(statement.format() for statement in imports), binding])
        except (AttributeError, NameError):
            raise error from None


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns gin's errors, whose text has many lines, into one line."""
    try:
        yield
    except _MISTAKES as error:
        raise CalrecError(gin_errors.explain(error, where)) from error


def _check_names(referred: set[str]) -> None:
    """Raises CalrecError for a macro that is set, or a scope that is bound in, but never used."""
    for scope, selector in gin_config._CONFIG:
        kind = "macro" if selector == _MACRO else "scope"
        for name in [scope] if kind == "macro" else filter(None, scope.split("/")):
            if name not in referred:
                raise CalrecError(f"unknown gin {kind} {name}{gin_errors.hint(name, referred)}")


def _check_required(selector: str) -> None:
    """Raises CalrecError for what `selector` needs and has no value; names it all."""
    missing = sorted(_missing(selector))
    if not missing:
        return
    bound = {scope for scope, name in gin_config._CONFIG if name == _MACRO}
    hints = {name: gin_errors.near(name, bound - set(missing)) for name in set(missing) - bound}
    names = [
        f"{name} (did you mean {hints[name]}?)" if hints.get(name) else name for name in missing
    ]
    raise CalrecError(
        f"no value for {', '.join(names)}: give {PREFIX}{missing[0]}=VALUE"
        f"{' and so on' if len(missing) > 1 else ''}, or bind it in a gin file"
    )


def _missing(selector: str) -> set[str]:
    """Macros and parameters that `selector` leads to, which are unbound or still gin.REQUIRED."""
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()

    def visit(scopes: list[str], selector: str) -> None:
        scope = "/".join(scopes)
        if (scope, selector) in seen:
            return
        seen.add((scope, selector))
        with gin.config_scope(scopes):
            bound = gin.get_bindings(selector, resolve_references=False)
        if selector == _MACRO and not bound:
            missing.add(scope)
        for parameter, value in bound.items():
            for reference in gin_config.iterate_references([value]):
                if reference.config_key == _REQUIRED:
                    name = ".".join([*selector.split(".")[-2:], parameter])
                    missing.add(scope if selector == _MACRO else name)
                elif reference.config_key[1] != _REQUIRED[1]:
                    # A reference without a scope is called in the scope that it stands in.
                    visit(reference.scopes or scopes, reference.configurable.selector)

    visit([], selector)
    return missing
