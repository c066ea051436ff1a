"""What is recommended beyond accuracy, by the definitions: one item, one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def coverage(lists: Sequence[Sequence[int]], items: int) -> float:
    """|union of the lists| / |catalogue| (Ge et al., RecSys 2010: catalogue coverage)."""
    recommended = 0
    for item in range(items):
        if any(item in places for places in lists):
            recommended += 1
    return recommended / items


def gini(lists: Sequence[Sequence[int]], items: int) -> float:
    """Half the relative mean absolute difference: sum_i sum_j |c_i - c_j| / (2 N sum_i c_i).

    c_i is in how many lists item i is, N the items. Without any recommendation 0: all are equal.
    """
    counts = [sum(1 for places in lists if item in places) for item in range(items)]
    if sum(counts) == 0:
        return 0.0
    differences = 0
    for one in counts:
        for other in counts:
            differences += abs(one - other)
    return differences / (2 * items * sum(counts))


def novelty(lists: Sequence[Sequence[int]], events: Sequence[int]) -> float:
    """Mean of -log2 p(i) over all places of all lists, p(i) = (n(i) + 1) / sum_j (n(j) + 1).

    events: n(i) of each item. Without any recommendation 0.
    """
    total = sum(count + 1 for count in events)
    bits = []
    for places in lists:
        for item in places:
            bits.append(-math.log2((events[item] + 1) / total))
    return math.fsum(bits) / len(bits) if bits else 0.0
