"""Fusion of two retrievers, its weight, and the policies for seen items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import ranking

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval.fusion import SCALES, SEEN, choose_weight, fuse, scaled, without_seen

OUT = -np.inf


def test_max_scales_each_user() -> None:
    scores = np.array([[1, 4, 2], [-3, -1, -2], [0, 0, 0], [OUT, 5, 10]])
    expected = [[0.25, 1, 0.5], [-3, -1, -2], [0, 0, 0], [OUT, 0.5, 1]]
    assert scaled(scores, "max").tolist() == expected


def test_min_max_scales_each_user() -> None:
    scores = np.array([[1, 3, 2], [-3, -1, -2], [7, 7, 7], [OUT, 5, 10], [OUT, OUT, 4]])
    expected = [[0, 1, 0.5], [0, 1, 0.5], [0, 0, 0], [OUT, 0, 1], [OUT, OUT, 0]]
    assert scaled(scores, "min_max").tolist() == expected


@pytest.mark.parametrize("scale", SCALES)
def test_a_user_with_nothing_left_stays_excluded(scale: str) -> None:
    assert scaled(np.array([[OUT, OUT]]), scale).tolist() == [[OUT, OUT]]


def test_the_second_is_weighted() -> None:
    a, b = np.array([[2.0, 4.0, 0.0]]), np.array([[10.0, 0.0, 5.0]])
    assert fuse(a, b, 0.5).tolist() == [[1.0, 1.0, 0.25]]
    assert fuse(a, b, 0).tolist() == [[0.5, 1.0, 0.0]]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_what_either_excludes_is_excluded(weight: float) -> None:
    fused = fuse(np.array([[OUT, 1.0, 2.0]]), np.array([[4.0, OUT, 4.0]]), weight)
    assert fused.tolist() == [[OUT, OUT, 1.0 + weight]]


def test_mistakes_are_reported() -> None:
    one = np.ones((1, 2))
    for weight in (-0.1, np.inf, np.nan):
        with pytest.raises(CalrecError, match="a weight of"):
            fuse(one, one, weight)
    with pytest.raises(CalrecError, match="'sum' is none of max, min_max"):
        fuse(one, one, 1.0, "sum")
    with pytest.raises(ValueError, match="not of the same items"):
        fuse(one, np.ones((1, 3)), 1.0)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="cannot be scaled"):
            fuse(one, np.array([[1.0, bad]]), 1.0)
    with pytest.raises(CalrecError, match="a weight of -1"):
        choose_weight([(one, one, [0])], [1.0, -1.0])
    for blocks in ([], [(one[:0], one[:0], [])]):
        with pytest.raises(CalrecError, match="validation"):
            choose_weight(blocks, [1.0])
    with pytest.raises(CalrecError, match="validation"):
        choose_weight([(one, one, [0])], [])
    with pytest.raises(ValueError):
        choose_weight([(one, one, [0, 0])], [1.0])


tables = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=12, max_size=12),
    min_size=3,
    max_size=3,
).map(np.array)
WEIGHTS = (0.0, 0.25, 1.0, 4.0)


@given(tables, tables, st.lists(st.integers(0, 11), min_size=3, max_size=3))
def test_the_weight_is_the_best_of_the_oracles_ndcg(
    a: np.ndarray, b: np.ndarray, targets: list[int]
) -> None:
    expected = []
    for weight in WEIGHTS:
        gains = []
        for x, y, target in zip(a, b, targets, strict=True):
            fused = x / (max(x) or 1) + weight * (y / (max(y) or 1))
            gains.append(ranking.expected_metrics(fused, target)["ndcg@10"])
        expected.append(sum(gains) / 3)
    weight, gain = choose_weight([(a, b, targets)], WEIGHTS)
    assert gain == pytest.approx(max(expected), abs=1e-12)
    assert expected[WEIGHTS.index(weight)] == pytest.approx(gain, abs=1e-12)
    # Blocks are read once: a generator will do.
    blocks = ((a[rows], b[rows], targets[rows]) for rows in (slice(2), slice(2, 2), slice(2, 3)))
    assert choose_weight(blocks, WEIGHTS) == (weight, gain)


def test_of_equal_weights_the_first_is_chosen() -> None:
    a = np.array([[3.0, 1.0, 0.0]])
    assert choose_weight([(a, a, [0])], [2.0, 0.5, 1.0]) == (2.0, 1.0)


def test_each_user_has_a_scale_of_their_own() -> None:
    # Without it, the first user's thousands would drown the second retriever.
    a = np.array([[1000.0, 999.0, 0.0], [0.0, 0.1, 0.2]])
    b = np.array([[0.0, 0.2, 0.0], [0.0, 5.0, 0.0]])
    weight, gain = choose_weight([(a, b, [1, 1])], [0.001, 1.0])
    assert (weight, gain) == (1.0, 1.0)


def test_seen_items() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    histories = [[3, 1, 1], [0]]
    expected = {
        "allow": scores.tolist(),
        "exclude": [[1, OUT, 3, OUT], [OUT, 6, 7, 8]],
        "exclude_last": [[1, OUT, 3, 4], [OUT, 6, 7, 8]],
    }
    assert expected.keys() == set(SEEN)
    for policy, rows in expected.items():
        assert without_seen(scores, histories, policy).tolist() == rows
    assert np.isfinite(scores).all()  # the caller's are left alone


def test_a_seen_target_cannot_be_found() -> None:
    scores = without_seen(np.array([[9.0, 2.0, 3.0, 4.0]]), [[0, 1]], "exclude")
    assert metrics.rank_bounds(scores[0], 0) == (3, 4)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(CalrecError, match="'hide' is none of allow, exclude, exclude_last"):
        without_seen(np.ones((1, 2)), [[0]], "hide")
    with pytest.raises(ValueError):
        without_seen(np.ones((2, 2)), [[0]], "exclude")
