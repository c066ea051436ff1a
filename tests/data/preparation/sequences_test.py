"""The rules, each by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.preparation import sequences
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.sources import Event
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import UserSequence

KEEP = Rules(merge_repeats=False)
TEMPORAL = Rules(split="temporal", validation_from=30, test_from=50, min_events=2)


def made(items, rules=Rules(), times=None, orders=None):
    """The user that the rules make of one who buys the letters of `items`, in the file's order."""
    times = times or range(0, 10 * len(items), 10)
    orders = orders or [None] * len(items)
    bought = [Event("u", *event) for event in zip(items, orders, times, strict=True)]
    events = [(sequences.position(0, n), event) for n, event in enumerate(bought, start=1)]
    return sequences.make_user("d", "u", events, rules)


def splits(*args, **kwargs) -> dict[str, str]:
    """The same, as {split: letters}."""
    return {k: "".join(s.item_ids) for k, s in made(*args, **kwargs).splits.items()}


def test_leave_one_out_by_hand():
    assert made("abcde").splits == {
        "train": UserSequence("u", "d", ("a", "b", "c"), (0, 10, 20)),
        "validation": UserSequence("u", "d", tuple("abcd"), (0, 10, 20, 30)),
        "test": UserSequence("u", "d", tuple("abcde"), (0, 10, 20, 30, 40)),
    }


def test_a_user_with_four_events_trains_on_one_pair_and_with_three_on_none():
    assert splits("abcd") == {"train": "ab", "validation": "abc", "test": "abcd"}
    assert splits("abc") == {"validation": "ab", "test": "abc"}


def test_events_are_sorted_by_order_else_by_time():
    assert splits("dcabe", times=[2, 1, 3, 4, 0])["test"] == "ecdab"
    assert splits("dcabe", times=[2, 1, 3, 4, 0], orders=[5, 4, 3, 2, 1])["test"] == "ebacd"


def test_events_of_one_second_are_sorted_by_what_is_finer():
    parts = {"c": 300, "b": 150, "a": 0, "d": 150}
    events = [(n, Event("u", item, None, 10, part)) for n, (item, part) in enumerate(parts.items())]
    user = sequences.make_user("d", "u", [*events, (9, Event("u", "z", None, 9, 999))], KEEP)
    assert user.splits["test"] == UserSequence("u", "d", tuple("zabdc"), (9, 10, 10, 10, 10))
    rules = dataclasses.replace(TEMPORAL, validation_from=10, test_from=11)
    split = sequences.make_user("d", "u", [*events, (9, Event("u", "z", None, 9, 999))], rules)
    assert {k: "".join(s.item_ids) for k, s in split.splits.items()} == {"validation": "za"}


def test_orders_with_fractions_are_sorted_as_numbers():
    orders = [Decimal("1.5"), 2**62 + 1, Decimal("1.25"), -3, 2**62]
    assert splits("abcde", orders=orders)["test"] == "dcaeb"


@pytest.mark.parametrize(
    "event",
    [
        Event("u", "i", None, 5, 123_456_789),
        Event("u", "i", -(2**63), None),
        Event("u", "i", Decimal("-0.25"), 1),
        Event("u", "i", Decimal("1E-30"), 1),
    ],
)
def test_rows_of_engines_hold_events_exactly(event):
    assert sequences.from_row(sequences.to_row(event, 7)) == (7, event)


def rows(*events) -> list[sequences.EventRow]:
    placed = [sequences.to_row(event, n) for n, event in enumerate(events)]
    return placed[::-1]  # no engine promises an order


def test_of_equal_events_the_first_stays():
    same = Event("u", "a", None, 5, 1)
    others = [
        same._replace(item_id="b"),
        same._replace(nanosecond=2),
        same._replace(timestamp=6),
        same._replace(order=1),
        same._replace(order=Decimal("1.5")),
    ]
    given = rows(same, *others, same, others[3], same._replace(order=1))
    left = sequences.without_duplicates(given, KEEP)
    assert sorted(sequences.from_row(row) for row in left) == list(enumerate([same, *others]))
    assert sequences.without_duplicates(given, Rules(keep_duplicates=True)) == given


