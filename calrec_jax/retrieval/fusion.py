"""Hybrid retrieval: two retrievers' scores as one, and what becomes of items already seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError

SCALES = ("max", "min_max")
SEEN = ("allow", "exclude", "exclude_last")


def scaled(scores: np.ndarray, scale: str) -> np.ndarray:
    """Each user's scores divided by their maximum, or brought to [0, 1] by minimum and maximum.

    Excluded items (-inf) stay what they are and count as neither. A row without a positive maximum
    is not divided ("max"); a constant row becomes zeros ("min_max").

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
    ranked = np.isfinite(scores)
    if not (ranked | np.isneginf(scores)).all():
        raise ValueError("scores hold NaN or +inf, which cannot be scaled")
    high = scores.max(axis=1, keepdims=True, where=ranked, initial=-np.inf)
    if scale == "max":
        return scores / np.where(high > 0, high, 1.0)
    low = scores.min(axis=1, keepdims=True, where=ranked, initial=np.inf)
    span = high - low
    within = np.divide(scores - low, span, out=np.zeros_like(scores), where=ranked & (span > 0))
    return np.where(ranked, within, -np.inf)


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
    if not 0 <= weight < np.inf:
        raise CalrecError(f"a weight of {weight}: give one that is finite and not negative")
    if np.shape(a) != np.shape(b):
        raise ValueError(f"scores {np.shape(a)} and {np.shape(b)} are not of the same items")
    a, b = scaled(a, scale), scaled(b, scale)
    excluded = np.isneginf(a) | np.isneginf(b)
    # Zero times -inf would be NaN.
    return np.where(excluded, -np.inf, a + weight * np.where(excluded, 0.0, b))


def choose_weight(
    a: np.ndarray,
    b: np.ndarray,
    targets: Sequence[int],
    weights: Sequence[float],
    scale: str = "max",
) -> tuple[float, float]:
    """The weight of `fuse` with the best NDCG@10, ties expected; of equal ones the first.

    Args:
      a, b: [users, items], scores of users of the validation split, never of test.
      targets: [users], places of their targets.
      weights: to choose from.

    Returns:
      (weight, its mean NDCG@10).

    Raises:
      CalrecError: there are no users or no weights, or as `fuse`.
    """
    if not len(targets) or not len(weights):
        raise CalrecError("a weight is chosen of some weights, by users of the validation split")
    gains = []
    for weight in weights:
        rows = fuse(a, b, weight, scale)
        bounds = [metrics.rank_bounds(row, t) for row, t in zip(rows, targets, strict=True)]
        gains.append(metrics.per_user(*np.array(bounds).T)["ndcg@10"].mean())
    best = int(np.argmax(gains))
    return float(weights[best]), float(gains[best])


def without_seen(scores: np.ndarray, histories: Sequence[Sequence[int]], policy: str) -> np.ndarray:
    """Scores in which items that a user has already had are -inf.

    A target that is itself excluded cannot be found: it ties with all others that are excluded,
    below the rest. So policies differ in what they can reach at most wherever users buy again.

    Args:
      scores: [users, items].
      histories: places of each user's history, oldest first.
      policy: "allow": nothing is excluded; "exclude": the whole history is; "exclude_last": its
        last item alone.

    Returns:
      float64 [users, items], a copy.

    Raises:
      CalrecError: an unknown policy.
      ValueError: not one history a user.
    """
    if policy not in SEEN:
        raise CalrecError(f"the policy for seen items {policy!r} is none of {', '.join(SEEN)}")
    scores = np.array(scores, np.float64)
    for row, history in zip(scores, histories, strict=True):
        excluded = {"allow": [], "exclude": history, "exclude_last": history[-1:]}[policy]
        row[np.asarray(excluded, np.intp)] = -np.inf
    return scores
