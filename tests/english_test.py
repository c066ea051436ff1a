"""The words of the code: docstrings name their subject, and identifiers say what they hold."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("calrec_jax", "tasks", "tests", "benchmarks")
RIDDLES = {"told", "theirs", "some", "whoever"}


def files() -> list[pathlib.Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, and of each string that documents a constant."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of each name that the code binds or reads, including attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case ast.alias(name=name, asname=asname):
                yield node.lineno, asname or name


def faults(source: str) -> list[str]:
    """The faults in the words of a module, each with its line."""
    tree = ast.parse(source)
    vague = [
        f"{line}: a docstring begins with 'Of '"
        for line, text in docstrings(tree)
        if text.lstrip().startswith("Of ")
    ]
    riddles = [f"{line}: {name!r}" for line, name in identifiers(tree) if name in RIDDLES]
    return vague + riddles


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_their_subject_and_identifiers_say_what_they_hold(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('"""Of a module."""', "1: a docstring begins with 'Of '"),
        ('A = 1\n"""Of a constant."""', "2: a docstring begins with 'Of '"),
        ('def f():\n    """\n    Of a function."""', "2: a docstring begins with 'Of '"),
        ("def f(told): ...", "1: 'told'"),
        ("def f():\n    theirs = 1", "2: 'theirs'"),
        ("class A:\n    some: int", "2: 'some'"),
        ("a.whoever = 1", "1: 'whoever'"),
        ("f(told=1)", "1: 'told'"),
        ("def some(): ...", "1: 'some'"),
        ("from a import b as theirs", "1: 'theirs'"),
        ("with a() as told: ...", "1: 'told'"),
        ("try: ...\nexcept E as told: ...", "2: 'told'"),
        ("x = [some for some in y][:0] and {1 for z in some}", "1: 'some'"),
    ],
)
def test_a_fault_would_be_seen(source, fault):
    assert set(faults(source)) == {fault}


@pytest.mark.parametrize(
    "source", ['"""The place of an item."""', "x = 'Of old'", "someone = told_of"]
)
def test_good_words_are_no_fault(source):
    assert faults(source) == []
