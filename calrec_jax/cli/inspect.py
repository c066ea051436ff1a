"""`calrec inspect`: shows what each stage of a run would train on, and trains nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int

_BAR = 40  # characters of the longest bar of a histogram


def main(argv: Sequence[str]) -> int:
    """Prints the description of each stage as text, or as JSON."""
    parser = argparse.ArgumentParser("calrec inspect", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--examples",
        type=positive_int,
        default=1,
        metavar="N",
        help="the number of examples that are shown of each domain (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = gin_arguments.parse_arguments(parser, argv)
    if not args.gin_file:
        parser.error("--gin_file is required, for example --gin_file=gin/runs/quickstart.gin")

    from calrec_jax.configs import load
    from calrec_jax.runs.checks import check
    from calrec_jax.runs.stage_data import StageData

    run = load.from_gin(args.gin_file, args.gin_bindings, args.gin_search_paths)
    check(run)
    stages = StageData(run).description(args.examples)
    if args.json:
        print(json.dumps(stages, indent=2))
    else:
        lines = (line for name, stage in stages.items() for line in stage_text(name, stage))
        print("\n".join(lines))
    return 0


def stage_text(name: str, stage: Mapping[str, Any]) -> Iterator[str]:
    """The lines that describe one stage.

    Args:
      stage: what `inspection.describe` returns for the stage.
    """
    yield (
        f"{name}: {stage['mixture']}, {stage['steps']:,} steps of {stage['rows']} rows of "
        f"{stage['row_length']} tokens, at most {stage['max_segments']} examples a row, "
        f"targets: {stage['targets']}, rates: {stage['rates']}"
    )
    for domain in stage["domains"]:
        yield ""
        yield from _domain_text(domain)
    yield ""


def _domain_text(d: Mapping[str, Any]) -> Iterator[str]:
    """The lines that describe one domain `d` of a stage."""
    tokens, sequences = d["tokens"], d["sequences"]
    splits = ", ".join(f"{count:,} {split}" for split, count in sequences.items())
    yield f"  {d['name']}: {d['items']:,} items; sequences: {splits}"
    yield (
        f"    an epoch: {d['examples']:,} examples in {d['rows']:,} rows, {d['fill']:.1%} filled; "
        f"{d['share']:.1%} of the rows; {d['steps_per_epoch']:,.1f} steps an epoch, "
        f"{d['epochs']:.2f} epochs in all"
    )
    yield (
        f"    tokens: mean {tokens['mean']:.0f}, median {tokens['p50']:.0f}, "
        f"90 % {tokens['p90']:.0f}, 99 % {tokens['p99']:.0f}, longest {tokens['max']}; "
        f"{d['histories_cut']:.1%} of the "
        f"histories lose their oldest items, {d['items_cut']:.1%} of the items their end"
    )
    counts, edges = tokens["histogram"]["counts"], tokens["histogram"]["edges"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" * round(_BAR * count / max(counts))
        yield f"    {low:6.0f} to {high:6.0f}  {count:8,}  {bar}".rstrip()
    for example in d["shown"]:
        for span, text in example:
            yield f"    [{span}] {text!r}"


if __name__ == "__main__":
    sys.exit(calrec(["inspect", *sys.argv[1:]]))
