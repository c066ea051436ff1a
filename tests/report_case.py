"""Files of evaluations, written by hand, for the tests of the report and of comparisons."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from calrec_jax import metrics

MANIFEST = {
    "versions": {"jax": "0.10.2", "calrec_jax": "0.1.0"},
    "vocabulary": "byte-0123",
    "stages": {
        "stage1": {"mixture": "all_domains", "train_steps": 400},
        "stage2": {"mixture": "toys", "train_steps": 60},
    },
}
CONFIG = {
    "name": None,
    "checkpoint": "stage2:best",
    "retrieval": "bm25",
    "seen": "allow",
    "shuffle_history": False,
    "users_per_batch": 2,
    "bootstrap_samples": 50,
    "seed": 0,
}
WORDS = ("anchor", "bottle", "candle", "drum", "easel", "fan", "globe", "hammer")
RANKS = {"a": (1, 1), "b": (2, 2), "c": (4, 7), "d": (20, 20)}
PURCHASES = {"a": "new", "b": "new", "c": "new", "d": "repeat"}
BASELINES = {"popularity": 3, "hybrid": 1}  # rank of all targets

Ranks = Mapping[str, tuple[int, int]]


def claim(model_dir: pathlib.Path) -> pathlib.Path:
    """Makes a MODEL_DIR that has a manifest and nothing else."""
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / "manifest.json").write_text(json.dumps(MANIFEST))
    return model_dir


def bounds(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), the rank bounds of users."""
    low, high = np.array(list(ranks.values())).T
    return low, high


def example(user_id: str, rank: tuple[int, int] = (1, 1), **changes) -> dict[str, Any]:
    """A user of examples.json who bought i0, i1 and then i2; the model writes i2 and i3."""
    return {
        "user_id": user_id,
        "domain": "toys",
        "target": "i2",
        "generated": [
            {"text": "Title: candle", "logprob": -1.5},
            {"text": "Title: drum", "logprob": -2.25},
        ],
        "ranked": [{"item_id": "i2", "score": 0.75}, {"item_id": "i3", "score": 0.5}],
        "rank": {"low": rank[0], "high": rank[1]},
        "history": ["i0", "i1"],
        "dates": ["2014-03-01", "2014-03-02", "2014-04-05"],
        "slices": {"purchase": "new", "domain": "toys"},
        "texts": {f"i{n}": f"Title: {word}" for n, word in enumerate(WORDS)},
    } | changes


def evaluate(
    model_dir: pathlib.Path,
    ranks: Ranks = RANKS,
    *,
    name: str = "test",
    purchases: Mapping[str, str] = PURCHASES,
    targets: Mapping[str, str] | None = None,
    examples: list[dict[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
    **changes,
) -> dict[str, Any]:
    """Writes MODEL_DIR/eval/<name>; returns its metrics.json, where `changes` replace parts."""
    folder = model_dir / "eval" / name
    folder.mkdir(parents=True)
    slices = {
        user: {"purchase": purchases.get(user, "new"), "domain": changes.get("domain", "toys")}
        for user in ranks
    }
    result = _metrics(ranks, slices) | changes
    result["config"] = (
        CONFIG | {"domain": result["domain"], "split": result["split"]} | (config or {})
    )
    lines = [
        {
            "user_id": user,
            "domain": result["domain"],
            "target": (targets or {}).get(user, "i2"),
            "generated": [],
            "ranked": [],
            "rank": {"low": low, "high": high},
        }
        for user, (low, high) in ranks.items()
    ]
    if examples is None:
        examples = [
            example(user, rank, slices=slices[user]) for user, rank in list(ranks.items())[:100]
        ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "slices.json").write_text(json.dumps({result["domain"]: slices}))
    (folder / "examples.json").write_text(json.dumps(examples))
    (folder / "metrics.json").write_text(json.dumps(result))
    return result


def _metrics(ranks: Ranks, slices: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    baseline_bounds = _baseline_bounds(ranks)
    return {
        "model": "calrec",
        "n": len(ranks),
        "users": len(ranks),
        "items": len(WORDS),
        "domain": "toys",
        "split": "test",
        **_table(ranks),
        "paired": metrics.paired(bounds(ranks), baseline_bounds, bootstrap_samples=50),
        "data": {"toys": {"sequences": "aaaa", "texts": "bbbb"}},
        "choices": {
            "toys": {"hybrid": {"part": "item_knn", "weight": 0.5, "ndcg": 0.25, "users": 1234}}
        },
        "beyond_accuracy": {
            "calrec": {"coverage@10": 0.625, "gini@10": 0.125, "novelty@10": 5.5},
            "popularity": {"coverage@10": 0.0625, "gini@10": 0.875, "novelty@10": 1.25},
            "hybrid": {"coverage@10": 0.5, "gini@10": 0.25, "novelty@10": 4.75},
        },
        "slices": {
            slicing: _parts(ranks, {user: of[slicing] for user, of in slices.items()})
            for slicing in ("purchase", "domain")
        },
        "histories": {"edges": [1, 2, 3], "counts": [1, len(ranks) - 1]},
    }


def _parts(ranks: Ranks, slices: Mapping[str, str]) -> dict[str, Any]:
    parts = {}
    for part in sorted(set(slices.values())):
        members = {user: rank for user, rank in ranks.items() if slices[user] == part}
        parts[part] = {"n": len(members), **_table(members)}
    return parts


def _table(ranks: Ranks) -> dict[str, Any]:
    baseline_bounds = _baseline_bounds(ranks)
    (ours,) = metrics.summarise({"": bounds(ranks)}, bootstrap_samples=50).values()
    return {"metrics": ours, "baselines": metrics.summarise(baseline_bounds, bootstrap_samples=50)}


def _baseline_bounds(ranks: Ranks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{baseline: its rank bounds}, the same rank for all users."""
    return {
        baseline: bounds({user: (rank, rank) for user in ranks})
        for baseline, rank in BASELINES.items()
    }
