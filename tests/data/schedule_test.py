"""Rows of a run by their number alone: epochs are complete, and rates are kept."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from data.examples_test import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from calrec_jax.batch import BatchSpec
from calrec_jax.data.schedule import DomainRows, Schedule

SPEC = BatchSpec(1, row_length=150, max_segments=3, item_length=14, max_loss_tokens=40)
SINGLE = BatchSpec(1, row_length=150, max_segments=1, item_length=14, max_loss_tokens=14)
SEQUENCES = st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=9), min_size=1, max_size=25)


def epoch(rows: DomainRows, number: int) -> list[list[tuple[int, int]]]:
    return [rows.row(number * rows.per_epoch + place) for place in range(rows.per_epoch)]


@settings(deadline=None, max_examples=40)
@given(SEQUENCES, st.sampled_from(["last", "random", "all"]), st.sampled_from([SPEC, SINGLE]))
def test_every_epoch_has_every_example_once_within_the_capacities(sequences, targets, spec):
    of = examples(sequences, targets)
    rows = DomainRows(of, spec, seed=0)
    for number in (0, 1, 5):
        found = epoch(rows, number)
        held = [span for row in found for span in row]
        assert len(held) == rows.examples_per_epoch
        if targets != "random":
            spans = of.spans(number)
            assert sorted(held) == sorted(zip(spans.start, spans.end, strict=True))
        else:  # one of each sequence
            firsts = np.searchsorted(of.histories.splits, [end - 1 for _, end in held], "right") - 1
            assert sorted(firsts.tolist()) == list(range(len(sequences)))
        for row in found:
            made = [of.example(*span) for span in row]
            assert len(made) <= spec.max_segments
            assert sum(map(len, made)) <= spec.row_length
            assert sum(len(example.targets) for example in made) <= spec.max_loss_tokens


def test_epochs_are_in_different_orders_and_equally_long_examples_change_rows():
    of = examples([[n % 2 * 7, 7, n % 9] for n in range(60)])
    rows = DomainRows(of, SPEC, seed=0)
    first, second = epoch(rows, 0), epoch(rows, 1)
    assert first != second
    together = [{frozenset(row) for row in found} for found in (first, second)]
    assert len(together[0] & together[1]) < len(together[0]) / 2


def test_the_seed_decides_and_nothing_else():
    of = examples([[n % 9, (n + 1) % 9, (n * n) % 9] for n in range(40)], "random")
    one, same, other = (DomainRows(of, SPEC, seed) for seed in (3, 3, 4))
    assert one.row(9999) == same.row(9999)
    assert epoch(one, 2) == epoch(same, 2) != epoch(other, 2)


def test_rows_are_found_far_away():
    rows = DomainRows(examples([[0, 1, 2], [3, 4], [5, 6, 7, 8]]), SINGLE, seed=0)
    held = [rows.row(10**12 * rows.per_epoch + place) for place in range(rows.per_epoch)]
    assert sorted(span for row in held for span in row) == [(0, 3), (3, 5), (5, 9)]


def test_random_targets_fill_most_of_their_rows():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 9, rng.integers(2, 12)).tolist() for _ in range(400)]
    rows = DomainRows(examples(sequences, "random"), SPEC, seed=0)
    for number in range(12):
        empty = sum(not row for row in epoch(rows, number))
        assert empty < 0.05 * rows.per_epoch


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 3))
def test_a_period_has_each_domains_rows_once(counts, period):
    schedule = Schedule(counts, seed=1)
    drawn = [schedule.row(period * schedule.period + i) for i in range(schedule.period)]
    for domain, count in enumerate(counts):
        ranks = [rank for d, rank in drawn if d == domain]
        assert ranks == list(range(period * count, (period + 1) * count))


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(0, 200))
def test_what_was_taken_is_counted(counts, number):
    schedule = Schedule(counts, seed=1)
    drawn = collections.Counter(schedule.row(i)[0] for i in range(number))
    assert schedule.taken(number).tolist() == [drawn[d] for d in range(len(counts))]


@pytest.mark.parametrize("rates", [[1.0, 3.0], [0.123, 4.56, 0.9], [1e-9, 1.0]])
def test_rates_are_kept(rates):
    schedule = Schedule.at_rates(rates, seed=0)
    shares = schedule.counts / schedule.period
    np.testing.assert_allclose(shares, np.array(rates) / sum(rates), atol=2e-5)
    assert schedule.counts.min() >= 1


def test_whole_numbers_of_rows_stay_in_proportion():
    schedule = Schedule.at_rates([12, 7], seed=0)
    assert schedule.counts[0] * 7 == schedule.counts[1] * 12 and schedule.period >= 2**16
