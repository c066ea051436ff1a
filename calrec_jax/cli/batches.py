"""`calrec batches`: saves what a run's batches are made of, as arrays in place of the store."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from calrec_jax import whole
from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import run_command
from calrec_jax.errors import CalrecError, full_disk_named, local_path


def main(argv: Sequence[str]) -> int:
    """Writes a folder; a run reads it where DATA_DIR names it, with no TensorFlow installed."""
    parser = argparse.ArgumentParser("calrec batches", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required, for example --gin_file=gin/runs/quickstart.gin")

    from calrec_jax.cli import run as runs

    out = local_path(args.out, "--out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CalrecError(f"{out} is there already: give a new folder, or remove that one")
    run = runs.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
    with full_disk_named(out):
        try:
            domains = save(run, out)
        except OSError as error:
            if error.strerror is None:
                raise
            raise CalrecError(f"cannot write {out}: {error.strerror}") from error
    for name, told in domains.items():
        sizes = f"{told['items']} items, {told['tokens']} tokens, {told['train']} to train on"
        print(f"{name}: {sizes}")
    print(f"{out}: give it as DATA_DIR")
    return 0


def save(run, out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Writes the arrays of all domains of a run, and its mixtures.

    Returns:
      {domain: {"items", "tokens", "train"}}, its sizes.
    """
    from calrec_jax.cli.run import domain_of
    from calrec_jax.data import domains
    from calrec_jax.data.store import arrays

    mixtures = {stage.mixture: domains.get_mixture(stage.mixture) for stage in run.stages}
    names = {name for mixture in mixtures.values() for name in mixture.domains}
    index, sizes = {}, {}
    with whole.made(out) as making:
        for name in sorted(names.union(run.evaluated)):
            domain = domain_of(run, name)
            catalogue, text = domain.catalogue(), domain.text()
            sequences = {split: domain.sequences(split) for split in arrays.SPLITS}
            arrays.write_domain(making, name, catalogue, text, sequences)
            index[name] = {
                "dataset": domain.dataset,
                "template": json.loads(json.dumps(dataclasses.asdict(domain.template))),
                "own_template": domains.get_domain(name).template is not None,
                "checksums": domain.checksums(),
                "sizes": arrays.sizes(catalogue, text, sequences),
            }
            train = len(sequences["train"])
            sizes[name] = {"items": len(catalogue), "tokens": len(text.values), "train": train}
        saved = {
            name: {
                "domains": mixture.domains,
                "rates": mixture.rates,
                "temperature": mixture.temperature,
            }
            for name, mixture in mixtures.items()
            if name not in names
        }
        arrays.write_index(making, run.data.vocabulary, index, saved)
    return sizes


if __name__ == "__main__":
    sys.exit(run_command("batches"))
