"""`calrec eval`: generates, retrieves and measures, beside the baselines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Writes MODEL_DIR/eval/<split>/ and prints the table."""
    parser = argparse.ArgumentParser("calrec eval", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model_dir",
        help="a run's MODEL_DIR, whose config.gin takes the place of --gin_file",
    )
    args = gin_arguments.parse_arguments(parser, argv)
    if bool(args.model_dir) == bool(args.gin_file):
        parser.error("give either --model_dir or --gin_file")

    from calrec_jax.cli import progress
    from calrec_jax.cli.processes import joined_processes
    from calrec_jax.configs import load
    from calrec_jax.report import plain
    from calrec_jax.runs.evaluate import evaluate

    with joined_processes("eval"):
        if args.model_dir:
            run = load.load_run(args.model_dir, args.gin_bindings, args.gin_search_paths)
        else:
            run = load.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
        with full_disk_named(run.model_dir), progress.evaluation() as on_progress:
            result = evaluate(run, on_progress)
    plain.show(plain.result_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(calrec(["eval", *sys.argv[1:]]))
