"""`calrec prepare`: turns a raw dump into a dataset of the store."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence

from calrec_jax.cli.main import positive_int, run_command
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Prints the dataset's statistics as JSON."""
    parser = argparse.ArgumentParser("calrec prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--source",
        required=True,
        help="the raw files' format: amazon2018 (reviews.json.gz and meta.json.gz) or jsonl "
        "(interactions.jsonl.gz: user_id, item_id, order or timestamp; items.jsonl.gz: item_id, "
        "title, category, brand, price)",
    )
    parser.add_argument(
        "--input_dir", required=True, metavar="FOLDER", help="where the raw files are"
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        metavar="STORE",
        help="the store; the dataset is written to STORE/DOMAIN, in place of one that is there, "
        "with stats.json and rejects.jsonl (the lines that were not used, and why)",
    )
    parser.add_argument(
        "--domain",
        required=True,
        help="the dataset's name: lower-case letters, digits and underscores",
    )
    parser.add_argument(
        "--min_events",
        type=positive_int,
        default=3,
        metavar="N",
        help="leave out users with fewer events, counted after merging; at least 3 (default: 3)",
    )
    parser.add_argument(
        "--keep_repeats",
        action="store_true",
        help="keep consecutive events of a user with the same item; else they are one event",
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
