"""Exact dense retrieval against sorting all cosines in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax import metrics
from calrec_jax.decode.dense import DenseIndex, normalised
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval.fusion import without_seen
from calrec_jax.retrieval.round_robin import ranked

# Unit vectors along axes and halves of four of them: cosines are exact in any order of summing.
EXACT = np.array(
    [
        [1, 0, 0, 0],
        [0, 2, 0, 0],
        [1, 1, 1, 1],
        [1, 1, -1, -1],
        [0, 0, 0, 0],
        [-3, 0, 0, 0],
        [2, 2, 2, 2],
    ],
    np.float32,
)
# Few sizes, because programs are compiled for each.
rows = st.sampled_from([1, 5, 16]).flatmap(
    lambda n: st.lists(st.integers(0, len(EXACT) - 1), min_size=n, max_size=n)
)
best = st.sampled_from([1, 4, 25])
blocks = st.sampled_from([1, 3, 4, 7, 100])


@given(rows, best, blocks, st.data())
def test_ties_are_in_the_catalogues_order_whatever_the_block(items, k, block, data):
    vectors, queries = EXACT[items], EXACT[[5, 2, 4]]
    cosines = normalised(queries) @ normalised(vectors).T
    index = DenseIndex(vectors, block=block)
    scores, places = index.top_k(queries, k)
    for row, got, at in zip(cosines, scores, places, strict=True):
        assert at.tolist() == ranked(row, k).tolist()
        assert got.tolist() == row[at].tolist()

    targets = data.draw(st.lists(st.integers(0, len(items) - 1), min_size=3, max_size=3))
    low, high = index.rank_bounds(queries, targets)
    expected = [metrics.rank_bounds(row, t) for row, t in zip(cosines, targets, strict=True)]
    assert [*zip(low.tolist(), high.tolist(), strict=True)] == expected


@given(rows, best, blocks, st.data())
def test_excluded_items_are_last_whatever_the_block(items, k, block, data):
    places = st.lists(st.integers(0, len(items) - 1), max_size=2 * len(items))
    excluded = data.draw(st.lists(places, min_size=3, max_size=3))
    vectors, queries = EXACT[items], EXACT[[5, 2, 4]]
    rows = without_seen(normalised(queries) @ normalised(vectors).T, excluded, "exclude")
    index = DenseIndex(vectors, block=block)
    scores, places = index.top_k(queries, k, excluded)
    assert scores.shape == places.shape == (3, min(k, len(items)))
    for row, got, at in zip(rows, scores, places, strict=True):
        left = min(k, np.isfinite(row).sum())
        assert at[:left].tolist() == ranked(row, k)[:left].tolist()
        assert got[:left].tolist() == row[at[:left]].tolist()
        assert np.isneginf(got[left:]).all()

    targets = data.draw(st.lists(st.integers(0, len(items) - 1), min_size=3, max_size=3))
    low, high = index.rank_bounds(queries, targets, excluded)
    expected = [metrics.rank_bounds(row, t) for row, t in zip(rows, targets, strict=True)]
    assert [*zip(low.tolist(), high.tolist(), strict=True)] == expected


def test_an_excluded_target_ties_with_all_that_are_excluded():
    index = DenseIndex(EXACT, block=4)  # the second block is padded
    everything = [[*range(7)]]
    assert [*np.concatenate(index.rank_bounds(EXACT[:1], [6], [[0, 6, 0]]))] == [6, 7]
    assert [*np.concatenate(index.rank_bounds(EXACT[:1], [3], everything))] == [1, 7]
    assert np.isneginf(index.top_k(EXACT[:1], 3, everything)[0]).all()


def test_zeros_of_either_sign_tie():
    # 1 x -0 is -0.
    scores, places = DenseIndex(np.array([[1], [0], [-0.0], [0]])).top_k(np.array([[-1]]), 4)
    assert (scores.tolist(), places.tolist()) == ([[0, 0, 0, -1]], [[1, 2, 3, 0]])


def test_nothing_excluded_is_as_none(random):
    items, queries = random
    index = DenseIndex(items, block=96)
    for kind in ("top_k", "rank_bounds"):
        argument = 9 if kind == "top_k" else [0, 57, 150, 199, 900]
        for got, expected in zip(
            getattr(index, kind)(queries, argument, [[]] * 5),
            getattr(index, kind)(queries, argument),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("excluded", "message"),
    [([[0]], "2 queries for 1 lists"), ([[0], [7]], "excluded items"), ([[-1], []], "excluded")],
)
def test_excluded_items_that_are_none_are_refused(excluded, message):
    with pytest.raises(ValueError, match=message):
        DenseIndex(EXACT).top_k(EXACT[:2], 1, excluded)


@pytest.fixture(scope="module")
def random():
    """(items, of which the last 200 are equal to the first 200; queries)."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(800, 48)).astype(np.float32)
    return np.concatenate([items, items[:200]]), rng.normal(size=(5, 48)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_best_are_those_of_all_cosines(random, dtype):
    items, queries = random
    scores, places = DenseIndex(items, dtype=dtype, block=96).top_k(queries, 100)
    assert (scores.dtype, places.dtype) == (np.float32, np.int32)
    cosines = normalised(queries) @ normalised(items).T
    rounding = {"float32": 1e-6, "bfloat16": 2e-3}[dtype]
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, places, 1), atol=rounding)
    np.testing.assert_allclose(scores, -np.sort(-cosines)[:, :100], atol=rounding)
    assert all(len(set(row)) == 100 for row in places.tolist())


