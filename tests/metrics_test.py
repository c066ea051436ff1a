"""Metrics against the enumeration of all tie-breaks, and the bootstrap against theory."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ranking

from calrec_jax import metrics
from calrec_jax.errors import CalrecError


def of_rank(rank: int) -> dict[str, float]:
    """The metrics of a known rank, by their definitions."""
    values = {f"recall@{k}": float(rank <= k) for k in (1, 5, 10)}
    values |= {f"ndcg@{k}": (rank <= k) / math.log2(rank + 1) for k in (5, 10)}
    return values | {"mrr": 1 / rank}


def of_all_tie_breaks(scores, target: int) -> dict[str, float]:
    """Means over every order of the items, each of which breaks the ties in its own way."""
    orders = list(itertools.permutations(range(len(scores))))
    totals = dict.fromkeys(metrics.METRICS, 0.0)
    for order in orders:
        ranking = sorted(order, key=lambda i: -scores[i])  # stable: ties stay in `order`
        for name, value in of_rank(1 + ranking.index(target)).items():
            totals[name] += value
    return {name: total / len(orders) for name, total in totals.items()}


def users(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rank bounds, many of them small."""
    low = rng.geometric(0.1, n)
    return low, low + rng.integers(0, 4, n)


tied = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6)


@given(tied, st.data())
@settings(max_examples=60)
def test_values_are_expectations_over_all_tie_breaks(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    low, high = metrics.rank_bounds(np.array(scores), target)
    values = metrics.per_user([low], [high])
    expected = of_all_tie_breaks(scores, target)
    assert {name: v[0] for name, v in values.items()} == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_values_are_means_over_the_ranks_of_a_tie(low, ties):
    ranks = [of_rank(rank) for rank in range(low, low + ties + 1)]
    values = metrics.per_user([low], [low + ties])
    for name in metrics.METRICS:
        expected = math.fsum(r[name] for r in ranks) / len(ranks)
        assert values[name][0] == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("levels", [2, 12, 1000])
def test_catalogues_with_few_or_many_ties_are_the_oracles(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        scores, target = rng.integers(levels, size=40).astype(float), int(rng.integers(40))
        low, high = metrics.rank_bounds(scores, target)
        assert (low, high) == ranking.rank_bounds(scores, target)
        values = {name: v[0] for name, v in metrics.per_user([low], [high]).items()}
        assert values == pytest.approx(ranking.expected_metrics(scores, target), rel=1e-12)


def test_rank_bounds_count_better_and_equal_items():
    scores = np.array([3.0, 1.0, 2.0, 2.0, 0.0, 2.0])
    assert [metrics.rank_bounds(scores, i) for i in range(6)] == [
        (1, 1), (5, 5), (2, 4), (2, 4), (6, 6), (2, 4),
    ]  # fmt: skip
    assert metrics.rank_bounds(np.zeros(7), 3) == (1, 7)


def test_rank_bounds_are_plain_integers():
    assert [type(b) for b in metrics.rank_bounds(np.zeros(3), 1)] == [int, int]


@pytest.mark.parametrize("target", [0, 1])
def test_nan_scores_are_refused(target):
    with pytest.raises(ValueError, match="NaN"):
        metrics.rank_bounds(np.array([math.nan, 1.0]), target)


def test_known_ranks():
    ranks = np.array([1, 2, 5, 6, 10, 11, 4000])
    values = metrics.per_user(ranks, ranks)
    for i, rank in enumerate(ranks):
        got = {name: v[i] for name, v in values.items()}
        assert got == pytest.approx(of_rank(int(rank)), rel=1e-11, abs=0)


def test_a_miss_earns_nothing_but_its_own_reciprocal_rank():
    # Known defect elsewhere: a target outside the first k earns an MRR of 1/(k + 1).
    values = metrics.per_user([11, 5000], [11, 5000])
    np.testing.assert_allclose(values.pop("mrr"), [1 / 11, 1 / 5000], rtol=1e-11)
    for value in values.values():
        assert value.tolist() == [0.0, 0.0]


def test_a_tie_across_the_cut_counts_in_part():
    values = metrics.per_user([9], [12])
    assert values["recall@10"][0] == 0.5
    expected = (1 / math.log2(10) + 1 / math.log2(11)) / 4
    assert values["ndcg@10"][0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("low", "high"), [([0], [1]), ([3], [2]), ([1, 1], [1])])
def test_impossible_rank_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match="1 <= low <= high"):
        metrics.per_user(low, high)


def test_a_summary_has_the_mean_and_both_bounds_of_ties():
    low, high = np.array([1, 3, 11]), np.array([1, 8, 300])
    summary = metrics.summarise(low, high, bootstrap_samples=50)
    assert set(summary) == set(metrics.METRICS)
    for name, entry in summary.items():
        assert entry["value"] == pytest.approx(metrics.per_user(low, high)[name].mean())
        assert entry["tie_low"] == pytest.approx(np.mean([of_rank(int(r))[name] for r in high]))
        assert entry["tie_high"] == pytest.approx(np.mean([of_rank(int(r))[name] for r in low]))
        assert entry["tie_low"] <= entry["value"] <= entry["tie_high"]
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_outputs_are_plain_numbers_in_json():
    bounds = users(np.random.default_rng(0), 20)
    for result in (metrics.summarise(*bounds), metrics.paired(bounds, bounds)):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert all(type(v) is float for entry in result.values() for v in entry.values())


def test_the_seed_decides_the_interval():
    bounds = users(np.random.default_rng(0), 200)
    assert metrics.summarise(*bounds, seed=1) == metrics.summarise(*bounds, seed=1)
    one, two = metrics.summarise(*bounds, seed=1)["mrr"], metrics.summarise(*bounds, seed=2)["mrr"]
    assert one["value"] == two["value"] and one["low"] != two["low"]


@pytest.mark.parametrize("n", [1, 7, 3000])
def test_every_resample_draws_as_many_users_as_there_are(n):
    samples = 1500  # more than one block where n = 3000
    counts = np.concatenate(list(metrics._resamples(n, samples, seed=0)))
    assert counts.shape == (samples, n)
    np.testing.assert_array_equal(counts.sum(axis=1), n)
    assert abs(counts.mean(axis=0) - 1).max() < 6 / math.sqrt(samples)
    if n > 1:
        # A user is left out of a resample with probability (1 - 1/n)^n.
        assert (counts == 0).mean() == pytest.approx((1 - 1 / n) ** n, abs=0.01)


def test_the_interval_is_the_percentiles_of_resampled_means():
    low, high = users(np.random.default_rng(3), 40)
    values = metrics.per_user(low, high)["ndcg@10"]
    rng = np.random.default_rng(99)
    means = values[rng.integers(40, size=(40_000, 40))].mean(axis=1)
    entry = metrics.summarise(low, high, bootstrap_samples=40_000)["ndcg@10"]
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([entry["low"], entry["high"]], expected, atol=0.003)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth = sum(0.1 * 0.9 ** (rank - 1) / rank for rank in range(1, 2000))
    covered = 0
    for trial in range(300):
        ranks = rng.geometric(0.1, 150)
        entry = metrics.summarise(ranks, ranks, bootstrap_samples=300, seed=trial)["mrr"]
        covered += entry["low"] <= truth <= entry["high"]
    assert 0.90 <= covered / 300 <= 0.98


def test_many_users_take_little_memory():
    low, high = users(np.random.default_rng(0), 10_000)
    tracemalloc.start()
    metrics.summarise(low, high, bootstrap_samples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


def test_paired_differences():
    rng = np.random.default_rng(0)
    ours, theirs = users(rng, 300), users(rng, 300)
    result = metrics.paired(ours, theirs, bootstrap_samples=500)
    a, b = metrics.summarise(*ours), metrics.summarise(*theirs)
    for name, entry in result.items():
        assert entry["delta"] == pytest.approx(a[name]["value"] - b[name]["value"], abs=1e-12)
        assert entry["low"] <= entry["delta"] <= entry["high"]
    swapped = metrics.paired(theirs, ours, bootstrap_samples=500)
    assert swapped["mrr"]["low"] == pytest.approx(-result["mrr"]["high"], abs=1e-12)


def test_a_method_does_not_differ_from_itself():
    bounds = users(np.random.default_rng(0), 50)
    for entry in metrics.paired(bounds, bounds).values():
        assert entry == {"delta": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_users_takes_out_what_they_share():
    rng = np.random.default_rng(0)
    low, _ = users(rng, 400)
    ours, theirs = (low, low), (low + (rng.random(400) < 0.2), low + 1)
    entry = metrics.paired(ours, theirs)["mrr"]
    alone = metrics.summarise(*ours)["mrr"]
    assert entry["high"] - entry["low"] < (alone["high"] - alone["low"]) / 1.2


def test_other_users_cannot_be_paired():
    with pytest.raises(ValueError, match="1 users of ours and 2 of theirs"):
        metrics.paired(([1], [1]), ([1, 2], [1, 2]))


def test_no_users_or_no_samples_are_refused():
    with pytest.raises(CalrecError, match="no users to measure"):
        metrics.summarise([], [])
    with pytest.raises(CalrecError, match="no users to measure"):
        metrics.paired(([], []), ([], []))
    with pytest.raises(CalrecError, match="bootstrap_samples is 0"):
        metrics.summarise([1], [1], bootstrap_samples=0)
