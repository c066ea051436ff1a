"""Recall, NDCG and MRR over the whole catalogue, with bounds for ties and bootstrap intervals.

A target that ties with other items has no single rank, only bounds: `low` = 1 + the number of items
that score strictly more, `high` = the number of items that score at least as much. A metric's value
is its expectation when ties are broken at random: every rank from low to high is equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from calrec_jax.errors import CalrecError

RECALL_AT = (1, 5, 10)
NDCG_AT = (5, 10)
METRICS = (*(f"recall@{k}" for k in RECALL_AT), *(f"ndcg@{k}" for k in NDCG_AT), "mrr")

Bounds = tuple[np.ndarray, np.ndarray]
"""(low, high) ranks of each user's target, int [n] each; equal where nothing ties."""

Values = dict[str, np.ndarray]
"""{metric: float64 [n]}, one value for each user."""


def rank_bounds(scores: np.ndarray, target: int) -> tuple[int, int]:
    """The (low, high) rank of `scores[target]` among all items.

    Args:
      scores: [items], higher is better.
      target: the target's place.

    Raises:
      ValueError: a score is NaN, which compares as neither better nor worse.
    """
    if np.isnan(scores.min()):  # the minimum is NaN where any of them is
        raise ValueError("scores hold NaN: they rank nothing")
    own = scores[target]
    return 1 + int(np.count_nonzero(scores > own)), int(np.count_nonzero(scores >= own))


def per_user(low: np.ndarray, high: np.ndarray) -> Values:
    """Each user's expected metrics. There is one relevant item, so the ideal DCG is 1.

    recall@k = P(rank <= k); ndcg@k = E[1/log2(rank + 1); rank <= k]; mrr = E[1/rank], without a
    cutoff.

    Args:
      low, high: int [n], bounds of the targets' ranks.

    Returns:
      {metric: float64 [n]}.

    Raises:
      ValueError: not 1 <= low <= high, or `low` and `high` differ in length.
    """
    low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
    if low.shape != high.shape or (low < 1).any() or (low > high).any():
        raise ValueError("rank bounds must be as many low as high, with 1 <= low <= high")
    top = int(high.max(initial=1))
    ranks = np.arange(1, top + 1, dtype=np.float64)
    size = (high - low + 1).astype(np.float64)

    def expected(gains: np.ndarray) -> np.ndarray:
        """The mean of `gains`, one a rank, over the ranks from low to high of each user."""
        cumulative = np.concatenate([[0.0], np.cumsum(gains)])
        return (cumulative[high] - cumulative[low - 1]) / size

    discount = 1 / np.log2(ranks + 1)
    values = {f"recall@{k}": expected((ranks <= k).astype(np.float64)) for k in RECALL_AT}
    values |= {f"ndcg@{k}": expected(np.where(ranks <= k, discount, 0.0)) for k in NDCG_AT}
    values["mrr"] = expected(1 / ranks)
    return values


def summarise(
    bounds: Mapping[str, Bounds], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Means over users, with 95 % bootstrap intervals and the bounds that ties allow.

    All models are measured on the same resampled users.

    Args:
      bounds: {model: (low, high) rank bounds, int [n] each}, of the same users for every model.

    Returns:
      {model: {metric: {"value", "low", "high", "tie_low", "tie_high"}}}: the expectation, its
      interval over users, and the value if every tie were broken against or for the target.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
      ValueError: the models do not have the same number of users.
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
    ours: Bounds, baselines: Mapping[str, Bounds], *, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """The differences ours - baseline over the same users, with 95 % bootstrap intervals.

    Args:
      ours: (low, high) rank bounds, int [n] each.
      baselines: {model: (low, high) rank bounds}, users in the same order.

    Returns:
      {model: {metric: {"delta", "low", "high"}}}.

    Raises:
      CalrecError: there are no users, or no bootstrap samples.
      ValueError: the models do not have the same number of users.
    """
    values = per_user(*ours)
    delta = {
        model: _difference(values, model, per_user(*bounds)) for model, bounds in baselines.items()
    }
    intervals = _intervals(delta, bootstrap_samples, seed)
    return {
        model: {
            metric: {"delta": float(delta[model][metric].mean()), **intervals[model][metric]}
            for metric in METRICS
        }
        for model in baselines
    }


def _difference(ours: Values, model: str, baseline: Values) -> Values:
    if len(ours["mrr"]) != len(baseline["mrr"]):
        raise ValueError(f"{len(ours['mrr'])} users of ours and {len(baseline['mrr'])} of {model}")
    return {metric: ours[metric] - baseline[metric] for metric in METRICS}


def _intervals(
    values: Mapping[str, Values], samples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """{model: {metric: {"low", "high"}}}: percentiles 2.5 and 97.5 of the means over resampled
    users."""
    if not values:
        return {}
    sizes = {model: len(per_metric["mrr"]) for model, per_metric in values.items()}
    users = min(sizes.values())
    if users != max(sizes.values()):
        raise ValueError(f"the models do not have the same number of users: {sizes}")
    if not users:
        raise CalrecError("no users to measure: the split is empty")
    if samples < 1:
        raise CalrecError(f"bootstrap_samples is {samples}: intervals need at least one")
    matrix = np.stack(
        [per_metric[metric] for per_metric in values.values() for metric in METRICS], axis=1
    )
    means = np.concatenate([counts @ matrix for counts in _resamples(users, samples, seed)])
    bounds = np.percentile(means / users, [2.5, 97.5], axis=0)
    low, high = bounds.reshape(2, len(values), len(METRICS)).tolist()
    return {
        model: {metric: {"low": low[i][j], "high": high[i][j]} for j, metric in enumerate(METRICS)}
        for i, model in enumerate(values)
    }


def _resamples(users: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of resamples: how often each user is drawn, float64 [resamples, users].

    Blocks bound the memory.
    """
    rng = np.random.default_rng(seed)
    block = max(1, min(samples, 4_000_000 // max(users, 1)))
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(users, size=(rows, users))
        drawn += users * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(float)
