"""`calrec train`: runs the stages of a gin configuration, or goes on with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import EXIT_STOPPED, full_disk_named


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all stages are finished, 42 when a signal stopped it and it has saved."""
    parser = argparse.ArgumentParser("calrec train", description=__doc__, allow_abbrev=False)
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required, for example --gin_file=gin/runs/quickstart.gin")

    from calrec_jax.cli.processes import joined_processes
    from calrec_jax.configs import gin_config, load
    from calrec_jax.runs.train import train
    from calrec_jax.training.preemption import Preempted

    with joined_processes("train"):
        try:
            run = load.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
            with full_disk_named(run.model_dir):
                train(run, gin_config.operative_config())
        except Preempted as notice:
            print(f"calrec train: {notice}; run the same command to go on", file=sys.stderr)
            return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(calrec(["train", *sys.argv[1:]]))
