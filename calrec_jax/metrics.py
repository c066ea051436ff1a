"""Recall, NDCG and MRR over the whole catalogue, with ties counted honestly and with intervals.

A target that ties with others has no single rank, only bounds: `low` = 1 + the items that score
strictly more, `high` = the items that score at least as much. A metric's value is its expectation
when the tie is broken at random, every rank from low to high being equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from calrec_jax.errors import CalrecError

RECALL_AT = (1, 5, 10)
NDCG_AT = (5, 10)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), *(f"ndcg@{k}" for k in NDCG_AT), "mrr")

Bounds = tuple[np.ndarray, np.ndarray]
"""(low, high) rank of each user's target, int [n] each; equal where the rank is known."""

Values = dict[str, np.ndarray]
"""{metric: float64 [n]}, of each user."""


def rank_bounds(scores: np.ndarray, target: int) -> tuple[int, int]:
    """(low, high) rank of `scores[target]` among all items.

    Args:
      scores: [items], higher is better.
      target: the place of the target.

    Raises:
      ValueError: a score is NaN, which compares as neither better nor worse.
    """
    if np.isnan(scores.min()):  # the minimum is NaN where any of them is
        raise ValueError("scores hold NaN: they rank nothing")
    mine = scores[target]
    return 1 + int(np.count_nonzero(scores > mine)), int(np.count_nonzero(scores >= mine))


def per_user(low: np.ndarray, high: np.ndarray) -> Values:
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
    bounds: Mapping[str, Bounds], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Means over users, with 95 % bootstrap intervals and the bounds that ties allow.

    All models are measured on the same resamples of the users.

    Args:
      bounds: {model: (low, high) rank bounds, int [n] each}, the same users of every model.

    Returns:
      {model: {metric: {"value", "low", "high", "tie_low", "tie_high"}}}: the expectation, its
      interval over users, and the value if every tie went against or for the target.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
      ValueError: the users are not the same number.
    """
    values = {model: per_user(low, high) for model, (low, high) in bounds.items()}
    worst = {model: per_user(high, high) for model, (_, high) in bounds.items()}
    best = {model: per_user(low, low) for model, (low, _) in bounds.items()}
    intervals = _intervals(values, bootstrap_samples, seed)
    return {
        model: {
            metric: {
                "value": float(values[model][metric].mean()),
                **intervals[model][metric],
                "tie_low": float(worst[model][metric].mean()),
                "tie_high": float(best[model][metric].mean()),
            }
            for metric in METRICS
        }
        for model in bounds
    }


def paired(
    ours: Bounds, theirs: Mapping[str, Bounds], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Differences ours - theirs over the same users, with 95 % bootstrap intervals.

    Args:
      ours: (low, high) rank bounds, int [n] each.
      theirs: {model: (low, high)}, users in the same order.

    Returns:
      {model: {metric: {"delta", "low", "high"}}}.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
      ValueError: the users are not the same number.
    """
    mine = per_user(*ours)
    delta = {model: _difference(mine, model, per_user(*other)) for model, other in theirs.items()}
    intervals = _intervals(delta, bootstrap_samples, seed)
    return {
        model: {
            metric: {"delta": float(delta[model][metric].mean()), **intervals[model][metric]}
            for metric in METRICS
        }
        for model in theirs
    }


def _difference(ours: Values, model: str, theirs: Values) -> Values:
    if len(ours["mrr"]) != len(theirs["mrr"]):
        raise ValueError(f"{len(ours['mrr'])} users of ours and {len(theirs['mrr'])} of {model}")
    return {metric: ours[metric] - theirs[metric] for metric in METRICS}


def _intervals(
    values: Mapping[str, Values], samples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """{model: {metric: {"low", "high"}}}, percentiles 2.5 and 97.5 of means of resampled users."""
    if not values:
        return {}
    sizes = {model: len(of["mrr"]) for model, of in values.items()}
    users = min(sizes.values())
    if users != max(sizes.values()):
        raise ValueError(f"the models do not have the same number of users: {sizes}")
    if not users:
        raise CalrecError("no users to measure: the split is empty")
    if samples < 1:
        raise CalrecError(f"bootstrap_samples is {samples}: intervals need at least one")
    matrix = np.stack([of[metric] for of in values.values() for metric in METRICS], axis=1)
    means = np.concatenate([counts @ matrix for counts in _resamples(users, samples, seed)])
    bounds = np.percentile(means / users, [2.5, 97.5], axis=0)
    low, high = bounds.reshape(2, len(values), len(METRICS)).tolist()
    return {
        model: {metric: {"low": low[i][j], "high": high[i][j]} for j, metric in enumerate(METRICS)}
        for i, model in enumerate(values)
    }


def _resamples(users: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, float64 [block, users]; blocks bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, min(samples, 4_000_000 // max(users, 1)))
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(users, size=(rows, users))
        drawn += users * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(float)
