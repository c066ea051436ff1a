"""`calrec eval`: generates, retrieves and measures, beside the baselines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_config
from calrec_jax.cli.main import run_command


def main(argv: Sequence[str]) -> int:
    """Writes MODEL_DIR/eval/<split>/ and prints the table."""
    bindings, rest = gin_config.split_bindings(argv)
    parser = argparse.ArgumentParser("calrec eval", description=__doc__)
    parser.add_argument(
        "--model_dir", help="a finished run; its config.gin says the rest, in place of --gin_file"
    )
    gin_config.add_arguments(parser)
    args = parser.parse_args(rest)
    if bool(args.model_dir) == bool(args.gin_file):
        parser.error("give either --model_dir or --gin_file")

    from calrec_jax.cli import run as runs
    from calrec_jax.eval import report

    if args.model_dir:
        run = runs.from_model_dir(args.model_dir, bindings)
    else:
        run = runs.from_gin(args.gin_file, bindings, args.gin_search_paths)
    print(report.text_table(runs.evaluate(run)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("eval"))
