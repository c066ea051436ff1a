"""What a model that scores items finds for users."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from calrec_jax import metrics
from calrec_jax.retrieval import fusion
from calrec_jax.retrieval.round_robin import ranked
from calrec_jax.text.items import Catalogue, UserSequence

# Scores of the whole catalogue for some histories of item ids, oldest first: float64
# [histories, items].
Score = Callable[[Sequence[Sequence[str]]], np.ndarray]

BEST = 10  # items of each user of which more is measured than where the target stands
MOST_SCORES = 2**24  # held at a time: 128 MiB of float64


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
    most_scores: int = MOST_SCORES,
) -> Outcome:
    """What `score` finds for the users.

    Args:
      seen: as in `BaselineData`.
      most_scores: asked for at a time; users are taken in blocks of so many, at least one.
    """
    bounds, best = [], np.full((len(users), BEST), -1)
    for some in blocks(users, catalogue, most_scores):
        histories = [user.history for user in some]
        targets = catalogue.places([user.target for user in some])
        rows = score(histories)
        if seen != "allow":
            rows = fusion.without_seen(rows, [*map(catalogue.places, histories)], seen)
        for row, target in zip(rows, targets, strict=True):
            places = ranked(row, BEST)
            places = places[~np.isneginf(row[places])]
            best[len(bounds), : len(places)] = places
            bounds.append(metrics.rank_bounds(row, target))
    low, high = np.array(bounds, np.int64).reshape(-1, 2).T
    return Outcome(low, high, best)


def blocks(
    users: Sequence[UserSequence], catalogue: Catalogue, most_scores: int = MOST_SCORES
) -> Iterator[Sequence[UserSequence]]:
    """`users` in blocks whose scores are at most so many, but of one user at least."""
    size = max(1, most_scores // len(catalogue))
    return (users[start : start + size] for start in range(0, len(users), size))
