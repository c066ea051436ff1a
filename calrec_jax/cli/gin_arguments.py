"""Gin's flags on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from calrec_jax.configs.gin_config import PREFIX


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str], files: bool = True
) -> argparse.Namespace:
    """Adds gin's flags to `parser`, and parses. The bindings are in `.gin_bindings`.

    Args:
      files: whether gin files are accepted; otherwise bindings alone.
    """
    group = parser.add_argument_group("configuration")
    if files:
        group.add_argument(
            "--gin_file",
            action="append",
            default=[],
            metavar="FILE",
            help="a gin file; may be repeated; gin/runs/quickstart.gin works from anywhere",
        )
        group.add_argument(
            "--gin_search_paths",
            default="",
            metavar="A,B",
            help="folders to search for gin files and includes, after the working directory",
        )
    group.add_argument(
        "--gin.NAME=VALUE",
        action="store_true",  # for --help alone: bindings are taken out of argv below
        default=argparse.SUPPRESS,
        help="binds a macro or a parameter; VALUE is a Python literal, so a string needs quotes: "
        "--gin.MODEL_DIR='\"runs/a\"'",
    )
    bindings = [arg.removeprefix(PREFIX) for arg in argv if arg.startswith(PREFIX)]
    for binding in bindings:
        if not binding.partition("=")[2]:
            parser.error(f"{PREFIX}{binding} has no value: write {PREFIX}NAME=VALUE")
    args = parser.parse_args([arg for arg in argv if not arg.startswith(PREFIX)])
    args.gin_bindings = bindings
    return args