def test_a_users_events_are_sorted_by_one_thing():
    timed, ordered = Event("u", "a", None, 5), Event("u", "b", 1, None)
    assert sequences.sortable(rows(timed, timed)) == rows(timed, timed)
    assert sequences.sortable(rows(ordered, ordered)) == rows(ordered, ordered)
    assert sequences.sortable(rows(timed, ordered)) == rows(timed, ordered)[:1]


def test_ranks_alone_are_enough():
    user = made("cab", orders=[3, 1, 2], times=[None] * 3)
    assert user.splits["test"] == UserSequence("u", "d", ("a", "b", "c"), None)


def test_the_temporal_split_sorts_by_time_whatever_the_order_says():
    orders, times = [1, 2, 3, 4], [60, 10, 20, 10]
    assert splits("abcd", TEMPORAL, times, orders) == {"train": "bdc", "test": "bdca"}


@pytest.mark.parametrize(
    ("raw", "merged"),
    [
        ("aabc", "abc"),
        ("aaaabc", "abc"),
        ("abcc", "abc"),
        ("abac", "abac"),  # not one after the other
        ("abbacc", "abac"),
        ("aabbaabb", "abab"),
    ],
)
def test_consecutive_repeats_are_one_event(raw, merged):
    user = made(raw)
    assert user.splits["test"].item_ids == tuple(merged)
    assert user.repeats_merged == len(raw) - len(merged)
    assert len(user.events) == len(merged)


def test_of_repeats_the_first_event_stays():
    assert made("abbbc").splits["test"].timestamps == (0, 10, 40)


def test_repeats_are_found_in_time_order_not_in_the_files():
    assert splits("abac", times=[0, 2, 1, 3])["test"] == "abc"


def test_repeats_are_kept_where_the_rules_say_so():
    user = made("aabb", KEEP)
    assert user.splits["test"].item_ids == tuple("aabb") and user.repeats_merged == 0


def test_events_are_counted_after_merging_and_few_are_too_few():
    assert made("abcde", Rules(min_events=5)).problem is None
    user = made("aabcde", Rules(min_events=6))
    assert (user.problem, user.splits, user.repeats_merged) == ("users_too_short", {}, 1)


def test_one_unknown_time_makes_a_sequences_times_unknown():
    user = made("abcde", orders=range(5), times=[0, 10, 20, 30, None])
    assert user.splits["test"].timestamps is None
    assert user.splits["validation"].timestamps == (0, 10, 20, 30)


def test_events_of_the_same_time_stay_in_the_files_order():
    assert splits("dcabe", times=[2, 1, 1, 1, 0])["test"] == "ecabd"
    events = [(sequences.position(file, 1), Event("u", item, 1, None)) for file, item in
              ((2, "c"), (0, "a"), (1, "b"))]  # fmt: skip
    assert [e.item_id for e in sequences.sort_events("u", events, KEEP)] == ["a", "b", "c"]


def test_positions_sort_as_files_and_lines():
    places = [(0, 1), (0, 2), (0, 2**39), (1, 1), (1, 2), (2**20, 2**39)]
    assert sorted(places) == sorted(places, key=lambda place: sequences.position(*place))
    assert sequences.position(2**20, 2**39) < 2**63


def test_events_of_the_same_time_may_be_sorted_by_item():
    rules = Rules(same_time="item_id")
    assert splits("dcabe", rules, times=[2, 1, 1, 1, 0])["test"] == "eabcd"


def test_events_of_the_same_time_may_be_sorted_at_random():
    def hashed(seed, item, line):
        text = "\x1f".join([str(seed), "u", item, str(sequences.position(0, line))])
        return hashlib.md5(text.encode()).hexdigest()

    items = "hgfedcba"
    for seed in (0, 1):
        rules = Rules(same_time="random", seed=seed)
        lines = {item: line for line, item in enumerate(items, start=1)}
        expected = "".join(sorted(items, key=lambda item: hashed(seed, item, lines[item])))
        assert splits(items, rules, times=[5] * 8)["test"] == expected
    assert splits(items, dataclasses.replace(rules, seed=2), times=[5] * 8)["test"] != expected
    assert splits(items, rules, times=range(8))["test"] == items  # others are in time order


