"""Recall, NDCG and MRR over the whole catalogue, with ties counted honestly and with intervals.

A target that ties with others has no single rank, only bounds: `low` = 1 + the items that score
strictly more, `high` = the items that score at least as much. A metric's value is its expectation
when the tie is broken at random, every rank from low to high being equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from calrec_jax.errors import CalrecError

RECALL_AT = (1, 5, 10)
NDCG_AT = (5, 10)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), *(f"ndcg@{k}" for k in NDCG_AT), "mrr")


def rank_bounds(scores: np.ndarray, target: int) -> tuple[int, int]:
    """(low, high) rank of `scores[target]` among all items.

    Args:
      scores: [items], higher is better.
      target: the place of the target.

    Raises:
      ValueError: a score is NaN, which compares as neither better nor worse.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: they rank nothing")
    mine = scores[target]
    return 1 + int((scores > mine).sum()), int((scores >= mine).sum())


def per_user(low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
    """Each user's expected metrics. There is one relevant item, so the ideal DCG is 1.

    recall@k = P(rank <= k); ndcg@k = E[1/log2(rank + 1); rank <= k]; mrr = E[1/rank], not cut off.

    Args:
      low, high: int [n], bounds of the target's rank; equal where it is known.

    Returns:
      {metric: float64 [n]}.

    Raises:
      ValueError: not 1 <= low <= high, or not as many of the one as of the other.
    """
    low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
    if low.shape != high.shape or (low < 1).any() or (low > high).any():
        raise ValueError("rank bounds must be as many low as high, with 1 <= low <= high")
    top = int(high.max(initial=1))
    ranks = np.arange(1, top + 1, dtype=np.float64)
    size = (high - low + 1).astype(np.float64)

    def expected(gain: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(gain)])
        return (total[high] - total[low - 1]) / size

    discount = 1 / np.log2(ranks + 1)
    values = {f"recall@{k}": expected((ranks <= k).astype(np.float64)) for k in RECALL_AT}
    values |= {f"ndcg@{k}": expected(np.where(ranks <= k, discount, 0.0)) for k in NDCG_AT}
    values["mrr"] = expected(1 / ranks)
    return values


def summarise(
    low: np.ndarray, high: np.ndarray, *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Means over users, with 95 % bootstrap intervals and the bounds that ties allow.

    Returns:
      {metric: {"value", "low", "high", "tie_low", "tie_high"}}: the expectation, its interval over
      users, and the value if every tie went against or for the target.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
    """
    values, worst, best = per_user(low, high), per_user(high, high), per_user(low, low)
    intervals = _intervals(values, bootstrap_samples, seed)
    return {
        name: {
            "value": float(values[name].mean()),
            "low": intervals[name][0],
            "high": intervals[name][1],
            "tie_low": float(worst[name].mean()),
            "tie_high": float(best[name].mean()),
        }
        for name in METRICS
    }


def paired(
    ours: tuple[np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Differences ours - theirs over the same users, with 95 % bootstrap intervals.

    Args:
      ours, theirs: (low, high) rank bounds, int [n] each, users in the same order.

    Returns:
      {metric: {"delta", "low", "high"}}.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
      ValueError: the users are not the same number.
    """
    a, b = per_user(*ours), per_user(*theirs)
    if len(a["mrr"]) != len(b["mrr"]):
        raise ValueError(f"{len(a['mrr'])} users of ours and {len(b['mrr'])} of theirs")
    delta = {name: a[name] - b[name] for name in METRICS}
    intervals = _intervals(delta, bootstrap_samples, seed)
    return {
        name: {
            "delta": float(delta[name].mean()),
            "low": intervals[name][0],
            "high": intervals[name][1],
        }
        for name in METRICS
    }


def _intervals(
    values: dict[str, np.ndarray], samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)}, percentiles 2.5 and 97.5 of the means of resampled users."""
    matrix = np.stack([values[name] for name in METRICS], axis=1)
    if not len(matrix):
        raise CalrecError("no users to measure: the split is empty")
    if samples < 1:
        raise CalrecError(f"bootstrap_samples is {samples}: intervals need at least one")
    means = np.concatenate([counts @ matrix for counts in _resamples(len(matrix), samples, seed)])
    bounds = np.percentile(means / len(matrix), [2.5, 97.5], axis=0)
    return {name: (float(bounds[0, i]), float(bounds[1, i])) for i, name in enumerate(METRICS)}


def _resamples(users: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, float64 [block, users]; blocks bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, min(samples, 4_000_000 // max(users, 1)))
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(users, size=(rows, users))
        drawn += users * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(float)
