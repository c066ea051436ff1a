"""The cost of BM25 for generated texts, and of exact dense retrieval; beside bm25s and memory.

    python benchmarks/retrieval.py bm25 --items=100000
    python benchmarks/retrieval.py index --items=1000000
    python benchmarks/retrieval.py dense

bm25: one user's 32 texts against a made-up catalogue. Both libraries get the texts and return
float64 scores of all items, which quasi-round-robin needs, or the 100 best items of each text. Of
bm25s' ways, Numba's among them where it is installed, the fastest counts. All rankings must be the
same, or the benchmark stops.

index: making an index beside loading it, each once, and the file's size.

dense: the 100 best of 1,000,000 vectors, beside NumPy's sum of as many bytes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable

import bm25s
import jax.numpy as jnp
import numpy as np

from calrec_jax.decode.dense import DenseIndex
from calrec_jax.retrieval.bm25 import BM25Config, BM25Index
from calrec_jax.retrieval.round_robin import ranked
from calrec_jax.retrieval.words import words

DECIMALS = 9  # scores that are sums in another order are equal to so many
K = 100
RUNS = 5  # in a row: the first finds caches that are full of other things


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    lookup = commands.add_parser("bm25")
    lookup.add_argument("--items", type=int, default=4_000)
    lookup.add_argument("--queries", type=int, default=32)
    lookup.add_argument("--threads", type=int, default=2, help="of bm25s")
    index = commands.add_parser("index")
    index.add_argument("--items", type=int, default=100_000)
    dense = commands.add_parser("dense")
    dense.add_argument("--items", type=int, default=1_000_000)
    dense.add_argument("--width", type=int, default=256)
    dense.add_argument("--queries", type=int, default=1)
    dense.add_argument("--dtype", default="float32")
    for command in (lookup, dense):
        command.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    {"bm25": compare_bm25, "index": compare_index, "dense": compare_dense}[args.command](args)


def compare_bm25(args: argparse.Namespace) -> None:
    """Prints the seconds of both libraries."""
    texts = made_up(args.items)
    queries = generated(texts, args.queries)
    start = time.perf_counter()
    index = BM25Index(texts)
    print(f"index of {args.items:,} items: {time.perf_counter() - start:.1f} s")
    bm25s_functions = bm25s_ways(texts, queries, args.threads)
    expected = index.scores(queries)
    best = [best_of(row, K) for row in expected]

    ways: dict[str, dict[str, Callable]] = {
        "all scores": {
            "calrec_jax": lambda: index.scores(queries),
            **bm25s_functions["all scores"],
        },
        "100 best": {
            "calrec_jax": lambda: index.top_k(queries, K),
            **bm25s_functions["100 best"],
        },
    }
    for name, way in ways["all scores"].items():
        scores = way()
        np.testing.assert_allclose(scores, expected, rtol=1e-13, atol=0, err_msg=name)
        assert [best_of(row, K) for row in scores] == best, name
    for kind, sides in ways.items():
        seconds = in_turns(sides, args.rounds)
        for name, value in seconds.items():
            print(f"{kind}, {name}: {1e3 * value:.2f} ms")
        fastest = min((name for name in sides if name != "calrec_jax"), key=seconds.get)
        print(f"{kind}, {fastest} / calrec_jax: {seconds[fastest] / seconds['calrec_jax']:.2f}")


def compare_index(args: argparse.Namespace) -> None:
    """Prints the seconds of building and of loading an index."""
    texts = made_up(args.items)
    queries = generated(texts, 32)
    with tempfile.TemporaryDirectory() as folder:
        seconds, scores = [], []
        for _ in range(2):
            start = time.perf_counter()
            index = BM25Index.cached(folder, "items", texts)
            seconds.append(time.perf_counter() - start)
            scores.append(index.scores(queries))
        (file,) = pathlib.Path(folder).iterdir()
        size = file.stat().st_size / 2**20
    np.testing.assert_array_equal(*scores)
    print(f"{args.items:,} items, {size:.0f} MiB: built and saved in {seconds[0]:.2f} s")
    print(f"loaded in {seconds[1]:.2f} s, the texts' fingerprint included")
    print(f"built / loaded: {seconds[0] / seconds[1]:.1f}")


def compare_dense(args: argparse.Namespace) -> None:
    """Prints the seconds of dense retrieval, and of reading as much memory."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((args.items, args.width), np.float32)
    queries = rng.standard_normal((args.queries, args.width), np.float32)
    index = DenseIndex(vectors, dtype=args.dtype)
    check(index, vectors, queries, 1e-5 if args.dtype == "float32" else 2e-3)
    size = vectors.size * jnp.dtype(args.dtype).itemsize
    memory = np.ones(size // 4, np.float32)
    halves = np.array_split(memory, 2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        sides = {
            f"{K} best": lambda: index.top_k(queries, K),
            "sum": memory.sum,
            "sum, two threads": lambda: [*pool.map(np.sum, halves)],
        }
        seconds = in_turns(sides, args.rounds)
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.1f} ms, {size / value / 1e9:.1f} GB/s")
    bound = min(value for name, value in seconds.items() if name.startswith("sum"))
    print(f"{K} best / fastest sum: {seconds[f'{K} best'] / bound:.2f}")


def check(index: DenseIndex, vectors: np.ndarray, queries: np.ndarray, rounding: float) -> None:
    """Compares the first query's results with NumPy's scores of all items."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    expected = vectors @ queries[0] / lengths / np.linalg.norm(queries[0])
    scores, places = index.top_k(queries, K)
    np.testing.assert_allclose(scores[0], expected[places[0]], atol=rounding)
    assert (scores[0] >= np.sort(expected)[-K:][::-1] - rounding).all()


def made_up(items: int) -> list[str]:
    """Texts in the form of the template, with words as unevenly frequent as in a language."""
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(max(2_000, items // 2))]
    chance = 1 / np.arange(10, len(names) + 10)
    lengths = rng.integers(4, 25, items)
    drawn = iter(rng.choice(len(names), lengths.sum(), p=chance / chance.sum()).tolist())
    texts = []
    for length in lengths.tolist():
        title = " ".join(names[next(drawn)] for _ in range(length))
        category, brand, price = rng.integers(0, [40, items // 20, 10_000]).tolist()
        texts.append(
            f"Title: {title} Category: c{category % 7} c{category} Brand: b{brand} "
            f"Price: ${price // 100}.{price % 100:02}"
        )
    return texts


def generated(texts: list[str], queries: int) -> list[str]:
    """Texts of items in which a word is missing and another is new."""
    rng = np.random.default_rng(1)
    made = []
    for place in rng.choice(len(texts), queries, replace=False):
        parts = texts[place].split()
        parts[rng.integers(1, 4)] = "unheard"
        del parts[rng.integers(1, 4)]
        made.append(" ".join(parts))
    return made


def bm25s_ways(
    texts: list[str], queries: list[str], threads: int
) -> dict[str, dict[str, Callable]]:
    """The functions of bm25s for the same scores, in float64: {kind: {name: function}}."""
    config = BM25Config()

    def index(**backend: str) -> bm25s.BM25:
        made = bm25s.BM25(k1=config.k1, b=config.b, method="lucene", dtype="float64", **backend)
        made.index([words(text) for text in texts], show_progress=False)
        return made

    def retrieve(made: bm25s.BM25, n_threads: int, backend: str) -> bm25s.Results:
        return made.retrieve(
            [words(query) for query in queries],
            k=K,
            show_progress=False,
            n_threads=n_threads,
            backend_selection=backend,
        )

    plain = index()
    scored = {"numpy": plain}
    # Its selection with JAX is in float32, which is another ranking.
    best = {"numpy": functools.partial(retrieve, plain, 0, "numpy")}
    best[f"numpy, {threads} threads"] = functools.partial(retrieve, plain, threads, "numpy")
    try:
        compiled = index(backend="numba")
        compiled.activate_numba_scorer()
        scored["numba"] = compiled
        best["numba"] = functools.partial(retrieve, compiled, 0, "auto")
        best[f"numba, {threads} threads"] = functools.partial(retrieve, compiled, threads, "auto")
    except ImportError:
        print("Numba is not installed: bm25s goes without")
    return {
        "all scores": {
            f"bm25s, {name}": lambda made=made: np.stack(
                [made.get_scores(words(query)) for query in queries]
            )
            for name, made in scored.items()
        },
        "100 best": {f"bm25s, {name}": way for name, way in best.items()},
    }


def best_of(scores: np.ndarray, k: int) -> list[int]:
    """Places of the k best items; scores that differ by rounding tie."""
    return ranked(np.round(scores, DECIMALS), k).tolist()


def in_turns(sides: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Seconds of the fastest run of each, after one to warm up; several runs in each turn."""
    best = dict.fromkeys(sides, float("inf"))
    for run in sides.values():
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(0.05)  # threads of the side before this one may still spin
            for _ in range(RUNS):
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
