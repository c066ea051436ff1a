"""`calrec report`: shows a run's evaluations and writes its page, or compares runs."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import CalrecError, full_disk_named, local_path

if TYPE_CHECKING:  # imported where it is used: --help does not need it
    from calrec_jax.report.compare import Comparison


def main(argv: Sequence[str]) -> int:
    """Prints the tables of one run and the path of its page, or how several runs differ."""
    args = _parse_arguments(argv)
    for run in args.runs:
        local_path(run, "RUN")
    if len(args.runs) > 1:
        return _compare(args)

    from calrec_jax.report import files, plain, run_page

    (model_dir,) = args.runs
    for metrics in files.evaluations(model_dir).values():
        plain.show(plain.result_table(metrics))
    with full_disk_named(model_dir):
        plain.show(str(run_page.write(model_dir)))
    return 0


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("calrec report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="one MODEL_DIR, whose report.html is written; or several to compare with the first, "
        "each a MODEL_DIR or the folder of one evaluation, MODEL_DIR/eval/NAME",
    )
    parser.add_argument(
        "--evaluation",
        metavar="NAME",
        help="the evaluation of each MODEL_DIR that is compared (default: test)",
    )
    parser.add_argument("--out", metavar="FILE.html", help="also write the comparison as a page")
    args = parser.parse_args(argv)
    if len(args.runs) == 1 and (args.evaluation, args.out) != (None, None):
        parser.error("--evaluation and --out go with two or more runs")
    return args


def _compare(args: argparse.Namespace) -> int:
    from calrec_jax.report import compare, comparison_page, plain

    out = None if args.out is None else local_path(args.out, "--out")
    evaluation = "test" if args.evaluation is None else args.evaluation
    compared = compare.compare(args.runs, evaluation)
    plain.show(comparison_page.text(compared))
    if out is not None:
        _write(compared, out)
        plain.show(str(out))
    return 0


def _write(compared: Comparison, out: pathlib.Path) -> None:
    from calrec_jax.report import comparison_page

    if out.is_dir():
        raise CalrecError(f"cannot write {out}: Is a directory")
    try:
        comparison_page.write_page(compared, out)
    except OSError as error:
        raise CalrecError(f"cannot write {out}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(calrec(["report", *sys.argv[1:]]))
