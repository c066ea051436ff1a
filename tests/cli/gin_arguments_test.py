"""Gin's flags on a command line."""

import argparse

import pytest

from calrec_jax.cli import gin_arguments


def arguments(*argv):
    return gin_arguments.parse_arguments(argparse.ArgumentParser("x"), argv)


def test_flags_are_t5xs():
    args = arguments(
        "--gin_file=a.gin",
        "--gin_file",
        "b.gin",
        "--gin.X='y=z'",
        "--gin_search_paths=c,d",
        "--gin.A/B.c=1",
    )
    assert args.gin_file == ["a.gin", "b.gin"]
    assert args.gin_bindings == ["X='y=z'", "A/B.c=1"]
    assert args.gin_search_paths == "c,d"


def test_bindings_alone_may_be_given():
    def parse(argv):
        return gin_arguments.parse_arguments(argparse.ArgumentParser("x"), argv, files=False)

    assert parse(["--gin.X=1"]).gin_bindings == ["X=1"]
    with pytest.raises(SystemExit):
        parse(["--gin_file=a.gin"])


@pytest.mark.parametrize("argv", [["--gin.X"], ["--gin.X", "5"], ["--gin.X="], ["--gin_files=a"]])
def test_flags_without_value_are_wrong_usage(argv):
    with pytest.raises(SystemExit) as left:
        arguments(*argv)
    assert left.value.code == 2
