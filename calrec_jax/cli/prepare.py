"""`calrec prepare`: turns a raw dump into a dataset of the store."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence

from calrec_jax.cli.main import full_disk_named, positive_int, run_command


def main(argv: Sequence[str]) -> int:
    """Prints the dataset's statistics as JSON."""
    parser = argparse.ArgumentParser("calrec prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", required=True, help="how to read: amazon2018 or jsonl")
    parser.add_argument("--input_dir", required=True, help="the folder with the raw files")
    parser.add_argument("--data_dir", required=True, help="the store to write to")
    parser.add_argument(
        "--domain", required=True, help="the dataset's name: lower_case_with_digits"
    )
    parser.add_argument(
        "--min_events", type=positive_int, default=3, help="of a user, after merging"
    )
    parser.add_argument(
        "--keep_repeats", action="store_true", help="do not merge consecutive equal events"
    )
    args = parser.parse_args(argv)

    from calrec_jax.data.prepare import prepare
    from calrec_jax.data.sequences import Rules

    rules = Rules(merge_repeats=not args.keep_repeats, min_events=args.min_events)
    with full_disk_named(f"{args.data_dir} or {tempfile.gettempdir()}"):
        stats = prepare(args.source, args.input_dir, args.data_dir, args.domain, rules)
    print(json.dumps(stats, indent=2))
    rejected = sum(stats["rejected_lines"].values())
    if rejected:
        where = f"{args.data_dir}/{args.domain}/rejects.jsonl"
        print(f"calrec prepare: {rejected} lines rejected, see {where}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("prepare"))
