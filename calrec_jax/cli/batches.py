"""`calrec batches`: saves what a run's batches are made of, as arrays in place of the store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import CalrecError, full_disk_named, local_path


def main(argv: Sequence[str]) -> int:
    """Writes a folder. A run whose DATA_DIR names it needs no TensorFlow."""
    parser = argparse.ArgumentParser("calrec batches", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required, for example --gin_file=gin/runs/quickstart.gin")

    from calrec_jax.configs import load
    from calrec_jax.runs import saved_arrays

    out = local_path(args.out, "--out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CalrecError(f"{out} is there already: give a new folder, or remove that one")
    run = load.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
    with full_disk_named(out):
        try:
            sizes = saved_arrays.save(run, out)
        except OSError as error:
            if error.strerror is None:
                raise
            raise CalrecError(f"cannot write {out}: {error.strerror}") from error
    for name, size in sizes.items():
        counts = f"{size['items']} items, {size['tokens']} tokens, {size['train']} to train on"
        print(f"{name}: {counts}")
    print(f"{out}: give it as DATA_DIR")
    return 0


if __name__ == "__main__":
    sys.exit(calrec(["batches", *sys.argv[1:]]))
