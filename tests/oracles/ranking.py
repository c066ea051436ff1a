"""Ranking in NumPy float64: quasi-round-robin merging, metrics under ties by enumeration, and BM25
in Lucene's variant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5, 10)
NDCG_AT = (5, 10)


def scale_row(row: np.ndarray) -> list[float]:
    """(s - min) / (max - min) for each s of one row; a constant row gives zeros."""
    values = [float(value) for value in row]
    low, high = min(values), max(values)
    if high == low:
        return [0.0 for _ in values]
    return [(value - low) / (high - low) for value in values]


def quasi_round_robin(
    scores: np.ndarray, log_probs: np.ndarray, epsilon: float = 1 / 5000
) -> np.ndarray:
    """score(item) = max_n exp(eps * score_n) * s_n(item), s_n scaled to [0, 1] by min and max.

    scores [N, items]: the BM25 scores s_n of N distinct outputs; log_probs [N]: score_n, the sum
    of the log-probabilities of output n's tokens -> float64 [items].
    """
    scaled = [scale_row(row) for row in scores]
    merged = []
    for item in range(len(scaled[0])):
        candidates = []
        for n in range(len(scaled)):
            candidates.append(math.exp(epsilon * float(log_probs[n])) * scaled[n][item])
        merged.append(max(candidates))
    return np.array(merged, dtype=np.float64)


def metrics_at_rank(
    rank: int, recall_at: Sequence[int] = RECALL_AT, ndcg_at: Sequence[int] = NDCG_AT
) -> dict[str, float]:
    """recall@k = [rank <= k]; ndcg@k = 1/log2(rank + 1) if rank <= k, else 0; mrr = 1/rank.

    One relevant item, at rank 1, 2, ... of the whole catalogue. Keys "recall@1", "ndcg@10", "mrr".
    """
    metrics = {}
    for k in recall_at:
        metrics[f"recall@{k}"] = 1.0 if rank <= k else 0.0
    for k in ndcg_at:
        metrics[f"ndcg@{k}"] = 1 / math.log2(rank + 1) if rank <= k else 0.0
    metrics["mrr"] = 1 / rank
    return metrics


def rank_bounds(scores: np.ndarray, target: int) -> tuple[int, int]:
    """(best, worst) rank of the target: 1 + the items above it, and that + the items tied with it.

    Best is when every tie counts for the target, worst is when every tie counts against it.
    """
    above, tied_others = 0, 0
    for item in range(len(scores)):
        if scores[item] > scores[target]:
            above += 1
        elif scores[item] == scores[target] and item != target:
            tied_others += 1
    return above + 1, above + 1 + tied_others


def _mean_metrics(all_metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {}
    for name in all_metrics[0]:
        means[name] = sum(metrics[name] for metrics in all_metrics) / len(all_metrics)
    return means


def expected_metrics(
    scores: np.ndarray,
    target: int,
    recall_at: Sequence[int] = RECALL_AT,
    ndcg_at: Sequence[int] = NDCG_AT,
) -> dict[str, float]:
    """E[metric] when ties are broken at random: every rank of the tied block is equally likely.

    scores [items], target an index into them. The mean of metrics_at_rank over the ranks best to
    worst; expected_metrics_by_permutation proves it for small catalogues.
    """
    best, worst = rank_bounds(scores, target)
    ranks = range(best, worst + 1)
    return _mean_metrics([metrics_at_rank(rank, recall_at, ndcg_at) for rank in ranks])


def expected_metrics_by_permutation(
    scores: np.ndarray,
    target: int,
    recall_at: Sequence[int] = RECALL_AT,
    ndcg_at: Sequence[int] = NDCG_AT,
) -> dict[str, float]:
    """E[metric] over all orderings of the target's tied block, each written out (n! of them)."""
    items = range(len(scores))
    above = [item for item in items if scores[item] > scores[target]]
    tied = [item for item in items if scores[item] == scores[target]]
    below = [item for item in items if scores[item] < scores[target]]
    all_metrics = []
    for block in itertools.permutations(tied):
        ranking = above + list(block) + below
        rank = ranking.index(target) + 1
        all_metrics.append(metrics_at_rank(rank, recall_at, ndcg_at))
    return _mean_metrics(all_metrics)


def bm25_scores(
    documents: Sequence[Sequence[object]],
    query: Sequence[object],
    k1: float = 1.5,
    b: float = 0.75,
) -> np.ndarray:
    """BM25(d) = sum over query terms of ln(1 + (N - df + 0.5)/(df + 0.5)) * tf part, where
    tf part = tf / (tf + k1 * (1 - b + b * dl / avgdl)): Lucene's variant, without (k1 + 1).

    documents and query are lists of tokens; a term counts as often as the query has it, and a
    term that no document has adds nothing -> float64 [documents].
    """
    total_length = sum(len(document) for document in documents)
    average_length = total_length / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in query:
            tf = sum(1 for token in document if token == term)
            if tf == 0:
                continue
            df = sum(1 for other in documents if term in other)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            length_part = 1 - b + b * len(document) / average_length
            score += idf * tf / (tf + k1 * length_part)
        scores.append(score)
    return np.array(scores, dtype=np.float64)
