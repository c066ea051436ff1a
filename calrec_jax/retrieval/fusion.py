"""Hybrid retrieval: the scores of two retrievers as one, and the policies for seen items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval.round_robin import min_max

SCALES = ("max", "min_max")
SEEN = ("allow", "exclude", "exclude_last")


def scaled(scores: np.ndarray, scale: str) -> np.ndarray:
    """Each user's scores divided by their maximum, or scaled to [0, 1] by minimum and maximum.

    Excluded items (-inf) stay excluded, and are neither minimum nor maximum. A row without a
    positive maximum is not divided ("max"); a constant row becomes zeros ("min_max").

    Args:
      scores: [users, items], finite or -inf.
      scale: one of `SCALES`.

    Returns:
      float64 [users, items].

    Raises:
      CalrecError: an unknown scale.
      ValueError: a score is NaN or +inf.
    """
    if scale not in SCALES:
        raise CalrecError(f"scale {scale!r} is none of {', '.join(SCALES)}")
    scores = np.asarray(scores, np.float64)
    excluded = np.isneginf(scores)
    if not (np.isfinite(scores) | excluded).all():
        raise ValueError("scores hold NaN or +inf, which cannot be scaled")
    high = scores.max(axis=1, keepdims=True)
    if scale == "max":
        return scores / np.where(high > 0, high, 1.0)
    # As much as the best, excluded items change no minimum and no maximum.
    best = np.where(np.isneginf(high), 0.0, high)
    return np.where(excluded, -np.inf, min_max(np.where(excluded, best, scores)))


def fuse(a: np.ndarray, b: np.ndarray, weight: float, scale: str = "max") -> np.ndarray:
    """scaled(a) + weight * scaled(b): a linear combination (Fox & Shaw, TREC-2 1994).

    An item that either of them excludes (-inf) is excluded.

    Args:
      a, b: [users, items].
      weight: of b; not negative.

    Returns:
      float64 [users, items].

    Raises:
      CalrecError: a weight that is negative or not finite, or as `scaled`.
      ValueError: the scores are not of the same users and items, or as `scaled`.
    """
    _check(a, b, weight)
    return _combined(scaled(a, scale), scaled(b, scale), weight)


def _check(a: np.ndarray, b: np.ndarray, *weights: float) -> None:
    for weight in weights:
        if not 0 <= weight < np.inf:
            raise CalrecError(f"a weight of {weight}: give one that is finite and not negative")
    if np.shape(a) != np.shape(b):
        raise ValueError(f"scores {np.shape(a)} and {np.shape(b)} are not of the same items")


def _combined(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """a + weight * b, both scaled."""
    excluded = np.isneginf(a) | np.isneginf(b)
    # Zero times -inf would be NaN.
    return np.where(excluded, -np.inf, a + weight * np.where(excluded, 0.0, b))


def choose_weight(
    blocks: Iterable[tuple[np.ndarray, np.ndarray, Sequence[int]]],
    weights: Sequence[float],
    scale: str = "max",
) -> tuple[float, float]:
    """The weight of `fuse` with the best NDCG@10, ties expected; of equal ones the first.

    However the users are divided into blocks, the outcome is the same.

    Args:
      blocks: of users of the validation split, never of test, each read once and then let go:
        (a, b, targets), scores [users, items] of both retrievers and the places of the targets.
      weights: to choose from.

    Returns:
      (weight, its mean NDCG@10).

    Raises:
      CalrecError: there are no users or no weights, or as `fuse`.
      ValueError: not one target a user, or as `fuse`.
    """
    ndcgs: list[np.ndarray] = []  # [weights, users] of each block
    for a, b, targets in blocks:
        _check(a, b, *weights)
        a, b = scaled(a, scale), scaled(b, scale)
        ndcgs.append(np.array([_ndcg(_combined(a, b, weight), targets) for weight in weights]))
    if not len(weights) or not sum(block.shape[1] for block in ndcgs):
        raise CalrecError(
            "choosing a weight needs weights to choose from, and users of the validation split"
        )
    means = np.concatenate(ndcgs, axis=1).mean(axis=1)
    best = int(np.argmax(means))
    return float(weights[best]), float(means[best])


def _ndcg(scores: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """NDCG@10 of each user, float64 [users]."""
    pairs = zip(scores, targets, strict=True)
    bounds = [metrics.rank_bounds(row, target) for row, target in pairs]
    return metrics.per_user(*np.array(bounds, np.int64).reshape(-1, 2).T)["ndcg@10"]


def seen_places(history: Sequence[int], policy: str) -> Sequence[int]:
    """The places of a history that may not be recommended to its user.

    Args:
      history: places, oldest first.
      policy: "allow": none; "exclude": the whole history; "exclude_last": its last item alone.

    Raises:
      CalrecError: an unknown policy.
    """
    if policy not in SEEN:
        raise CalrecError(f"the policy for seen items {policy!r} is none of {', '.join(SEEN)}")
    return {"allow": [], "exclude": history, "exclude_last": history[-1:]}[policy]


def without_seen(scores: np.ndarray, histories: Sequence[Sequence[int]], policy: str) -> np.ndarray:
    """Scores in which the items that the policy excludes are -inf.

    A target that is itself excluded cannot be found: it ties with all other excluded items, below
    the rest. So the best possible metrics depend on the policy wherever users buy items again.

    Args:
      scores: [users, items].
      histories: places of each user's history, oldest first.
      policy: see `seen_places`.

    Returns:
      float64 [users, items]: a copy, unless nothing is excluded.

    Raises:
      CalrecError: an unknown policy.
      ValueError: not one history a user.
    """
    excluded = [seen_places(history, policy) for history in histories]
    if not any(map(len, excluded)) and len(excluded) == len(scores):
        return np.asarray(scores, np.float64)
    scores = np.array(scores, np.float64)
    for row, places in zip(scores, excluded, strict=True):
        row[np.asarray(places, np.intp)] = -np.inf
    return scores
