"""What `prepare` refuses, and what it warns of, each with a message that says why."""

from __future__ import annotations

import pytest
from toys import EVENTS, bought, files, make, temporal, write_raw

from calrec_jax.data.preparation.prepare import prepare
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.store import reader
from calrec_jax.errors import CalrecError

TIME = 1_500_000_000


def test_an_empty_domain_is_one_line_that_says_why_and_leaves_what_was_there(tmp_path):
    make(tmp_path)
    before = reader.read_catalogue(tmp_path / "store", "toys")
    with pytest.raises(CalrecError) as error:
        make(tmp_path, write_raw(tmp_path / "raw", events=EVENTS[:2], more=[b"{"] * 3))
    assert str(error.value) == (
        "toys is empty: of 2 events 0 have no item with text, and 1 users have fewer than 3 events "
        "left; 3 lines were rejected: 3 'not JSON'"
    )
    assert reader.read_catalogue(tmp_path / "store", "toys") == before


def test_files_without_an_event_are_reported_as_such(tmp_path):
    with pytest.raises(CalrecError) as error:
        make(tmp_path, write_raw(tmp_path / "raw", events=[], more=[b"{"]))
    assert str(error.value) == (
        "toys is empty: its files hold no event; 1 lines were rejected: 1 'not JSON'"
    )


def test_files_without_an_item_are_reported_as_such(tmp_path):
    with pytest.raises(CalrecError) as error:
        make(tmp_path, write_raw(tmp_path / "raw", items=[{"sku": "i0"}]))
    assert str(error.value) == (
        "toys is empty: its files hold no item; 1 lines were rejected: 1 'no item_id'"
    )


def test_items_without_any_text_are_reported_as_such(tmp_path):
    items = [{"item_id": f"i{n % 6}", "name": "Thing"} for n in range(7)]
    with pytest.raises(
        CalrecError, match="toys is empty: none of its 6 items has any text; with j"
    ):
        make(tmp_path, write_raw(tmp_path / "raw", items))


@pytest.mark.parametrize("engine", ["duckdb", "beam"])
def test_events_of_items_that_are_not_listed_are_reported_with_an_id_of_each(tmp_path, engine):
    events = [{**event, "item_id": f"{event['item_id'][1:]}.0"} for event in EVENTS]
    # One without an order, of a user whose others have one, does not count; and an item without a
    # text is listed, too.
    events.append({**events[0], "item_id": "0", "order": None, "timestamp": 10**9})
    items = [{"item_id": n, "title": f"Thing {n}" if n else ""} for n in range(6)]
    raw = write_raw(tmp_path / "raw", items, events, [b"{"])

    def prepared():
        return prepare("jsonl", raw, tmp_path / "store", "toys", engine=engine)

    with pytest.raises(CalrecError) as error:
        prepared()
    assert str(error.value) == (
        "toys is empty: no event has an item that is listed; item ids are like '0.0' in the files "
        "of events, and like '0' in those of items; 1 lines were rejected: 1 'not JSON'"
    )
    assert not (tmp_path / "store").exists()
    write_raw(raw, items, [*events, {**events[0], "item_id": "0"}])
    with pytest.raises(CalrecError, match="toys is empty: of 17 events 16 have no item with text"):
        prepared()


def test_a_domain_without_a_training_example_is_one_line(tmp_path):
    three = [event for event in EVENTS if event["user_id"] == "three"]
    with pytest.raises(CalrecError, match="nothing to train on: none of its 1 users has the 4 eve"):
        make(tmp_path, write_raw(tmp_path / "raw", events=three))
    assert not (tmp_path / "store").exists()


def test_an_unknown_source_is_named_with_the_nearest(tmp_path):
    with pytest.raises(CalrecError, match="unknown source 'amazon2019', did you mean amazon2018"):
        prepare("amazon2019", tmp_path, tmp_path / "store", "toys")


