"""Gin's flags on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from calrec_jax.configs.gin_config import PREFIX


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str], files: bool = True
) -> argparse.Namespace:
    """Adds gin's flags to `parser` and parses; the bindings are `.gin_bindings`.

    Args:
      files: whether gin files may be given, or bindings alone.
    """
    group = parser.add_argument_group("configuration")
    if files:
        group.add_argument(
            "--gin_file",
            action="append",
            default=[],
            metavar="FILE",
            help="a gin file, given again for more; gin/runs/quickstart.gin works from anywhere",
        )
        group.add_argument(
            "--gin_search_paths",
            default="",
            metavar="A,B",
            help="where gin files and their includes are looked for, besides here and the package",
        )
    group.add_argument(
        "--gin.NAME=VALUE",
        action="store_true",  # for --help alone: these are taken out of argv below
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
