"""Measures beyond accuracy: how much of the catalogue is recommended, how evenly, how novel."""

from __future__ import annotations

import numpy as np

DEPTH = 10
"""The number of items of each user that count."""


def beyond_accuracy(best: np.ndarray, events: np.ndarray) -> dict[str, float]:
    """Coverage, Gini index and novelty of the first 10 items of all users.

    With N items in the catalogue, c_i users who have item i among their first 10, c_(1) ... c_(N)
    the c_i in ascending order, and n(i) the events of i in the training split:

        coverage@10 = |{i: c_i > 0}| / N
        gini@10     = sum over k of (2k - N - 1) c_(k) / (N sum over i of c_i)
        novelty@10  = sum over i of c_i * -log2 p(i) / sum over i of c_i,
                      p(i) = (n(i) + 1) / sum over j of (n(j) + 1)

    Coverage is catalogue coverage (Ge, Delgado-Battenfeld & Jannach, RecSys 2010). The Gini index
    (of recommendations: Adomavicius & Kwon, IEEE TKDE 2012) is 0 where all items are recommended
    equally often and (N - 1) / N where one alone is; 10 items to each user cannot exceed
    1 - 10 / N. That of Castells, Hurley & Vargas (Recommender Systems Handbook, 2015) is divided by
    N - 1 in place of N. Novelty is the mean self-information in bits (Zhou et al., PNAS 2010): log2
    N where all items are equally popular, less for popular items and more for rare ones. One event
    is added to each item (Laplace), since those without events would be infinitely novel.

    Where no user is recommended any item, all three are 0.

    Args:
      best: int [n, at most 10], places in the catalogue of each user's items, none of them twice;
        -1 where a user has fewer.
      events: int64 [items], n(i).

    Returns:
      {"coverage@10", "gini@10", "novelty@10"}.

    Raises:
      ValueError: more than 10 items of a user, a place that is not in the catalogue, or a catalogue
        without items.
    """
    best, events = np.asarray(best), np.asarray(events)
    if best.ndim != 2 or best.shape[1] > DEPTH:
        raise ValueError(f"items of shape {best.shape}: give at most {DEPTH} of each user")
    if not len(events) or best.min(initial=-1) < -1 or best.max(initial=-1) >= len(events):
        raise ValueError(f"places must be from -1 to the last of {len(events)} items")
    counts = np.bincount(best[best >= 0], minlength=len(events))
    return {
        f"coverage@{DEPTH}": float((counts > 0).mean()),
        f"gini@{DEPTH}": _gini(counts),
        f"novelty@{DEPTH}": _novelty(counts, events),
    }


def _gini(counts: np.ndarray) -> float:
    items, total = len(counts), counts.sum()
    weights = 2 * np.arange(1, items + 1) - items - 1
    return float(weights @ np.sort(counts) / (items * max(total, 1)))


def _novelty(counts: np.ndarray, events: np.ndarray) -> float:
    bits = np.log2((events + 1).sum()) - np.log2(events + 1)
    return float(counts @ bits / max(counts.sum(), 1))