def test_an_empty_domain_names_every_rule_that_removed_something(tmp_path):
    rules = temporal(latest=2 * 86_400, require=("brand",), k_core=9, min_events=2)
    with pytest.raises(CalrecError) as error:
        make(tmp_path, **rules)
    assert str(error.value) == (
        "toys is empty: of 15 events 1 have no item with text, 2 are too late, 7 have an item "
        "without a field that is required, 5 are outside the k-core, and 0 users have fewer than 2 "
        "events left"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"validation_from": 1},
            "toys has nothing to train on: none of its 1 users has the 2 even",
        ),
        (
            {"validation_from": 2 * 86_400 + 1},
            "toys has no validation example: no user has an event",
        ),
        ({"latest": 2 * 86_400}, "toys has no test example: no user has an event in that period"),
    ],
)
def test_a_period_without_an_example_is_one_line(tmp_path, rules, message):
    with pytest.raises(CalrecError, match=message):
        make(tmp_path, **temporal(**rules))
    assert not (tmp_path / "store").exists()


def test_a_missing_file_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(CalrecError, match="no events in .*amazon2018 reads them from"):
        prepare("amazon2018", tmp_path, tmp_path / "store", "toys")
    assert not (tmp_path / "store").exists()


def test_future_events_are_warned_of_and_no_part_of_the_statistics(tmp_path):
    late = [{**event, "timestamp": 4_000_000_000 + event["order"]} for event in EVENTS[:6]]
    others = [{**event, "timestamp": 1_500_000_000 + event["order"]} for event in EVENTS[6:]]
    raw = write_raw(tmp_path / "raw", events=[*late, *others])
    warnings = []
    prepare("jsonl", raw, tmp_path / "store", "toys", warn=warnings.append)
    assert warnings == ["6 events are dated in the future; --latest=DATE leaves them out"]
    with pytest.raises(CalrecError, match="nothing to train on: none of its 1 users"):
        prepare(
            "jsonl", raw, tmp_path / "store", "toys", Rules(latest=2 * 10**9), warn=warnings.append
        )
    assert len(warnings) == 1


def warnings_of(tmp_path, events, **options) -> list[str]:
    warnings = []
    raw = write_raw(tmp_path / "raw", events=events)
    prepare("jsonl", raw, tmp_path / "store", "toys", warn=warnings.append, **options)
    return warnings


@pytest.mark.parametrize("engine", ["duckdb", "beam"])
def test_what_looks_wrong_with_times_and_orders_is_warned_of(tmp_path, engine):
    def warnings(events, **options):
        return warnings_of(tmp_path, events, engine=engine, **options)

    assert warnings(bought(*range(TIME, TIME + 5))) == []
    assert warnings(bought(*range(TIME, TIME + 5)), time_unit="ms") == [
        "5 of 5 events with a time are dated before 1990: numbers are read as milliseconds, see "
        "--time_unit"
    ]
    assert warnings(bought(1, 2, *range(TIME, TIME + 3))) == []
    assert warnings(bought(TIME, *[TIME + 5] * 3, TIME + 9)) == [
        "3 of 5 events without an order have the same time: it does not tell which of them came "
        "first"
    ]
    ranks = [{"user_id": "u", "item_id": f"i{n}", "order": n} for n in range(5)]
    assert warnings(ranks) == warnings([{**event, "timestamp": TIME} for event in ranks]) == []
    assert warnings([*ranks, *bought(*range(TIME, TIME + 4), user="v")]) == []
    assert warnings([*ranks, *bought(TIME, TIME + 1)]) == [
        "2 events have no order, unlike others of their users, and are left out"
    ]


def test_what_looks_wrong_is_warned_of_before_anything_is_written(tmp_path):
    make(tmp_path, min_events=4)
    before = files(tmp_path / "store")

    def stop(message):
        raise KeyboardInterrupt(message)

    raw = write_raw(tmp_path / "raw", events=bought(1, 2, 3, 4))
    with pytest.raises(KeyboardInterrupt, match="4 of 4 events with a time are dated before 1990"):
        prepare("jsonl", raw, tmp_path / "store", "toys", warn=stop)
    assert files(tmp_path / "store") == before
