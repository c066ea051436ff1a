"""Metrics against the enumeration of all tie-breaks, and the bootstrap against theory."""

from __future__ import annotations

import collections
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
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


def summary(low, high, **bootstrap) -> dict[str, dict[str, float]]:
    """The summary of one model."""
    return metrics.summarise({"model": (low, high)}, **bootstrap)["model"]


def difference(ours, baseline, **bootstrap) -> dict[str, dict[str, float]]:
    """The differences from one baseline."""
    return metrics.paired(ours, {"other": baseline}, **bootstrap)["other"]


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
    found = summary(low, high, bootstrap_samples=50)
    assert set(found) == set(metrics.METRICS)
    for name, entry in found.items():
        assert entry["value"] == pytest.approx(metrics.per_user(low, high)[name].mean())
        assert entry["tie_low"] == pytest.approx(np.mean([of_rank(int(r))[name] for r in high]))
        assert entry["tie_high"] == pytest.approx(np.mean([of_rank(int(r))[name] for r in low]))
        assert entry["tie_low"] <= entry["value"] <= entry["tie_high"]
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_outputs_are_plain_numbers_in_json():
    bounds = users(np.random.default_rng(0), 20)
    both = {"one": bounds, "two": bounds}
    for result in (metrics.summarise(both), metrics.paired(bounds, both)):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        for entry in (entry for of in result.values() for entry in of.values()):
            assert all(type(v) is float for v in entry.values())


def test_the_seed_decides_the_interval():
    bounds = users(np.random.default_rng(0), 200)
    assert summary(*bounds, seed=1) == summary(*bounds, seed=1)
    one, two = summary(*bounds, seed=1)["mrr"], summary(*bounds, seed=2)["mrr"]
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
    entry = summary(low, high, bootstrap_samples=40_000)["ndcg@10"]
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([entry["low"], entry["high"]], expected, atol=0.003)


def test_models_share_the_resamples_and_keep_their_own_results(monkeypatch):
    rng, samples, n = np.random.default_rng(0), 1500, 3000  # more than one block
    models = {name: users(rng, n) for name in ("first", "second", "third")}
    expected = {
        name: summary(*bounds, bootstrap_samples=samples) for name, bounds in models.items()
    }
    deltas = {
        name: difference(models["second"], bounds, bootstrap_samples=samples)
        for name, bounds in models.items()
    }
    drawn, resamples = [], metrics._resamples
    monkeypatch.setattr(metrics, "_resamples", lambda *a: drawn.append(a) or resamples(*a))
    found = metrics.summarise(models, bootstrap_samples=samples)
    assert list(found) == list(models) and drawn == [(n, samples, 0)]
    found_deltas = metrics.paired(models["second"], models, bootstrap_samples=samples)
    assert list(found_deltas) == list(models) and len(drawn) == 2
    for name in models:
        for metric in metrics.METRICS:
            assert found[name][metric] == pytest.approx(expected[name][metric], rel=1e-12)
            assert found_deltas[name][metric] == pytest.approx(
                deltas[name][metric], rel=1e-12, abs=1e-15
            )


def test_resamples_are_those_of_the_seed():
    rng, samples, n = np.random.default_rng(7), 200, 30
    models = {"first": users(rng, n), "second": users(rng, n)}
    drawn = np.random.default_rng(5).integers(n, size=(samples, n))
    values = {name: metrics.per_user(*bounds) for name, bounds in models.items()}
    found = metrics.summarise(models, bootstrap_samples=samples, seed=5)
    deltas = metrics.paired(models["first"], models, bootstrap_samples=samples, seed=5)
    for name, of in values.items():
        for metric in metrics.METRICS:
            for entry, value in (
                (found[name][metric], of[metric]),
                (deltas[name][metric], values["first"][metric] - of[metric]),
            ):
                low, high = np.percentile(value[drawn].mean(axis=1), [2.5, 97.5])
                assert (entry["low"], entry["high"]) == pytest.approx((low, high), abs=1e-12)


COVERED = ("recall@10", "ndcg@10", "mrr")


def true_means(bounds) -> dict[str, float]:
    """The means of users' metrics, each by the definition and over all ranks of the tie."""
    totals = dict.fromkeys(metrics.METRICS, 0.0)
    for low, high in zip(*(bound.tolist() for bound in bounds), strict=True):
        for rank in range(low, high + 1):
            for name, value in of_rank(rank).items():
                totals[name] += value / (high - low + 1)
    return {name: total / len(bounds[0]) for name, total in totals.items()}