def test_bfloat16_is_summed_in_float32(random):
    # Sums in bfloat16 of these would be off by hundredths.
    items, queries = random
    stored = np.asarray(normalised(items).astype("bfloat16"), np.float64)
    scores, places = DenseIndex(items, dtype="bfloat16").top_k(queries, 10)
    cosines = normalised(queries) @ stored.T
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, places, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [96, 1000])
def test_scores_on_the_host_are_those_of_the_best(random, dtype, block):
    items, queries = random
    index = DenseIndex(items, dtype=dtype, block=block)
    scores = index.scores(queries)
    assert (scores.dtype, scores.shape) == (np.float32, (5, 1000))
    best, places = index.top_k(queries, 1000)
    np.testing.assert_array_equal(np.take_along_axis(scores, places, 1), best)
    assert places.tolist() == [ranked(row, 1000).tolist() for row in scores]


def test_no_query_finds_nothing(random):
    index, none = DenseIndex(random[0]), np.zeros((0, 48), np.float32)
    assert index.scores(none).shape == (0, 1000)
    assert [found.shape for found in index.top_k(none, 7)] == [(0, 7), (0, 7)]
    assert [found.shape for found in index.top_k(none, 7, [])] == [(0, 7), (0, 7)]
    assert [found.shape for found in index.rank_bounds(none, [])] == [(0,), (0,)]


def test_as_many_queries_as_fit_a_power_of_two_take_one_program(random, caplog):
    items, queries = random[0], np.tile(random[1], (2, 1))
    index = DenseIndex(items, block=500)

    def search(n: int, excluded: int) -> int:
        """The number of programs that are compiled for it."""
        caplog.clear()
        with jax.log_compiles():
            index.top_k(queries[:n], 11, [[*range(excluded)]] * n)
            index.rank_bounds(queries[:n], [3] * n, [[*range(excluded)]] * n)
            index.scores(queries[:n])
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    assert search(8, 4)
    assert [search(5, 3), search(6, 4), search(7, 3)] == [0, 0, 0]
    assert search(9, 4)
    assert search(8, 5)


def test_any_block_gives_the_same(random):
    items, queries = random
    expected = DenseIndex(items, block=1000).top_k(queries, 300)
    for block in (7, 96, 999):
        scores, places = DenseIndex(items, block=block).top_k(queries, 300)
        np.testing.assert_array_equal(places, expected[1])
        np.testing.assert_allclose(scores, expected[0], rtol=0, atol=1e-6)


def test_equal_vectors_tie_in_different_blocks(random):
    items, queries = random
    index = DenseIndex(items, block=96)
    targets = np.array([0, 57, 150, 199, 900])
    low, high = index.rank_bounds(queries, targets)
    twins = np.where(targets < 200, targets + 800, targets - 800)
    assert [*zip(*index.rank_bounds(queries, twins), strict=True)] == [*zip(low, high, strict=True)]
    assert (high == low + 1).all()


def test_the_length_of_a_vector_does_not_matter(random):
    items, queries = random
    expected = DenseIndex(items).top_k(queries, 20)[1]
    got = DenseIndex(items * np.linspace(0.5, 9, 1000)[:, None]).top_k(7 * queries, 20)[1]
    np.testing.assert_array_equal(got, expected)


def test_more_than_there_are_gives_all():
    scores, places = DenseIndex(EXACT, block=3).top_k(EXACT[:1], 100)
    assert scores.shape == places.shape == (1, len(EXACT)) == (1, len(DenseIndex(EXACT)))
    assert places[0].tolist() == [0, 2, 3, 6, 1, 4, 5]


@pytest.mark.parametrize(
    ("vectors", "dtype", "message"),
    [
        (EXACT[:0], "float32", "no vectors"),
        (EXACT, "float16", "not as 'float16'"),
        (np.full((2, 2), np.nan), "float32", "diverged"),
        (np.full((2, 2), np.inf), "float32", "diverged"),
    ],
)
def test_what_cannot_be_searched_is_refused(vectors, dtype, message):
    with pytest.raises(CalrecError, match=message):
        DenseIndex(vectors, dtype=dtype)


def test_a_query_that_is_not_finite_is_refused():
    with pytest.raises(CalrecError, match="diverged"):
        DenseIndex(EXACT).top_k(np.full((1, 4), np.nan), 2)


@pytest.mark.parametrize("targets", [[0], [0, 7], [-1, 0]])
def test_targets_that_are_no_items_are_refused(targets):
    with pytest.raises(ValueError, match="targets"):
        DenseIndex(EXACT).rank_bounds(EXACT[:2], targets)
