"""The cost of an evaluation whose predictions are there: ranks, baselines, slices and intervals.

    python benchmarks/evaluation.py FOLDER --users=10000 --items=10000

Makes up a domain and the predictions of a model (32 texts, 100 ranked items a user) in FOLDER, then
measures them in a process of its own: all baselines, all slices, 1,000 resamples.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.evaluator import EvaluatedDomain, predict_and_measure
from calrec_jax.eval.retrievers import Histories, Ranking, Retriever
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template

_DAY = 86_400


def main() -> None:
    """Prints seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args)
        return
    catalogue, *splits = made_up(args.users, args.items)
    run(args.folder, catalogue, *splits, made_up_model(catalogue))
    size = (args.folder / "predictions.jsonl").stat().st_size
    print(f"predictions.jsonl of {args.users:,} users: {size / 1e6:.0f} MB", flush=True)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], check=True)


def measure(args: argparse.Namespace) -> None:
    """Measures the predictions in FOLDER, and prints seconds and peak memory."""
    made = made_up(args.users, args.items)
    start, cpu = time.perf_counter(), time.process_time()
    result = run(args.folder, *made, model=None)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{result['n']:,} users, {result['items']:,} items, {len(result['baselines'])} baselines: "
        f"{wall:.1f} s, {cpu:.1f} s of CPU, {peak / 1e9:.2f} GB at the peak"
    )


def run(
    folder: pathlib.Path,
    catalogue: Catalogue,
    train: Sequence[UserSequence],
    validation: Sequence[UserSequence],
    test: Sequence[UserSequence],
    model: Retriever | None,
) -> dict[str, Any]:
    """The evaluation of a model; None = all predictions are there."""
    texts = [Template().render_item(fields) for fields in catalogue.fields]
    data = BaselineData(train, catalogue, validation)
    config = EvaluationConfig(catalogue.domain)
    domain = EvaluatedDomain(data, test, texts, lambda: model)
    return predict_and_measure(
        "made up", [domain], config, EvaluationDir(folder), {}, lambda done, total: None
    )


def made_up_model(catalogue: Catalogue) -> Retriever:
    """A model that gives each user 32 texts and 100 ranked items, at hardly any cost."""
    rng = np.random.default_rng(1)
    texts = [Template().render_item(fields) for fields in catalogue.fields]

    def retriever(
        histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        for _ in histories:
            places = rng.choice(len(catalogue), k, replace=False)
            low = int(rng.geometric(0.02))
            generated = tuple(
                Generated(texts[place], -float(n)) for n, place in enumerate(places[:32])
            )
            bounds = low, low + int(rng.integers(0, 3))
            yield Ranking(places, 1 - np.arange(k) / 1_000, bounds, generated)

    return retriever


def made_up(users: int, items: int) -> tuple[Catalogue, list, list, list]:
    """(catalogue, training, validation, test): 4 to 40 events a user, of items of uneven use."""
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(5_000)]
    drawn = rng.zipf(1.3, size=(items, 12)) % len(words)
    fields = {
        f"i{n:07}": {
            "title": " ".join(words[w] for w in row[:8]),
            "brand": words[row[8]],
            "category": " ".join(words[w] for w in row[9:]),
            "price": f"${n % 90}.99",
        }
        for n, row in enumerate(drawn)
    }
    catalogue = Catalogue.create("made_up", fields)
    train, validation, test = [], [], []
    for n in range(users):
        length = int(rng.integers(4, 41))
        places = rng.zipf(1.2, size=length) * 7 % items
        ids = tuple(catalogue.item_ids[place] for place in places)
        times = tuple(int(t) for t in _DAY * np.sort(rng.integers(1, 3_000, size=length)))
        for split, cut in ((train, length - 2), (validation, length - 1), (test, length)):
            split.append(UserSequence(f"u{n:07}", "made_up", ids[:cut], times[:cut]))
    return catalogue, train, validation, test


if __name__ == "__main__":
    main()
