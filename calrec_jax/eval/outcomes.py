"""What a model that scores items finds for users."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from calrec_jax import metrics
from calrec_jax.retrieval import fusion
from calrec_jax.retrieval.round_robin import ranked
from calrec_jax.text.items import Catalogue, UserSequence

Score = Callable[[Sequence[Sequence[str]]], np.ndarray]
"""Histories of item ids, oldest first -> scores of the catalogue, float64 [histories, items]."""

NUM_BEST = 10  # items of each user that are measured besides the rank of the target
MAX_SCORES = 2**24  # held at a time: 128 MiB of float64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model found for users.

    Attributes:
      low, high: int64 [users], rank bounds of their targets.
      best: int64 [users, 10], places of the items that rank first; -1 where fewer may be
        recommended.
    """

    low: np.ndarray
    high: np.ndarray
    best: np.ndarray

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high)."""
        return self.low, self.high


def outcome(
    score: Score,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    seen: str = "allow",
    max_scores: int = MAX_SCORES,
) -> Outcome:
    """What `score` finds for the users.

    Args:
      seen: as in `BaselineData`.
      max_scores: the largest number of scores that are computed at a time, for one user at least.
    """
    bounds, best = [], np.full((len(users), NUM_BEST), -1)
    for block in user_blocks(users, catalogue, max_scores):
        histories = [user.history for user in block]
        targets = catalogue.places([user.target for user in block])
        rows = score(histories)
        if seen != "allow":
            rows = fusion.without_seen(rows, [*map(catalogue.places, histories)], seen)
        for row, target in zip(rows, targets, strict=True):
            places = ranked(row, NUM_BEST)
            places = places[~np.isneginf(row[places])]
            best[len(bounds), : len(places)] = places
            bounds.append(metrics.rank_bounds(row, target))
    low, high = np.array(bounds, np.int64).reshape(-1, 2).T
    return Outcome(low, high, best)


def user_blocks(
    users: Sequence[UserSequence], catalogue: Catalogue, max_scores: int = MAX_SCORES
) -> Iterator[Sequence[UserSequence]]:
    """The users in blocks of at most `max_scores` scores, but of one user at least."""
    size = max(1, max_scores // len(catalogue))
    return (users[start : start + size] for start in range(0, len(users), size))


def join_outcomes(outcomes: Sequence[Outcome], sizes: Sequence[int]) -> Outcome:
    """The outcomes in several domains as one, whose catalogues stand one behind the other.

    Args:
      sizes: the number of items of each domain's catalogue.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    best = [
        np.where(one.best < 0, -1, one.best + start)
        for one, start in zip(outcomes, starts, strict=True)
    ]
    return Outcome(
        np.concatenate([one.low for one in outcomes]),
        np.concatenate([one.high for one in outcomes]),
        np.concatenate(best),
    )
