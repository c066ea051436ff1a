"""Slices of users by hand, and that each slicing puts every user somewhere."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.eval.slices import history_lengths, slice_of, slices
from calrec_jax.report import charts
from calrec_jax.text.items import UserSequence

DAY = 86_400
TRAINED = {"toys": {"a", "b"}, "games": {"c"}}
ORDER = {
    "target": ["warm", "cold"],
    "purchase": ["new", "repeat"],
    "history": ["1-2", "3-4", "5-9", "10-19", "20-49", "50+"],
    "day": ["same_day", "later_day", "unknown"],
    "domain": ["games", "toys"],
}


def user(
    items: str, timestamps: tuple[int, ...] | None = None, domain: str = "toys"
) -> UserSequence:
    """A sequence of items that are a letter each; the last is the target."""
    return UserSequence("u", domain, tuple(items), timestamps)


def of(slicing: str, *args: str | tuple[int, ...], **kwargs: str) -> str:
    return slice_of(user(*args, **kwargs), TRAINED)[slicing]


def with_history(events: int) -> UserSequence:
    return user("a" * events + "b")


@st.composite
def many_users(draw: Callable[..., Any]) -> list[UserSequence]:
    def one() -> UserSequence:
        items = draw(st.text("abcd", min_size=2, max_size=60))
        times = st.lists(st.integers(0, 5 * DAY), min_size=len(items), max_size=len(items))
        timestamps = draw(st.none() | times.map(sorted).map(tuple))
        return user(items, timestamps, draw(st.sampled_from(["toys", "games"])))

    return [one() for _ in range(draw(st.integers(0, 8)))]


def test_a_target_is_warm_where_its_own_domain_has_trained_it() -> None:
    assert (of("target", "ab"), of("target", "ac")) == ("warm", "cold")
    assert of("target", "ac", domain="games") == "warm"
    assert of("target", "ca", domain="games") == "cold"
    assert of("target", "zzz") == "cold"  # the history does not count


def test_a_purchase_is_repeated_where_the_history_has_it() -> None:
    assert (of("purchase", "abc"), of("purchase", "abca"), of("purchase", "aa")) == (
        "new", "repeat", "repeat",
    )  # fmt: skip


def test_histories_by_their_events() -> None:
    edges = (1, 2, 3, 4, 5, 9, 10, 19, 20, 49, 50, 1000)
    found = [slice_of(with_history(n), TRAINED)["history"] for n in edges]
    assert found == [name for name in ORDER["history"] for _ in range(2)]


def test_days_are_those_of_utc() -> None:
    assert of("day", "abc", (0, 0, 0)) == "same_day"
    assert of("day", "abc", (0, DAY, 2 * DAY - 1)) == "same_day"
    assert of("day", "abc", (0, DAY - 1, DAY)) == "later_day"
    assert of("day", "abc", (0, 0, 40 * DAY)) == "later_day"
    assert of("day", "abc", (-DAY, -1, 0)) == "later_day"  # of 1969
    assert of("day", "abc") == "unknown"


def test_a_user_has_a_slice_of_each_slicing() -> None:
    assert slice_of(user("abca", (1, 2, 3, DAY)), TRAINED) == {
        "target": "warm",
        "purchase": "repeat",
        "history": "3-4",
        "day": "later_day",
        "domain": "toys",
    }


def test_slices_hold_the_places_of_their_users() -> None:
    users = [
        user("ab", (0, 1)),
        user("abcda", (0, 1, 2, 3, DAY)),
        user("aab", domain="games"),
        user("bbz", (0, DAY, DAY)),
    ]
    found = slices(users, TRAINED)
    assert {name: {k: v.tolist() for k, v in of.items()} for name, of in found.items()} == {
        "target": {"warm": [0, 1], "cold": [2, 3]},
        "purchase": {"new": [0, 2, 3], "repeat": [1]},
        "history": {"1-2": [0, 2, 3], "3-4": [1]},
        "day": {"same_day": [0, 3], "later_day": [1], "unknown": [2]},
        "domain": {"games": [2], "toys": [0, 1, 3]},
    }


def test_without_timestamps_all_days_are_unknown() -> None:
    found = slices([user("ab"), user("cd")], TRAINED)
    assert {name: places.tolist() for name, places in found["day"].items()} == {"unknown": [0, 1]}


@given(many_users())
def test_each_slicing_has_every_user_once_and_in_order(users: list[UserSequence]) -> None:
    found = slices(users, TRAINED)
    assert list(found) == list(ORDER)
    for slicing, of_slicing in found.items():
        assert list(of_slicing) == [name for name in ORDER[slicing] if name in of_slicing]
        for name, places in of_slicing.items():
            assert places.dtype == np.int64 and len(places)
            assert (np.diff(places) > 0).all()
            assert all(slice_of(users[place], TRAINED)[slicing] == name for place in places)
        joined = [place for places in of_slicing.values() for place in places.tolist()]
        assert sorted(joined) == list(range(len(users)))


def test_no_users_are_in_no_slice() -> None:
    assert slices([], {}) == {name: {} for name in ORDER}


def test_a_domain_must_have_been_trained() -> None:
    with pytest.raises(KeyError, match="games"):
        slice_of(user("ab", domain="games"), {"toys": {"a"}})


def test_a_histogram_of_short_histories_has_a_bin_for_each_length() -> None:
    users = [with_history(n) for n in (1, 1, 3, 4, 4, 4)]
    assert history_lengths(users) == {"edges": [1, 2, 3, 4, 5], "counts": [2, 0, 1, 3]}
    assert history_lengths([with_history(20)])["edges"] == list(range(1, 22))


def test_a_histogram_of_long_histories_has_wider_bins() -> None:
    users = [with_history(n) for n in (1, 2, 3, 40, 41)]
    edges = [*range(1, 44, 3)]
    assert history_lengths(users) == {"edges": edges, "counts": [3, *[0] * 12, 2]}


def test_a_histogram_of_nobody() -> None:
    assert history_lengths([]) == {"edges": [1, 2], "counts": [0]}


@given(st.lists(st.integers(1, 3000), max_size=20))
def test_histograms_count_every_user_and_can_be_drawn(lengths: list[int]) -> None:
    found = history_lengths([with_history(n) for n in lengths])
    edges, counts = found["edges"], found["counts"]
    assert len(counts) <= 20 and len(edges) == len(counts) + 1
    assert {type(n) for n in edges + counts} == {int}
    assert len(set(np.diff(edges))) == 1
    expected = [sum(a <= n < b for n in lengths) for a, b in zip(edges, edges[1:], strict=False)]
    assert counts == expected and sum(counts) == len(lengths)
    ET.fromstring(charts.bar_chart("Events of histories", edges, counts))
