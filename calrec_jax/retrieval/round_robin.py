"""Quasi-round-robin: one ranking from several generated texts (method: Inference 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calrec_jax.errors import CalrecError

NOT_A_NUMBER = "the model gives log-probabilities of NaN: its weights have diverged"


def merge_outputs(texts: Sequence[str], log_probs: Sequence[float]) -> tuple[list[str], np.ndarray]:
    """Identical texts merged, the likeliest first.

    Returns:
      The distinct texts and their log-probabilities, float64, descending; equal log-probabilities
      in the order of the texts, so that the outcome depends on no order of the input.

    Raises:
      CalrecError: a log-probability is NaN.
    """
    if np.isnan(np.asarray(log_probs, np.float64)).any():
        raise CalrecError(NOT_A_NUMBER)
    best: dict[str, float] = {}
    for text, log_prob in zip(texts, log_probs, strict=True):
        best[text] = max(float(log_prob), best.get(text, -np.inf))
    ordered = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
    return [text for text, _ in ordered], np.array([p for _, p in ordered], np.float64)


def min_max(scores: np.ndarray) -> np.ndarray:
    """Rows scaled to [0, 1] by their minimum and maximum; constant rows become zeros.

    Args:
      scores: [n, items].
    """
    scores = np.asarray(scores, np.float64)
    low = scores.min(axis=1, keepdims=True)
    span = scores.max(axis=1, keepdims=True) - low
    return np.divide(scores - low, span, out=np.zeros_like(scores), where=span > 0)


def quasi_round_robin(
    scores: np.ndarray, log_probs: np.ndarray, epsilon: float = 1 / 5000
) -> np.ndarray:
    """score(item) = max over n of exp(epsilon * log_prob_n) * s_n(item), s_n scaled to [0, 1].

    epsilon is small (unverified: 1/5000), so that every output's best item scores near 1: the first
    places go to the distinct outputs' best items in the order of their log-probabilities.

    Args:
      scores: [n, items], retrieval scores of each output.
      log_probs: [n], sums over tokens, never divided by the length.

    Returns:
      float64 [items]; zeros where there is no output.

    Raises:
      ValueError: scores and log-probabilities are not of the same outputs.
    """
    scaled = min_max(scores)
    weights = np.exp(epsilon * np.asarray(log_probs, np.float64))
    if weights.shape != scaled.shape[:1]:
        raise ValueError(f"{scaled.shape[0]} rows of scores for log_probs {weights.shape}")
    scaled *= weights[:, None]
    return scaled.max(axis=0, initial=0.0)


def ranked(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k best items, best first, ties in the catalogue's order. int64 [min(k, items)].

    Args:
      scores: [items].
    """
    return ranked_rows(scores[None], k)[0]


def ranked_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """`ranked` for each row of scores. int64 [n, min(k, items)].

    Args:
      scores: [n, items].
    """
    k = min(k, scores.shape[1])
    places = np.empty((len(scores), k), np.int64)
    if not places.size:
        return places
    for row, bound, row_places in zip(scores, _kth_lower_bounds(scores, k), places, strict=True):
        # Only items that can be among the first k are sorted, ties with the k-th included.
        candidates = (row >= bound).nonzero()[0]
        candidate_scores = row[candidates]
        if len(candidates) > 4 * k:
            chosen = _first_k(candidate_scores, bound, k)
            candidates, candidate_scores = candidates[chosen], candidate_scores[chosen]
        row_places[:] = candidates[(-candidate_scores).argsort(kind="stable")[:k]]
    return places


def _first_k(scores: np.ndarray, bound: float, k: int) -> np.ndarray:
    """Indices of the k best scores, in no order; of ties with the k-th the first.

    Args:
      scores: [candidates], none below `bound`.
    """
    if np.count_nonzero(scores > bound) < k:  # many tie with the k-th
        kth = bound
    else:  # the best are in few groups
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = (scores > kth).nonzero()[0], (scores == kth).nonzero()[0]
    return np.concatenate([above, tied[: k - len(above)]])


def _kth_lower_bounds(scores: np.ndarray, k: int) -> np.ndarray:
    """For each row a score that at least k items reach, and mostly not many more, [n].

    It is the k-th of the maxima of groups of items, found in one pass.
    """
    n, items = scores.shape
    groups = 2 * k
    size = items // groups
    if size < 2:
        return np.partition(scores, items - k, axis=1)[:, items - k]
    maxima = scores[:, : size * groups].reshape(n, size, groups).max(axis=1)
    return np.partition(maxima, groups - k, axis=1)[:, groups - k]