def test_temporal_by_hand():
    assert splits("abcdefg", TEMPORAL) == {"train": "abc", "validation": "abcd", "test": "abcdef"}
    assert made("abcdefg", TEMPORAL).events_unused == 1


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (
            [29, 30, 50],
            {"validation": "ab", "test": "abc"},
        ),  # a period begins with its first second
        ([28, 29, 49], {"train": "ab", "validation": "abc"}),
        ([10, 60, 70], {"test": "ab"}),
        ([30, 31, 70], {"test": "abc"}),  # nothing before validation's target
        ([1, 2, 3], {"train": "abc"}),
    ],
)
def test_periods_without_a_target_or_a_history_give_no_example(times, expected):
    assert splits("abc", TEMPORAL, times) == expected


@pytest.mark.parametrize("times", [[50, 51], [30, 31], [31, 32]])
def test_a_user_without_any_example_is_left_out_for_it(times):
    user = made("ab", TEMPORAL, times)
    assert (user.problem, user.splits) == ("users_without_example", {})


def test_temporal_users_need_two_events():
    assert made("aa", TEMPORAL, [10, 20]).problem == "users_too_short"
    assert splits("ab", TEMPORAL, [10, 20]) == {"train": "ab"}


def test_histories_are_windows_before_the_target():
    user = made("abcdefg", Rules(max_history=2))
    letters = {split: "".join(s.item_ids) for split, s in user.splits.items()}
    assert letters == {"train": "cde", "validation": "def", "test": "efg"}
    assert user.splits["test"].timestamps == (40, 50, 60)
    assert user.events_unused == 2  # a, b
    assert splits("abc", Rules(max_history=9)) == {"validation": "ab", "test": "abc"}


def test_windows_may_leave_events_between_them_unused():
    rules = dataclasses.replace(TEMPORAL, max_history=1)
    times = [1, 2, 3, 31, 32, 33, 34, 60, 61]
    assert splits("abcdefghi", rules, times) == {"train": "bc", "validation": "cd", "test": "gh"}
    assert made("abcdefghi", rules, times).events_unused == 4  # a, e, f, i


def event(user="u", timestamp=5):
    return Event(user, "a", None, timestamp)


def test_events_after_the_latest_time_are_left_out():
    rules = Rules(latest=5)
    assert sequences.event_problem(event(timestamp=5), rules) is None
    assert sequences.event_problem(event(timestamp=6), rules) == "events_too_late"
    later = event(timestamp=5)._replace(nanosecond=1)
    assert sequences.event_problem(later, rules) == "events_too_late"


def test_events_without_a_needed_time_are_an_error():
    untimed = event(timestamp=None)
    assert sequences.event_problem(untimed, Rules()) is None
    for rules in (Rules(latest=5), TEMPORAL):
        assert sequences.event_problem(untimed, rules) == "events_untimed"
    sequences.check_times("d", 0)
    with pytest.raises(CalrecError, match="3 events of d have no timestamp, but the temporal spl"):
        sequences.check_times("d", 3)


def test_a_sample_is_a_share_of_users_chosen_by_their_ids_and_the_seed():
    names = [f"user{n}" for n in range(4000)]

    def sample(share, seed=0):
        rules = Rules(sample=share, seed=seed)
        return {name for name in names if sequences.in_sample(name, rules)}

    assert 850 < len(sample(0.25)) < 1150
    assert sample(0.1) < sample(0.25) < sample(1.0) == set(names)
    assert 150 < len(sample(0.25) & sample(0.25, seed=1)) < 350
    # md5sum of "0\x1fuser3" begins with 1ea9, which is 0.1198 * 2**16.
    assert "user3" in sample(0.12) and "user3" not in sample(0.1195)
    outside = next(name for name in names if name not in sample(0.5))
    assert sequences.event_problem(event(outside), Rules(sample=0.5)) == "events_not_sampled"


