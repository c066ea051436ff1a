"""`calrec eval`: generates, retrieves and measures, beside the baselines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import run_command
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Writes MODEL_DIR/eval/<split>/ and prints the table."""
    parser = argparse.ArgumentParser("calrec eval", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model_dir",
        help="a run's MODEL_DIR; its config.gin says the rest, in place of --gin_file",
    )
    args = gin_arguments.parse_arguments(parser, argv)
    if bool(args.model_dir) == bool(args.gin_file):
        parser.error("give either --model_dir or --gin_file")

    from calrec_jax.cli import progress
    from calrec_jax.cli import run as runs
    from calrec_jax.report import plain

    with runs.joined_processes("eval"):
        if args.model_dir:
            run = runs.from_model_dir(args.model_dir, args.gin_bindings, args.gin_search_paths)
        else:
            run = runs.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
        with full_disk_named(run.model_dir), progress.of_users() as show:
            result = runs.evaluate(run, show)
    plain.show(plain.result_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("eval"))
