"""`calrec synthetic`: writes the embedded store, made-up domains to try everything on."""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from calrec_jax.cli.main import full_disk_named, positive_int, run_command


def main(argv: Sequence[str]) -> int:
    """Makes raw dumps, and prepares them as any other dump."""
    parser = argparse.ArgumentParser("calrec synthetic", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_dir", required=True, help="the store to write to")
    parser.add_argument("--users", type=positive_int, help="of each domain but the target")
    parser.add_argument("--target_users", type=positive_int, help="of the target domain")
    parser.add_argument("--seed", type=int, help="another seed, another store")
    args = parser.parse_args(argv)

    from calrec_jax.data import synthetic
    from calrec_jax.data.prepare import prepare

    sizes = {"users": args.users, "target_users": args.target_users, "seed": args.seed}
    config = synthetic.SyntheticConfig(**{k: v for k, v in sizes.items() if v is not None})
    for name, raw in synthetic.generate(config).items():
        with full_disk_named(f"{args.data_dir} or {tempfile.gettempdir()}"):
            with tempfile.TemporaryDirectory() as scratch:
                synthetic.write_raw(raw, pathlib.Path(scratch))
                stats = prepare("jsonl", scratch, args.data_dir, name)
        print(f"{name}: {stats['users']} users, {stats['items']} items, {stats['events']} events")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("synthetic"))
