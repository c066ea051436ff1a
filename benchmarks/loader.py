"""The costs of the training pipeline: how full rows are, examples per second, and resuming late.

    python benchmarks/loader.py --data_dir=STORE --domains=A,B --vocabulary=FILE.model

Prints, for the domains together and in this order:
- examples per second and per CPU second of one pass, from the store to packed batches: reading the
  dataset, tokenising the catalogue, planning the rows and making them;
- the fill of packed rows over one pass and that of unpacked rows, and whether every example is
  there once;
- seconds to the first batch from step 0 and from step 1,000,000, each in a new plan.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data import registry, vocabularies
from calrec_jax.data.domains import DataConfig, Domains, Mixture
from calrec_jax.data.loader import Batches


def main() -> None:
    """Measures, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--domains", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--row_length", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=896)
    parser.add_argument("--targets", type=int, default=128)
    parser.add_argument("--max_segments", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()

    lengths = {"inputs": args.inputs, "targets": args.targets}
    config = DataConfig(args.data_dir, vocabularies.sentencepiece(args.vocabulary))
    names = args.domains.split(",")
    for name in names:
        registry.register_domain(name)
    registry.register_mixture("measured", names)
    packed = BatchSpec.create(args.batch_size, lengths, args.row_length, args.max_segments)
    unpacked = BatchSpec.create(args.batch_size, lengths)

    wall, cpu = time.perf_counter(), time.process_time()
    mixture = Domains(config).mixture("measured")
    plan = make(mixture, packed, one_pass=True)
    ready = time.perf_counter() - wall
    examples = count(plan)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"one pass: {examples:,} examples in {wall:.1f} s ({ready:.1f} s of it before the first "
        f"row): {examples / wall:,.0f} a second, {examples / cpu:,.0f} a CPU second"
    )

    for kind, spec in (("packed", packed), ("unpacked", unpacked)):
        batches = make(mixture, spec, one_pass=True)
        tokens, rows, held, twice = fill(batches)
        stored = sum(len(e.histories) for e in batches.examples)
        print(
            f"{kind}: {tokens / (rows * spec.row_length):.4f} of {rows:,} rows of "
            f"{spec.row_length} are tokens; {held:,} of {stored:,} examples, {twice} twice"
        )

    for step in (0, 1_000_000):
        for state in ("new process's first plan", "data in memory"):
            if state == "new process's first plan":
                mixture = Domains(config).mixture("measured")
            start = time.perf_counter()
            (batch,) = make(mixture, packed).iterate(step, 1)
            packed.check(batch)
            print(f"first batch of step {step:,}: {time.perf_counter() - start:.2f} s ({state})")


def make(mixture: Mixture, spec: BatchSpec, **arguments: Any) -> Batches:
    """The training batches of all domains."""
    lengths = {"inputs": spec.row_length - spec.item_length, "targets": spec.item_length}
    return Batches(mixture, spec, lengths, split="train", seed=0, **arguments)


def count(batches: Batches) -> int:
    """The number of examples in all batches."""
    return sum(int((batch["domain_ids"] != 0).sum()) for batch in batches.iterate())


def fill(batches: Batches) -> tuple[int, int, int, int]:
    """(tokens, rows that are not empty, examples, examples that occur more than once)."""
    tokens = rows = 0
    spans: list[tuple[int, int, int]] = []
    for domain, domain_rows in enumerate(batches.rows):
        for number in range(domain_rows.per_epoch):
            spans += [(domain, *span) for span in domain_rows.row(number)]
    for batch in batches.iterate():
        used = batch["decoder_segment_ids"] != 0
        tokens, rows = tokens + int(used.sum()), rows + int(used.any(axis=1).sum())
    ends = np.array([(domain, end) for domain, _, end in spans])
    return tokens, rows, len(spans), len(spans) - len(np.unique(ends, axis=0))


if __name__ == "__main__":
    main()
