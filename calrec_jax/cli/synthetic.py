"""`calrec synthetic`: writes the embedded store, synthetic domains to try everything on."""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.data.preparation import synthetic
from calrec_jax.data.preparation.synthetic import DOMAINS, SyntheticConfig
from calrec_jax.errors import full_disk_named


def main(argv: Sequence[str]) -> int:
    """Generates raw files, and prepares them as `calrec prepare` would."""
    parser = argparse.ArgumentParser("calrec synthetic", description=__doc__, allow_abbrev=False)
    default = SyntheticConfig()
    parser.add_argument(
        "--data_dir",
        required=True,
        metavar="STORE",
        help=f"the store; {', '.join(sorted(DOMAINS))} are written into it",
    )
    parser.add_argument(
        "--users",
        type=positive_int,
        default=default.users,
        metavar="N",
        help=f"the number of users of each domain but {default.target} (default: %(default)s)",
    )
    parser.add_argument(
        "--target_users",
        type=positive_int,
        default=default.target_users,
        metavar="N",
        help=f"the number of users of {default.target}, the target domain (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="the seed of the random domains (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from calrec_jax.data.preparation.prepare import prepare

    config = SyntheticConfig(seed=args.seed, users=args.users, target_users=args.target_users)
    for name, raw in synthetic.generate(config).items():
        with full_disk_named(f"{args.data_dir} or {tempfile.gettempdir()}"):
            with tempfile.TemporaryDirectory() as scratch:
                synthetic.write_raw(raw, pathlib.Path(scratch))
                stats = prepare("jsonl", scratch, args.data_dir, name)
        print(f"{name}: {stats['users']} users, {stats['items']} items, {stats['events']} events")
    return 0


if __name__ == "__main__":
    sys.exit(calrec(["synthetic", *sys.argv[1:]]))
