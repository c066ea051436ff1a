"""Merging of outputs, quasi-round-robin and ranking."""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import ranking

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.retrieval.round_robin import (
    merge_outputs,
    min_max,
    quasi_round_robin,
    ranked,
    ranked_rows,
)

log_prob = st.floats(-200, 0)
score = st.one_of(st.floats(0, 50), st.sampled_from([0.0, 1.0, 7.5]))


@st.composite
def scored(draw: Callable[..., Any], max_outputs: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(scores [n, items], log_probs [n])."""
    n, items = draw(st.integers(1, max_outputs)), draw(st.integers(1, 8))
    row = st.lists(score, min_size=items, max_size=items)
    rows = draw(st.lists(row, min_size=n, max_size=n))
    return np.array(rows), np.array(draw(st.lists(log_prob, min_size=n, max_size=n)))


def test_identical_outputs_merge_to_the_likelier() -> None:
    texts, log_probs = merge_outputs(["b", "a", "b", "c"], [-3.0, -2.0, -1.0, -2.5])
    assert texts == ["b", "a", "c"]
    assert log_probs.tolist() == [-1.0, -2.0, -2.5]
    assert log_probs.dtype == np.float64


def test_texts_that_differ_at_all_are_not_merged() -> None:
    texts, _ = merge_outputs(["Pan", "pan", "pan "], [-1.0, -2.0, -3.0])
    assert texts == ["Pan", "pan", "pan "]


outputs = st.lists(st.tuples(st.sampled_from("abcdef"), log_prob), max_size=10)


@given(outputs, st.randoms(use_true_random=False))
def test_merging_keeps_the_ranking_and_forgets_the_order(
    pairs: list[tuple[str, float]], random: random_module.Random
) -> None:
    # Known defect elsewhere: outputs go through a set, which loses their order.
    texts, log_probs = merge_outputs([t for t, _ in pairs], [p for _, p in pairs])
    assert sorted(texts) == sorted({t for t, _ in pairs})
    assert log_probs.tolist() == sorted(log_probs, reverse=True)
    for text, p in zip(texts, log_probs, strict=True):
        assert p == max(q for t, q in pairs if t == text)
    random.shuffle(pairs)
    again, log_probs_again = merge_outputs([t for t, _ in pairs], [p for _, p in pairs])
    assert again == texts and log_probs_again.tolist() == log_probs.tolist()


def test_a_nan_log_probability_is_refused() -> None:
    with pytest.raises(CalrecError, match="diverged"):
        merge_outputs(["a", "b"], [-1.0, math.nan])


def test_an_output_without_log_probability_is_refused() -> None:
    with pytest.raises(ValueError):
        merge_outputs(["a", "b"], [-1.0])


def test_min_max_scales_each_row() -> None:
    scaled = min_max(np.array([[1, 3, 2], [0, 10, 5], [4, 4, 4], [0, 0, 0]]))
    assert scaled.dtype == np.float64
    assert scaled.tolist() == [[0, 1, 0.5], [0, 1, 0.5], [0, 0, 0], [0, 0, 0]]


def test_min_max_leaves_its_input_alone() -> None:
    scores = np.array([[1.0, 3.0]])
    quasi_round_robin(scores, np.array([-1.0]))
    assert scores.tolist() == [[1.0, 3.0]]


@given(scored(), st.sampled_from([1 / 5000, 0.01, 1.0]))
def test_scores_are_the_methods(example: tuple[np.ndarray, ...], epsilon: float) -> None:
    expected = ranking.quasi_round_robin(*example, epsilon)
    np.testing.assert_allclose(quasi_round_robin(*example, epsilon), expected, rtol=1e-14, atol=0)


@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_outputs_does_not_matter(
    example: tuple[np.ndarray, np.ndarray], random: random_module.Random
) -> None:
    scores, log_probs = example
    order = list(range(len(scores)))
    random.shuffle(order)
    np.testing.assert_array_equal(
        quasi_round_robin(scores[order], log_probs[order]), quasi_round_robin(scores, log_probs)
    )


def test_scores_are_float64_and_resolve_close_log_probabilities() -> None:
    # In float32 the weights of the first two outputs would be equal.
    scores = quasi_round_robin(np.eye(3, dtype=np.float32), np.array([-10.0001, -10.0, -90.0]))
    assert scores.dtype == np.float64
    assert np.float32(scores[0]) == np.float32(scores[1])
    assert ranked(scores, 3).tolist() == [1, 0, 2]


def test_log_probabilities_are_sums_and_not_means() -> None:
    # Known defect elsewhere: log-probabilities are divided by the number of tokens.
    scores = quasi_round_robin(np.eye(2), np.array([-20.0, -8.0]), epsilon=1 / 5000)
    assert scores.tolist() == [math.exp(-20 / 5000), math.exp(-8 / 5000)]


def test_distinct_outputs_fill_the_first_places_in_their_order() -> None:
    log_probs = np.array([-30.0, -5.0, -12.0])
    scores = np.array([[0, 0, 9, 8, 0], [9, 0, 0, 8.5, 0], [0, 0.2, 0, 0.1, 0]])
    assert ranked(quasi_round_robin(scores, log_probs), 5).tolist() == [0, 1, 2, 3, 4]


def test_no_output_or_no_match_ties_the_whole_catalogue() -> None:
    assert quasi_round_robin(np.zeros((0, 4)), np.zeros(0)).tolist() == [0.0] * 4
    assert quasi_round_robin(np.zeros((2, 4)), np.array([-1.0, -2.0])).tolist() == [0.0] * 4


def test_an_impossible_output_adds_nothing() -> None:
    assert quasi_round_robin(np.eye(2), np.array([-math.inf, -1.0]))[0] == 0.0


def test_scores_of_other_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of scores"):
        quasi_round_robin(np.eye(3), np.array([-1.0]))


@given(st.lists(score, min_size=1, max_size=30), st.integers(0, 35))
def test_ranking_is_by_score_then_by_place(scores: list[float], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert ranked(np.array(scores), k).tolist() == expected


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(score, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.integers(0, 35),
)
def test_rows_are_ranked_each_for_itself(rows: list[list[float]], k: int) -> None:
    expected = [ranked(np.array(row), k).tolist() for row in rows]
    assert ranked_rows(np.array(rows), k).tolist() == expected


def test_no_row_is_ranked() -> None:
    assert ranked_rows(np.zeros((0, 5)), 3).shape == (0, 3)


@pytest.mark.parametrize("values", [3, 40, 10_000])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_the_best_of_many_are_by_score_then_by_place(values: int, k: int) -> None:
    # Enough items that those that cannot be among the best are left out by groups.
    rng = np.random.default_rng(k)
    scores = rng.integers(values, size=2003).astype(float)
    scores[rng.choice(2003, 50)] = -math.inf
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert ranked(scores, k).tolist() == expected


def test_the_best_of_mostly_excluded_items() -> None:
    scores = np.full(2003, -math.inf)
    scores[[5, 1999, 2002]] = 1.0, 2.0, 1.0
    assert ranked(scores, 5).tolist() == [1999, 5, 2002, 0, 1]


def test_an_item_is_its_id_and_not_its_text() -> None:
    # Known defect elsewhere: an item of equal text counts as a hit.
    index = BM25Index(["Title: red pan", "Title: tape", "Title: red pan"])
    texts, log_probs = merge_outputs(["Title: red pan", "Title: red pan"], [-1.0, -2.0])
    scores = quasi_round_robin(index.scores(texts), log_probs)
    assert ranked(scores, 3).tolist() == [0, 2, 1]
    for target in (0, 2):
        bounds = metrics.rank_bounds(scores, target)
        assert bounds == (1, 2)
        assert metrics.per_user(*[[b] for b in bounds])["recall@1"].tolist() == [0.5]
