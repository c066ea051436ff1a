import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data import sequences
from calrec_jax.data.readers import Event, RawDomain
from calrec_jax.data.sequences import Rules
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import UserSequence


def domain(events, items="abcdefgh") -> RawDomain:
    """Events as (user, item, order) in the file's order; the time is 100 x order."""
    made = [Event(user, item, order, 100 * order) for user, item, order in events]
    return RawDomain("d", {item: {"title": item} for item in items}, made)


def bought(user, items):
    return [(user, item, order) for order, item in enumerate(items)]


def test_leave_one_out_by_hand():
    splits = sequences.make_splits(domain(bought("u", "abcde")), Rules())
    assert splits.train == [UserSequence("u", "d", ("a", "b", "c"), (0, 100, 200))]
    assert splits.validation == [UserSequence("u", "d", tuple("abcd"), (0, 100, 200, 300))]
    assert splits.test == [UserSequence("u", "d", tuple("abcde"), (0, 100, 200, 300, 400))]


def test_a_user_with_four_events_trains_on_one_pair():
    splits = sequences.make_splits(domain(bought("u", "abcd")), Rules())
    assert [s.item_ids for s in splits.train] == [("a", "b")]


def test_a_user_with_three_events_has_no_training_example_but_the_others():
    splits = sequences.make_splits(domain(bought("u", "abc")), Rules())
    assert splits.train == []
    assert [s.item_ids for s in splits.validation] == [("a", "b")]
    assert [s.item_ids for s in splits.test] == [("a", "b", "c")]


def test_users_are_in_the_order_of_their_ids_and_events_in_time_order():
    events = [*bought("v", "abc"), ("u", "c", 9), ("u", "a", 3), ("u", "b", 5)]
    splits = sequences.make_splits(domain(events), Rules())
    assert [(s.user_id, s.item_ids) for s in splits.test] == [
        ("u", tuple("abc")),
        ("v", tuple("abc")),
    ]


def test_events_of_the_same_time_stay_in_the_files_order():
    events = [("u", "d", 2), ("u", "c", 1), ("u", "a", 1), ("u", "b", 1), ("u", "e", 0)]
    splits = sequences.make_splits(domain(events), Rules())
    assert splits.test[0].item_ids == ("e", "c", "a", "b", "d")


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
    splits = sequences.make_splits(domain(bought("u", raw)), Rules())
    assert splits.test[0].item_ids == tuple(merged)
    assert splits.counts["repeats_merged"] == len(raw) - len(merged)
    assert splits.counts["events"] == len(merged)


def test_of_repeats_the_first_event_stays():
    splits = sequences.make_splits(domain(bought("u", "abbbc")), Rules())
    assert splits.test[0].timestamps == (0, 100, 400)


def test_repeats_are_found_in_time_order_not_in_the_files():
    events = [("u", "a", 0), ("u", "b", 2), ("u", "a", 1), ("u", "c", 3)]
    splits = sequences.make_splits(domain(events), Rules())
    assert splits.test[0].item_ids == ("a", "b", "c")


def test_listings_with_the_same_text_are_no_repeats():
    raw = domain(bought("u", "abc"))
    raw.items.update(a={"title": "same"}, b={"title": "same"})
    assert sequences.make_splits(raw, Rules()).test[0].item_ids == ("a", "b", "c")


def test_two_users_purchases_are_not_merged():
    events = [e for pair in zip(bought("u", "abc"), bought("v", "abc"), strict=True) for e in pair]
    assert sequences.make_splits(domain(events), Rules()).counts["repeats_merged"] == 0


def test_repeats_are_kept_where_the_rules_say_so():
    splits = sequences.make_splits(domain(bought("u", "aabb")), Rules(merge_repeats=False))
    assert splits.test[0].item_ids == tuple("aabb")
    assert splits.counts["repeats_merged"] == 0


def test_users_with_too_few_events_after_merging_are_left_out_and_counted():
    events = [*bought("long", "abcde"), *bought("merged", "aabb"), *bought("short", "ab")]
    splits = sequences.make_splits(domain(events), Rules())
    assert [s.user_id for s in splits.test] == ["long"]
    assert splits.counts == {
        "events_read": 11,
        "events_without_item": 0,
        "repeats_merged": 2,
        "users_too_short": 2,
        "users": 1,
        "events": 5,
    }


def test_min_events_is_the_shortest_that_stays():
    events = [*bought("five", "abcde"), *bought("four", "abcd")]
    splits = sequences.make_splits(domain(events), Rules(min_events=5))
    assert [s.user_id for s in splits.test] == ["five"]


@pytest.mark.parametrize("min_events", [2, 0, -1])
def test_fewer_than_three_events_cannot_be_asked_for(min_events):
    with pytest.raises(CalrecError, match=f"min_events {min_events}: .* at least 3"):
        Rules(min_events=min_events)


def test_events_of_unknown_items_and_of_items_without_text_are_left_out_and_counted():
    raw = domain(bought("u", "abXcYYd"), items="abcd")
    raw.items["Y"] = {}  # listed, but with no field
    splits = sequences.make_splits(raw, Rules())
    assert splits.test[0].item_ids == tuple("abcd")
    assert splits.counts["events_without_item"] == 3


def test_what_is_left_out_does_not_stand_between_repeats():
    splits = sequences.make_splits(domain(bought("u", "aXabc"), items="abc"), Rules())
    assert splits.test[0].item_ids == tuple("abc")


def test_one_unknown_time_makes_a_sequences_times_unknown():
    raw = domain(bought("u", "abcde"))
    raw.events[4] = Event("u", "e", 4, None)
    splits = sequences.make_splits(raw, Rules())
    assert splits.test[0].timestamps is None
    assert splits.validation[0].timestamps == (0, 100, 200, 300)


def test_an_empty_domain_is_one_line_that_says_what_the_rules_removed():
    raw = domain([*bought("u", "aab"), *bought("v", "X")])
    with pytest.raises(CalrecError) as error:
        sequences.make_splits(raw, Rules())
    assert str(error.value) == (
        "d is empty: of 4 events 1 have no item with text, and 1 users have fewer than 3 events "
        "left"
    )


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcX"), st.integers(0, 9))))
def test_splits_hold_what_leave_one_out_promises(events):
    raw = domain(events, items="abc")
    try:
        splits = sequences.make_splits(raw, Rules())
    except CalrecError:
        return
    by_user = {s.user_id: s for s in splits.train}
    assert [s.user_id for s in splits.test] == [s.user_id for s in splits.validation]
    for validation, test in zip(splits.validation, splits.test, strict=True):
        assert validation.item_ids == test.item_ids[:-1]
        train = by_user.get(test.user_id)
        assert (train is None) == (len(test.item_ids) == 3)
        assert train is None or train.item_ids == test.item_ids[:-2]
        assert all(a != b for a, b in itertools.pairwise(test.item_ids))
        assert list(test.timestamps) == sorted(test.timestamps)
    c = splits.counts
    kept = sum(len(s.item_ids) for s in splits.test)
    assert c["events"] == kept and c["users"] == len(splits.test)
    assert c["events_read"] == len(events) >= kept + c["events_without_item"] + c["repeats_merged"]
