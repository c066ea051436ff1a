"""`calrec baseline`: trains SASRec on a dataset, and measures it as `calrec eval` does a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import run_command
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Trains, writes MODEL_DIR/eval/<split>/ and prints the table."""
    parser = argparse.ArgumentParser("calrec baseline", description=__doc__, allow_abbrev=False)
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required: --gin_file=gin/baselines/sasrec.gin")

    from calrec_jax.cli import baseline_run, progress
    from calrec_jax.report import plain

    run = baseline_run.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
    with full_disk_named(run.model_dir), progress.of_users() as show:
        result = baseline_run.train_and_evaluate(run, show)
    print(plain.result_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("baseline"))
