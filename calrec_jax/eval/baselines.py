"""Baselines that need no training, on the same users and the same catalogue (method: the bar)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calrec_jax import metrics
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.text.items import Catalogue, UserSequence

# Scores of some users over the whole catalogue: float64 [users, items].
Score = Callable[[Sequence[UserSequence]], np.ndarray]


def popularity(
    train: Sequence[UserSequence], catalogue: Catalogue, texts: Sequence[str], index: BM25Index
) -> Score:
    """How many events of the training split an item has, the same for all users.

    Every event of every training sequence counts, its target as well; the validation and the test
    item of a user are in no training sequence.
    """
    events = catalogue.places([item_id for user in train for item_id in user.item_ids])
    row = np.bincount(np.array(events, np.int64), minlength=len(catalogue)).astype(np.float64)
    return lambda users: np.broadcast_to(row, (len(users), len(row)))


def last_item_repeated(
    train: Sequence[UserSequence], catalogue: Catalogue, texts: Sequence[str], index: BM25Index
) -> Score:
    """1 for the last item of the history, 0 for all others, which thus tie."""

    def score(users):
        scores = np.zeros((len(users), len(catalogue)))
        scores[np.arange(len(users)), _last_places(users, catalogue)] = 1.0
        return scores

    return score


def bm25_last_item(
    train: Sequence[UserSequence], catalogue: Catalogue, texts: Sequence[str], index: BM25Index
) -> Score:
    """BM25 with the text of the last item of the history as the query; that item may win."""
    return lambda users: index.scores([texts[place] for place in _last_places(users, catalogue)])


BASELINES: dict[str, Callable[..., Score]] = {
    "popularity": popularity,
    "last_item_repeated": last_item_repeated,
    "bm25_last_item": bm25_last_item,
}
"""Makers by name: (training sequences, catalogue, item texts, their index) -> Score."""


def _last_places(users: Sequence[UserSequence], catalogue: Catalogue) -> list[int]:
    return catalogue.places([user.history[-1] for user in users])


def rank_bounds(
    score: Score,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    most_scores: int = 2**24,  # 128 MiB of float64
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) rank bounds of each user's target, int64 [n].

    Args:
      most_scores: asked for at a time; users are taken in blocks of so many, at least one.
    """
    block = max(1, most_scores // len(catalogue))
    bounds = []
    for start in range(0, len(users), block):
        some = users[start : start + block]
        targets = catalogue.places([user.target for user in some])
        bounds += [
            metrics.rank_bounds(row, target)
            for row, target in zip(score(some), targets, strict=True)
        ]
    low, high = np.array(bounds, np.int64).reshape(-1, 2).T
    return low, high
