"""`calrec report`: writes MODEL_DIR/report.html and prints the result table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli.main import run_command
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Prints the table of every split, and where the page is."""
    parser = argparse.ArgumentParser("calrec report", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a run")
    args = parser.parse_args(argv)

    from calrec_jax.eval import report

    for metrics in report.read_metrics(args.model_dir).values():
        print(report.text_table(metrics))
    with full_disk_named(args.model_dir):
        print(report.write_report(args.model_dir))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("report"))