def covering(trials: int, seed: int) -> collections.Counter:
    """How many samples of a population have an interval that contains the population's value.

    Keys are (metric, "value") and (metric, "delta"). Each sample has 200 of 2,000 users whose
    metrics are known, many of them with ties; the two models are similar on the same users.
    """
    rng, size = np.random.default_rng(seed), 2000
    ours = users(rng, size)
    low = np.maximum(1, ours[0] + rng.integers(-3, 6, size))
    baseline = low, low + rng.integers(0, 4, size)
    true, true_of_baseline = true_means(ours), true_means(baseline)
    found = collections.Counter()
    for trial in range(trials):
        drawn = rng.integers(size, size=200)
        sample, other = ([bound[drawn] for bound in model] for model in (ours, baseline))
        values = summary(*sample, bootstrap_samples=1000, seed=trial)
        deltas = difference(sample, other, bootstrap_samples=1000, seed=trial)
        for m in COVERED:
            delta = true[m] - true_of_baseline[m]
            found[m, "value"] += values[m]["low"] <= true[m] <= values[m]["high"]
            found[m, "delta"] += deltas[m]["low"] <= delta <= deltas[m]["high"]
    return found


def test_intervals_cover_the_true_value_as_often_as_they_should():
    trials = 500
    fewest, most = scipy.stats.binom.interval(0.99, trials, 0.95)
    found = covering(trials, seed=0)
    assert len(found) == 2 * len(COVERED)
    for what, covered in found.items():
        assert fewest <= covered <= most, what


@pytest.mark.parametrize(("models", "most"), [(1, 150e6), (10, 200e6)])
def test_many_users_take_little_memory(models, most):
    bounds = users(np.random.default_rng(0), 10_000)
    tracemalloc.start()
    metrics.summarise(dict.fromkeys(range(models), bounds), bootstrap_samples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most


def test_paired_differences():
    rng = np.random.default_rng(0)
    ours, baseline = users(rng, 300), users(rng, 300)
    result = difference(ours, baseline, bootstrap_samples=500)
    a, b = summary(*ours), summary(*baseline)
    for name, entry in result.items():
        assert entry["delta"] == pytest.approx(a[name]["value"] - b[name]["value"], abs=1e-12)
        assert entry["low"] <= entry["delta"] <= entry["high"]
    swapped = difference(baseline, ours, bootstrap_samples=500)
    assert swapped["mrr"]["low"] == pytest.approx(-result["mrr"]["high"], abs=1e-12)


def test_a_method_does_not_differ_from_itself():
    bounds = users(np.random.default_rng(0), 50)
    for entry in difference(bounds, bounds).values():
        assert entry == {"delta": 0.0, "low": 0.0, "high": 0.0}


def test_pairing_removes_the_variance_that_models_share():
    rng = np.random.default_rng(0)
    low, _ = users(rng, 400)
    ours, baseline = (low, low), (low + (rng.random(400) < 0.2), low + 1)
    entry = difference(ours, baseline)["mrr"]
    alone = summary(*ours)["mrr"]
    assert entry["high"] - entry["low"] < (alone["high"] - alone["low"]) / 1.2


def test_other_users_cannot_be_paired():
    with pytest.raises(ValueError, match="1 users of ours and 2 of other"):
        difference(([1], [1]), ([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="2 users of ours and 1 of other"):
        difference(([1, 2], [1, 2]), ([1], [1]))


def test_other_users_cannot_be_resampled_together():
    with pytest.raises(ValueError, match="same number of users: {'a': 1, 'b': 2}"):
        metrics.summarise({"a": ([1], [1]), "b": ([1, 2], [1, 2])})


def test_no_models_have_no_results():
    assert metrics.summarise({}) == {}
    assert metrics.paired(([1, 2], [1, 3]), {}) == {}


def test_no_users_or_no_samples_are_refused():
    with pytest.raises(CalrecError, match="no users to measure"):
        summary([], [])
    with pytest.raises(CalrecError, match="no users to measure"):
        difference(([], []), ([], []))
    with pytest.raises(CalrecError, match="bootstrap_samples is 0"):
        summary([1], [1], bootstrap_samples=0)
    with pytest.raises(CalrecError, match="bootstrap_samples is 0"):
        difference(([1], [1]), ([1], [1]), bootstrap_samples=0)
