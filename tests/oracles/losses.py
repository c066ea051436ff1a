"""Losses of CALRec (Li et al., RecSys 2024) in NumPy float64, position by position and pair by
pair, with a numerical gradient to check automatic ones against."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DIRECTIONS = ("users", "items", "both")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p_v = x_v - log sum_w exp(x_w), for one vector [V]; the maximum is taken out first."""
    logits = np.asarray(logits, dtype=np.float64)
    largest = max(float(value) for value in logits)
    total = sum(math.exp(float(value) - largest) for value in logits)
    return np.array([float(value) - largest - math.log(total) for value in logits])


def next_item_nll(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """L_NIG = mean over target tokens (with EOS) of -log p(t_j | history, t_<j).

    logits [B, S, V], targets [B, S], weights [B, S] (1 on target tokens and EOS, else 0). The mean
    is over all target tokens of the batch: sum of weighted / number of weighted, so a long target
    counts more than a short one. Raises ValueError if no token has a weight.
    """
    total, count = 0.0, 0.0
    rows, length = np.shape(targets)
    for row in range(rows):
        for position in range(length):
            weight = float(weights[row][position])
            if weight == 0.0:
                continue
            log_p = log_softmax(logits[row][position])
            total += weight * -float(log_p[int(targets[row][position])])
            count += weight
    if count == 0.0:
        raise ValueError("no token has a weight: the mean over target tokens is undefined")
    return total / count


def pool(
    hidden: np.ndarray,
    segment_ids: np.ndarray,
    span_ids: np.ndarray,
    span: int,
    num_segments: int,
) -> np.ndarray:
    """v = mean over the positions whose input token belongs to the span, in each segment.

    hidden [B, S, D], segment_ids [B, S] (1..K, 0 = pad), span_ids [B, S] (0 in no span, 1 history,
    2 target) -> [B, K, D]. Slot k holds segment k + 1; without a position it is zeros.
    """
    hidden = np.asarray(hidden, dtype=np.float64)
    rows, length, width = hidden.shape
    vectors = np.zeros((rows, num_segments, width))
    for row in range(rows):
        for slot in range(num_segments):
            total, count = np.zeros(width), 0
            for position in range(length):
                in_segment = segment_ids[row][position] == slot + 1
                if in_segment and span_ids[row][position] == span:
                    total = total + hidden[row, position]
                    count += 1
            if count > 0:
                vectors[row, slot] = total / count
    return vectors


def pool_items(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """v_t = mean over the tokens of the target (the positions where mask is 1).

    hidden [B, K, I, D], mask [B, K, I] -> [B, K, D]; an empty slot is zeros.
    """
    hidden = np.asarray(hidden, dtype=np.float64)
    rows, slots, length, width = hidden.shape
    vectors = np.zeros((rows, slots, width))
    for row in range(rows):
        for slot in range(slots):
            total, count = np.zeros(width), 0
            for position in range(length):
                if mask[row][slot][position] == 1:
                    total = total + hidden[row, slot, position]
                    count += 1
            if count > 0:
                vectors[row, slot] = total / count
    return vectors


def filled_slots(vectors: np.ndarray, target_item_ids: np.ndarray) -> np.ndarray:
    """[B, K, D] -> [N, D]: the slots that hold an example (id != 0), row by row, slot by slot."""
    kept = []
    for row in range(len(vectors)):
        for slot in range(len(vectors[row])):
            if target_item_ids[row][slot] != 0:
                kept.append(np.asarray(vectors[row][slot], dtype=np.float64))
    return np.array(kept)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """cos(a, b) = a.b / (|a| |b|); 0 if a or b is zero."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norm_a = math.sqrt(sum(float(x) ** 2 for x in a))
    norm_b = math.sqrt(sum(float(y) ** 2 for y in b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    return dot / (norm_a * norm_b)


def info_nce(
    a: np.ndarray,
    b: np.ndarray,
    temperature: float,
    direction: str,
    target_ids: np.ndarray | None = None,
) -> float:
    """InfoNCE(a, b) = -1/N * sum_i log [ exp(cos(a_i,b_i)/tau) / sum_j exp(cos(a_j,b_i)/tau) ].

    a [N, D] are the users' vectors, b [N, D] the items'. direction "users" is the formula above,
    its denominator over the users j for a fixed target i; "items" has sum_j exp(cos(a_i,b_j)/tau);
    "both" is the mean of the two. With target_ids [N], rows j != i of the same id as i leave the
    denominator. Every row given counts: leave empty slots out before (filled_slots).
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is none of {DIRECTIONS}")
    if direction == "both":
        users = info_nce(a, b, temperature, "users", target_ids)
        items = info_nce(a, b, temperature, "items", target_ids)
        return (users + items) / 2
    count = len(a)
    total = 0.0
    for i in range(count):
        denominator = 0.0
        for j in range(count):
            if target_ids is not None and j != i and target_ids[j] == target_ids[i]:
                continue
            similarity = cosine(a[j], b[i]) if direction == "users" else cosine(a[i], b[j])
            denominator += math.exp(similarity / temperature)
        total += math.log(math.exp(cosine(a[i], b[i]) / temperature) / denominator)
    return -total / count


def calrec_loss(l_nig: float, l_tt: float, l_ut: float, alpha: float, beta: float) -> float:
    """L = (1 - alpha - beta) * L_NIG + alpha * L_TT + beta * L_UT."""
    return (1 - alpha - beta) * l_nig + alpha * l_tt + beta * l_ut


def numeric_gradient(
    f: Callable[[np.ndarray], float], x: np.ndarray, eps: float = 1e-6
) -> np.ndarray:
    """df/dx_i = (f(x + eps e_i) - f(x - eps e_i)) / (2 eps), for x of any shape."""
    x = np.array(x, dtype=np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[index] += eps
        below[index] -= eps
        gradient[index] = (float(f(above)) - float(f(below))) / (2 * eps)
    return gradient
