"""Statistics: by hand, and the same however the data is divided."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.preparation import sequences, statistics
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.preparation.statistics import ItemStatistics, UserStatistics
from calrec_jax.data.sources import Event


def user(name, items, times=None, rules=Rules()):
    times = times or [86_400 * n for n in range(1, len(items) + 1)]
    events = [
        (n, Event(name, item, n, t)) for n, (item, t) in enumerate(zip(items, times, strict=True))
    ]
    return sequences.make_user("d", name, events, rules)


def added(*users) -> UserStatistics:
    made = UserStatistics()
    for one in users:
        made.add(one)
    return made


DAY = 86_400
USERS = (
    user("u", "abcde", [DAY, DAY, 2 * DAY, None, 3 * DAY]),
    user("v", "aabc", [4 * DAY, 5 * DAY, 6 * DAY, 6 * DAY]),
    user("w", "ab", [1, 9 * DAY]),
)


def test_users_by_hand():
    made = added(*USERS)
    assert made.result() == {
        "users": 2,
        "events": 8,
        "examples": {"train": 1, "validation": 2, "test": 2},
        "repeats_merged": 1,
        "users_too_short": 1,
        "users_without_example": 0,
        "events_unused": 0,
        "lengths": {"mean": 4.0, "median": 3, "p90": 5, "max": 5},
        "same_time": 2 / 4,  # of u: ab, bc; of v: ab, bc
        "same_time_target_share": 1.0,  # v's; u's times are not all known
        "time": {"first": "1970-01-02", "last": "1970-01-07"},
    }


def test_times_are_the_same_to_the_nanosecond():
    parts = [0, 0, 1, 1]
    events = [(n, Event("u", "abcd"[n], None, DAY, part)) for n, part in enumerate(parts)]
    result = added(sequences.make_user("d", "u", events, Rules())).result()
    assert (result["same_time"], result["same_time_target_share"]) == (2 / 3, 1.0)
    result = added(sequences.make_user("d", "u", events[:3], Rules())).result()
    assert (result["same_time"], result["same_time_target_share"]) == (1 / 2, 0.0)
    rules = Rules(split="temporal", validation_from=DAY - 1, test_from=DAY, min_events=2)
    early = (9, Event("u", "x", None, DAY - 2))
    result = added(sequences.make_user("d", "u", [early, *events], rules)).result()
    assert result["same_time_target_share"] == 0.0  # the target is a, and not the last event


def test_of_nobody_there_is_nothing_to_tell():
    result = UserStatistics().result()
    assert result["users"] == 0 and result["examples"] == {"train": 0, "validation": 0, "test": 0}
    assert result["lengths"] == {"mean": None, "median": None, "p90": None, "max": None}
    assert result["same_time"] is None and result["same_time_target_share"] is None
    assert result["time"] == {"first": None, "last": None}
    assert ItemStatistics().result()["missing_share"]["title"] is None
    none = {"validation": 0, "test": 0}
    assert set(statistics.cold_target_shares(none, none).values()) == {None}


@pytest.mark.parametrize(
    ("lengths", "median", "p90"),
    [
        ({7: 1}, 7, 7),
        ({3: 9, 8: 1}, 3, 3),
        ({3: 8, 8: 2}, 3, 8),
        ({3: 1, 4: 1}, 3, 4),
        ({3: 1, 4: 2, 90: 1}, 4, 90),
    ],
)
def test_percentiles_are_lengths_that_are_there(lengths, median, p90):
    described = statistics.describe_lengths(lengths)
    assert (described["median"], described["p90"]) == (median, p90)


def test_checksums_are_sums_of_what_anyone_can_compute():
    def digest(record):
        text = json.dumps(record, separators=(",", ":"), sort_keys=True).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")

    ids, days = ["a", "b", "ü"], [DAY, 2 * DAY, 3 * DAY]
    made = added(user("u", "abü"), user("v", "abü", [None] * 3))
    total = digest(["u", ids, days]) + digest(["v", ids, None])
    assert made.checksums()["test"] == f"{total % 2**128:032x}"
    assert made.checksums()["train"] == "0" * 32
    items = ItemStatistics()
    items.add("ü", {"title": "T", "brand": "B"})
    assert items.checksums() == {"items": f"{digest(['ü', {'brand': 'B', 'title': 'T'}]):032x}"}


def test_items_by_hand():
    items = ItemStatistics()
    for item_id, fields in {"a": {"title": "T"}, "b": {"title": "T", "year": "1999"}}.items():
        items.add(item_id, fields)
    assert items.result() == {
        "items": 2,
        "missing_share": {"title": 0.0, "category": 1.0, "brand": 1.0, "price": 1.0, "year": 0.5},
    }


def test_cold_targets_are_shares_of_the_targets():
    shares = statistics.cold_target_shares(
        {"validation": 1, "test": 3}, {"validation": 4, "test": 4}
    )
    assert shares == {"cold_target_share": 0.75, "cold_validation_target_share": 0.25}


histories = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | st.integers(1, 99)), min_size=1, max_size=7
)


@given(st.lists(histories, max_size=6), st.data())
def test_parts_merge_in_any_order(made_of, data):
    users = [user(f"u{n}", *zip(*history, strict=True)) for n, history in enumerate(made_of)]
    parts = [added(), added(), added()]
    for one in users:
        data.draw(st.sampled_from(parts)).add(one)
    merged = UserStatistics()
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    assert merged.result() == added(*users).result()
    assert merged.checksums() == added(*users).checksums()


@given(st.lists(st.sampled_from([{"title": "T"}, {"brand": "B"}, {"x": "y", "title": "T"}])))
def test_parts_of_items_merge(fields):
    whole, parts = ItemStatistics(), [ItemStatistics(), ItemStatistics()]
    for n, one in enumerate(fields):
        whole.add(str(n), one)
        parts[n % 2].add(str(n), one)
    parts[1].merge(parts[0])
    assert parts[1].result() == whole.result() and parts[1].checksums() == whole.checksums()
