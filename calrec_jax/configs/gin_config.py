"""Gin as T5X uses it: repeated --gin_file, --gin.NAME=VALUE, --gin_search_paths.

Only configs/ imports gin. Configurations use gin's dynamic registration, so that library code has
no decorators. Gin itself accepts misspelt macros and scopes, and its errors have several lines;
here each name must be one that the configuration refers to, and each mistake is one line.
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
from typing import Any, TypeVar

import gin
from gin import config as gin_config
from gin import config_parser

from calrec_jax.configs import gin_errors, type_checks
from calrec_jax.configs.renamed import Renamer
from calrec_jax.errors import CalrecError, local_path

Config = TypeVar("Config")

PREFIX = "--gin."  # of a binding on the command line
_MACRO = "gin.macro"
_REQUIRED = ("gin.REQUIRED", "gin.constant")

# What gin raises for mistakes in files and bindings. Other errors come from the code that it calls.
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
    """Makes files and bindings the configuration of this process, which replaces the one before.

    Args:
      files: each is searched for in the working directory, then in `search_paths`, then in the
        folder that holds `gin/`.
      bindings: "NAME=VALUE", applied after the files.
      search_paths: folders, separated by commas.

    Raises:
      CalrecError: a file is missing (the line names the folders that were searched), a name is
        unknown (the line gives the nearest), or a value is no literal.
    """
    folders = ["", *filter(None, search_paths.split(",")), str(search_root())]
    gin.clear_config()
    renamer = Renamer()
    with _reading_from(folders, renamer) as references:
        for file in files:
            with _explained(file):
                gin.parse_config_file(file)
        for binding in bindings:
            with _explained(PREFIX + binding):
                _parse_binding(binding)
    _check_names(references)
    if renamer.renamed:
        names = ", ".join(f"{old} is now {new}" for old, new in renamer.renamed.items())
        print(f"calrec: names in gin have changed: {names}", file=sys.stderr)


def configured(cls: type[Config]) -> Config:
    """An instance of the class `cls`, as the parsed files and bindings configure it.

    Raises:
      CalrecError: a value that it needs is not bound, or a value is refused or of a wrong type.
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
    """Makes the values of macros absolute, where they are relative paths.

    Raises:
      CalrecError: a value is a URL.
    """
    for name in macros:
        value = gin_config._CONFIG.get((name, _MACRO), {}).get("value")
        if isinstance(value, str):
            absolute = os.path.abspath(local_path(value, name))
            gin.bind_parameter((name, _MACRO, "value"), absolute)


def operative_config() -> str:
    """All values that were used since `parse`, with defaults, as a gin file."""
    return gin.operative_config_str(max_line_length=100)


@contextlib.contextmanager
def _reading_from(folders: Sequence[str], renamer: Renamer) -> Iterator[set[str]]:
    """While active, gin searches `folders`. Yields the names of macros and scopes that are used."""
    references: set[str] = set()

    class Delegate(gin_config.ParserDelegate):
        def macro(self, name: str) -> Any:
            references.add(name)
            return super().macro(name)

        def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
            references.update(scoped_selector.split("/")[:-1])
            return super().configurable_reference(renamer.selector(scoped_selector), evaluate)

    patches = [
        (gin_config, "ParserDelegate", Delegate),
        (gin_config, "_LOCATION_PREFIXES", list(folders)),
        # Gin's other reader takes paths for packages: it logs, and fails at plain folders.
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
        yield references


@contextlib.contextmanager
def _patched(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _parse_binding(binding: str) -> None:
    """Parses one binding. Names may be short, and anything in a module that a file imports."""
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
    """Turns gin's errors, which have several lines, into one line."""
    try:
        yield
    except _MISTAKES as error:
        raise CalrecError(gin_errors.explain(error, where)) from error


def _check_names(references: set[str]) -> None:
    """Raises CalrecError for a macro or a scope that has bindings but is never used."""
    for scope, selector in gin_config._CONFIG:
        kind = "macro" if selector == _MACRO else "scope"
        for name in [scope] if kind == "macro" else filter(None, scope.split("/")):
            if name not in references:
                raise CalrecError(f"unknown gin {kind} {name}{gin_errors.hint(name, references)}")


def _check_required(selector: str) -> None:
    """Raises CalrecError that names all values which `selector` needs and lacks."""
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
    """Macros and parameters that `selector` depends on and that are unbound or gin.REQUIRED."""
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
