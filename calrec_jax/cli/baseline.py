"""`calrec baseline`: trains SASRec on a dataset, and evaluates it as `calrec eval` does a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Trains, writes MODEL_DIR/eval/<split>/ and prints the table."""
    parser = argparse.ArgumentParser("calrec baseline", description=__doc__, allow_abbrev=False)
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required: --gin_file=gin/baselines/sasrec.gin")

    from calrec_jax.cli import progress
    from calrec_jax.configs import gin_config, load
    from calrec_jax.report import plain
    from calrec_jax.runs.baseline import train_and_evaluate

    run = load.baseline_from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
    with full_disk_named(run.model_dir), progress.evaluation() as on_progress:
        result = train_and_evaluate(run, gin_config.operative_config(), on_progress)
    plain.show(plain.result_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(calrec(["baseline", *sys.argv[1:]]))