def test_items_without_text_or_without_a_required_field():
    rules = Rules(require=("title", "brand"))
    assert sequences.item_problem({"brand": "B", "title": "T"}, rules) is None
    assert sequences.item_problem({"title": "T"}, rules) == "items_without_required"
    assert sequences.item_problem({}, rules) == "items_without_text"
    assert sequences.item_problem({"title": "T"}, Rules()) is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_events": 2}, "min_events 2: .* at least 3"),
        ({"min_events": -1}, "min_events -1: .* at least 3"),
        ({"k_core": -1}, "k_core -1"),
        ({"same_time": "files"}, "same_time 'files' is none of file, item_id, random"),
        ({"split": "time"}, "split 'time' is none of leave_one_out, temporal"),
        ({"catalogue": "all"}, "catalogue 'all' is none of listed, bought"),
        ({"sample": 0.0}, "sample 0.0"),
        ({"sample": 1.1}, "sample 1.1"),
        ({"sample": float("nan")}, "sample nan"),
        ({"max_history": 0}, "max_history 0"),
        ({"test_from": 5}, "validation_from and test_from go with split='temporal' alone"),
        ({"split": "temporal"}, "needs validation_from and test_from"),
        ({"split": "temporal", "validation_from": 5, "test_from": 5}, "5 is not before test_from"),
        (
            {"split": "temporal", "validation_from": 5, "test_from": 6, "min_events": 1},
            "min_events 1: .* at least 2",
        ),
    ],
)
def test_impossible_rules_are_refused(rules, message):
    with pytest.raises(CalrecError, match=message):
        Rules(**rules)


letters = st.sampled_from("abc")
times = st.integers(1, 9)
events = st.lists(st.tuples(letters, times), min_size=1, max_size=12)


def made_of(pairs, rules):
    return made([item for item, _ in pairs], rules, [time for _, time in pairs])


@given(events, st.sampled_from(["file", "item_id", "random"]), st.booleans())
def test_leave_one_out_holds_what_it_promises(pairs, same_time, merge):
    user = made_of(pairs, Rules(same_time=same_time, merge_repeats=merge))
    items = [event.item_id for event in user.events]
    seconds = [event.timestamp for event in user.events]
    assert seconds == sorted(seconds)
    assert len(items) + user.repeats_merged == len(pairs)
    if merge:
        assert all(a != b for a, b in itertools.pairwise(items))
    else:
        assert sorted(pairs) == sorted(zip(items, seconds, strict=True))
    n = len(items)
    expected = {"train": n - 2, "validation": n - 1, "test": n} if n >= 3 else {}
    assert {split: s.item_ids for split, s in user.splits.items()} == {
        split: tuple(items[:end]) for split, end in expected.items() if end >= 2
    }


@given(events, times, times, st.none() | st.integers(1, 3))
def test_the_temporal_split_holds_what_it_promises(pairs, validation, more, max_history):
    test = validation + more
    rules = Rules(
        split="temporal", validation_from=validation, test_from=test, min_events=2,
        max_history=max_history,
    )  # fmt: skip
    user = made_of(pairs, rules)
    begin = {"train": 0, "validation": validation, "test": test}
    end = {"train": validation, "validation": test, "test": 10**9}
    for split, sequence in user.splits.items():
        assert len(sequence.item_ids) >= 2
        assert max_history is None or len(sequence.history) <= max_history
        assert begin[split] <= sequence.timestamps[-1] < end[split]
        if split != "train":  # all of the history is from before the period
            assert max(sequence.timestamps[:-1]) < begin[split]
        assert all(a <= sequence.timestamps[-1] for a in sequence.timestamps)
    assert (user.problem is None) == bool(user.splits)


@given(events, st.randoms(use_true_random=False))
def test_no_rule_depends_on_the_order_in_which_events_come(pairs, rng: random.Random):
    placed = [(sequences.position(0, n), Event("u", item, None, t))
              for n, (item, t) in enumerate(pairs, start=1)]  # fmt: skip
    mixed = rng.sample(placed, len(placed))
    for same_time in ("file", "item_id", "random"):
        rules = Rules(same_time=same_time)
        assert sequences.make_user("d", "u", mixed, rules) == sequences.make_user(
            "d", "u", placed, rules
        )
