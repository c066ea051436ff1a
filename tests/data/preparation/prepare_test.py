"""From a raw folder to a dataset: what is kept, what is counted, what is refused."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys

import pytest

from calrec_jax.data.preparation.prepare import prepare
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.store import datasets, reader
from calrec_jax.errors import CalrecError

ITEMS = [{"item_id": f"i{n}", "title": f"Thing {n}", "brand": "B" * (n % 2)} for n in range(6)]
BOUGHT = {  # the last but one of "long" is sold to nobody else and in no training sequence
    "long": ["i0", "i0", "i1", "i2", "i3", "i4"],
    "three": ["i1", "i2", "i0"],
    "short": ["i1", "i1", "i2"],
    "unknown": ["i9", "i0", "i1"],
}
EVENTS = [
    {"user_id": user, "item_id": item, "order": n, "timestamp": 86_400 * (1 + n // 2)}
    for user, items in BOUGHT.items()
    for n, item in enumerate(items)
]


def write_raw(folder, items=ITEMS, events=EVENTS, more=()):
    folder.mkdir(exist_ok=True)
    for name, records in (("items", items), ("interactions", [*events, *more])):
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*lines, b""])))
    return folder


def make(tmp_path, raw=None, **rules):
    raw = raw or write_raw(tmp_path / "raw")
    quiet = {"warn": lambda _: None}  # of the times, which are of 1970
    return prepare("jsonl", raw, tmp_path / "store", "toys", Rules(**rules), **quiet)


def test_statistics_by_hand(tmp_path):
    stats = make(tmp_path)
    assert json.loads((tmp_path / "store/toys/stats.json").read_text()) == stats
    checksums = stats.pop("checksums")
    assert [len(checksums.pop(name)) for name in (*datasets.SPLITS, "items")] == [32] * 4
    assert not checksums
    assert stats == {
        "domain": "toys",
        "source": "jsonl",
        "files": {"events": ["interactions.jsonl.gz"], "items": ["items.jsonl.gz"]},
        "rules": {
            "keep_duplicates": False,
            "merge_repeats": True,
            "min_events": 3,
            "k_core": 0,
            "k_core_iterated": True,
            "same_time": "file",
            "require": [],
            "split": "leave_one_out",
            "validation_from": None,
            "test_from": None,
            "latest": None,
            "max_history": None,
            "sample": 1.0,
            "seed": 0,
            "catalogue": "listed",
        },
        "users": 2,
        "events": 8,
        "items": 6,
        "examples": {"train": 1, "validation": 2, "test": 2},
        "lengths": {"mean": 4.0, "median": 3, "p90": 5, "max": 5},
        "missing_share": {"title": 0.0, "category": 1.0, "brand": 0.5, "price": 1.0},
        "same_time": 0.5,  # of long's pairs the second and the last, of three's the first
        "same_time_target_share": 0.5,  # long: orders 4, 5; three: 1, 2
        "cold_target_share": 0.5,  # i4, but not i0
        "cold_validation_target_share": 0.5,  # i3, but not i2
        "time": {"first": "1970-01-02", "last": "1970-01-04"},
        "items_read": 6,
        "items_listed_again": 0,
        "items_listed_differently": 0,
        "items_without_text": 0,
        "items_without_required": 0,
        "items_not_in_core": 0,
        "items_not_bought": 0,
        "events_read": 15,
        "events_not_sampled": 0,
        "events_too_late": 0,
        "events_duplicated": 0,
        "events_without_order": 0,
        "events_without_item": 1,  # i9
        "events_without_required": 0,
        "events_not_in_core": 0,
        "events_unused": 0,
        "repeats_merged": 2,
        "users_not_in_core": 0,
        "users_too_short": 2,
        "users_without_example": 0,
        "fields_left_out": {},
        "rejected_lines": {},
    }


def test_splits_by_hand(tmp_path):
    make(tmp_path)
    data_dir, found = tmp_path / "store", {}
    for split in datasets.SPLITS:
        sequences = reader.read_sequences(data_dir, "toys", split)
        found[split] = {s.user_id: s.item_ids for s in sequences}
    assert found == {
        "train": {"long": ("i0", "i1", "i2")},
        "validation": {"long": ("i0", "i1", "i2", "i3"), "three": ("i1", "i2")},
        "test": {"long": ("i0", "i1", "i2", "i3", "i4"), "three": ("i1", "i2", "i0")},
    }


def test_rules_are_applied_and_recorded(tmp_path):
    stats = make(tmp_path, merge_repeats=False, min_events=4, catalogue="bought", require=["title"])
    rules = {"merge_repeats": False, "min_events": 4, "catalogue": "bought", "require": ["title"]}
    assert stats["rules"] == {**stats["rules"], **rules}
    assert (stats["repeats_merged"], stats["users"], stats["events"]) == (0, 1, 6)
    assert (stats["items"], stats["items_not_bought"]) == (5, 1)
    info = datasets.builder(tmp_path / "store", "toys", "sequences").info
    assert info.metadata == {name: stats[name] for name in ("source", "rules", "checksums")}
    assert datasets.builder(tmp_path / "store", "toys", "items").info.metadata == info.metadata


def test_checksums_are_those_of_the_records_in_the_store(tmp_path):
    stats = make(tmp_path)
    catalogue = reader.read_catalogue(tmp_path / "store", "toys")
    splits = {s: reader.read_sequences(tmp_path / "store", "toys", s) for s in datasets.SPLITS}
    assert stats["checksums"] == datasets._checksums(catalogue, splits)
    assert reader.checksums(tmp_path / "store", "toys") == stats["checksums"]


def test_bad_lines_are_counted_and_kept_with_their_reason(tmp_path):
    no_order, no_user = b'{"user_id": "u", "item_id": "i1"}', b'{"item_id": 3, "order": 1}'
    bad = [b"{", no_order, b"\xff", b"[]", no_user]
    stats = make(tmp_path, write_raw(tmp_path / "raw", more=bad))
    assert (stats["users"], stats["events_read"]) == (2, 15)
    lines = (tmp_path / "store/toys/rejects.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [reject["reason"] for reject in rejects] == [
        "not JSON", "neither order nor timestamp", "not UTF-8", "not a JSON object", "no user_id",
    ]  # fmt: skip
    assert stats["rejected_lines"] == dict.fromkeys((r["reason"] for r in rejects), 1)
    assert rejects[1] == {
        "file": "interactions.jsonl.gz",
        "line": 17,
        "reason": "neither order nor timestamp",
        "text": '{"user_id": "u", "item_id": "i1"}',
    }


def test_an_empty_domain_is_one_line_that_says_why_and_leaves_what_was_there(tmp_path):
    make(tmp_path)
    before = reader.read_catalogue(tmp_path / "store", "toys")
    with pytest.raises(CalrecError) as told:
        make(tmp_path, write_raw(tmp_path / "raw", events=EVENTS[:2], more=[b"{"] * 3))
    assert str(told.value) == (
        "toys is empty: of 2 events 0 have no item with text, and 1 users have fewer than 3 events "
        "left; 3 lines were rejected: 3 'not JSON'"
    )
    assert reader.read_catalogue(tmp_path / "store", "toys") == before


def test_files_without_an_event_are_told_as_such(tmp_path):
    with pytest.raises(CalrecError) as told:
        make(tmp_path, write_raw(tmp_path / "raw", events=[], more=[b"{"]))
    assert str(told.value) == (
        "toys is empty: its files hold no event; 1 lines were rejected: 1 'not JSON'"
    )


def test_files_without_an_item_are_told_as_such(tmp_path):
    with pytest.raises(CalrecError) as told:
        make(tmp_path, write_raw(tmp_path / "raw", items=[{"sku": "i0"}]))
    assert str(told.value) == (
        "toys is empty: its files hold no item; 1 lines were rejected: 1 'no item_id'"
    )


def test_items_without_any_text_are_told_as_such(tmp_path):
    items = [{"item_id": f"i{n % 6}", "name": "Thing"} for n in range(7)]
    with pytest.raises(
        CalrecError, match="toys is empty: none of its 6 items has any text; with j"
    ):
        make(tmp_path, write_raw(tmp_path / "raw", items))


@pytest.mark.parametrize("engine", ["duckdb", "beam"])
def test_events_of_items_that_are_not_listed_are_told_with_an_id_of_each(tmp_path, engine):
    events = [{**event, "item_id": f"{event['item_id'][1:]}.0"} for event in EVENTS]
    # One without an order, of a user whose others have one, does not count; and an item without a
    # text is listed, too.
    events.append({**events[0], "item_id": "0", "order": None, "timestamp": 10**9})
    items = [{"item_id": n, "title": f"Thing {n}" if n else ""} for n in range(6)]
    raw = write_raw(tmp_path / "raw", items, events, [b"{"])

    def prepared():
        return prepare("jsonl", raw, tmp_path / "store", "toys", engine=engine)

    with pytest.raises(CalrecError) as told:
        prepared()
    assert str(told.value) == (
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


def temporal(**rules):
    day = 86_400
    return {"split": "temporal", "validation_from": 2 * day, "test_from": 3 * day} | rules


def test_an_empty_domain_tells_of_every_rule_that_removed_something(tmp_path):
    rules = temporal(latest=2 * 86_400, require=("brand",), k_core=9, min_events=2)
    with pytest.raises(CalrecError) as told:
        make(tmp_path, **rules)
    assert str(told.value) == (
        "toys is empty: of 15 events 1 have no item with text, 2 are too late, 7 have an item "
        "without a field that is required, 5 are outside the k-core, and 0 users have fewer than 2 "
        "events left"
    )


def test_the_temporal_split_by_hand(tmp_path):
    stats = make(tmp_path, **temporal())
    assert stats["examples"] == {"train": 1, "validation": 2, "test": 1}
    found = {
        split: {
            s.user_id: s.item_ids for s in reader.read_sequences(tmp_path / "store", "toys", split)
        }
        for split in datasets.SPLITS
    }
    assert found == {
        "train": {"three": ("i1", "i2")},
        "validation": {"long": ("i0", "i1"), "three": ("i1", "i2", "i0")},
        "test": {"long": ("i0", "i1", "i2", "i3")},
    }
    assert stats["events_unused"] == 1  # i4


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


def test_future_events_are_warned_of_and_no_part_of_the_statistics(tmp_path):
    late = [{**event, "timestamp": 4_000_000_000 + event["order"]} for event in EVENTS[:6]]
    others = [{**event, "timestamp": 1_500_000_000 + event["order"]} for event in EVENTS[6:]]
    raw = write_raw(tmp_path / "raw", events=[*late, *others])
    told = []
    prepare("jsonl", raw, tmp_path / "store", "toys", warn=told.append)
    assert told == ["6 events are dated in the future; --latest=DATE leaves them out"]
    with pytest.raises(CalrecError, match="nothing to train on: none of its 1 users"):
        prepare("jsonl", raw, tmp_path / "store", "toys", Rules(latest=2 * 10**9), warn=told.append)
    assert len(told) == 1


TIME = 1_500_000_000


def bought(*times, user="u", **more) -> list[dict]:
    return [
        {"user_id": user, "item_id": f"i{n}", "timestamp": t, **more} for n, t in enumerate(times)
    ]


def told_of(tmp_path, events, **options) -> list[str]:
    told = []
    raw = write_raw(tmp_path / "raw", events=events)
    prepare("jsonl", raw, tmp_path / "store", "toys", warn=told.append, **options)
    return told


@pytest.mark.parametrize("engine", ["duckdb", "beam"])
def test_what_looks_wrong_with_times_and_orders_is_told(tmp_path, engine):
    def told(events, **options):
        return told_of(tmp_path, events, engine=engine, **options)

    assert told(bought(*range(TIME, TIME + 5))) == []
    assert told(bought(*range(TIME, TIME + 5)), time_unit="ms") == [
        "5 of 5 events with a time are dated before 1990: numbers are read as milliseconds, see "
        "--time_unit"
    ]
    assert told(bought(1, 2, *range(TIME, TIME + 3))) == []
    assert told(bought(TIME, *[TIME + 5] * 3, TIME + 9)) == [
        "3 of 5 events without an order have the same time: it does not tell which of them came "
        "first"
    ]
    ranks = [{"user_id": "u", "item_id": f"i{n}", "order": n} for n in range(5)]
    assert told(ranks) == told([{**event, "timestamp": TIME} for event in ranks]) == []
    assert told([*ranks, *bought(*range(TIME, TIME + 4), user="v")]) == []
    assert told([*ranks, *bought(TIME, TIME + 1)]) == [
        "2 events have no order, unlike others of their users, and are left out"
    ]


def test_what_looks_wrong_is_told_before_anything_is_written(tmp_path):
    make(tmp_path, min_events=4)
    before = files(tmp_path / "store")

    def stop(told):
        raise KeyboardInterrupt(told)

    raw = write_raw(tmp_path / "raw", events=bought(1, 2, 3, 4))
    with pytest.raises(KeyboardInterrupt, match="4 of 4 events with a time are dated before 1990"):
        prepare("jsonl", raw, tmp_path / "store", "toys", warn=stop)
    assert files(tmp_path / "store") == before


@pytest.mark.parametrize("engine", ["duckdb", "beam"])
def test_the_store_has_seconds_of_events_sorted_by_all_their_digits(tmp_path, engine):
    times = [1_700_000_000_300, 1_700_000_000_150, 1_700_000_000_000, 1_700_000_001_000]
    raw = write_raw(tmp_path / "raw", events=bought(*times))
    prepare("jsonl", raw, tmp_path / "store", "toys", time_unit="ms", engine=engine)
    [test] = reader.read_sequences(tmp_path / "store", "toys", "test")
    assert test.item_ids == ("i2", "i1", "i0", "i3")
    assert test.timestamps == (1_700_000_000,) * 3 + (1_700_000_001,)


def test_files_may_be_named_one_by_one_with_columns_of_their_own(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    renamed = [{"who": e["user_id"], **e} for e in EVENTS]
    for event in renamed:
        del event["user_id"]
    other = write_raw(tmp_path / "other", events=renamed)
    expected = prepare("jsonl", raw, tmp_path / "a", "toys")
    stats = prepare(
        "jsonl",
        tmp_path / "empty",
        tmp_path / "b",
        "toys",
        events=[str(other / "interactions.jsonl.gz")],
        items=[str(raw / "items*")],
        columns={"user_id": "who"},
    )
    assert stats == expected


def test_a_missing_file_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(CalrecError, match="no events in .*amazon2018 reads them from"):
        prepare("amazon2018", tmp_path, tmp_path / "store", "toys")
    assert not (tmp_path / "store").exists()


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_raw_files_give_the_same_dataset(tmp_path):
    for name in "ab":
        prepare("jsonl", write_raw(tmp_path / "raw"), tmp_path / name, "toys")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 13


KILLED = """
import os, pathlib, signal, sys
from calrec_jax.data.preparation import duckdb_engine, prepare
from calrec_jax.data.store import shards

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

raw, store, where = sys.argv[1:]
if where == "moving":
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda self, to: kill() if self.name == "made" else rename(self, to)
elif where == "sorting":
    duckdb_engine.queries.export_events = kill
else:
    duckdb_engine._write_items = kill
prepare.prepare("jsonl", raw, store, "toys")
"""


@pytest.mark.parametrize(
    ("where", "old"),
    [
        ("writing", True),
        pytest.param("sorting", False, marks=pytest.mark.slow),
        pytest.param("moving", True, marks=pytest.mark.slow),
    ],
)
def test_after_a_kill_the_next_run_gives_what_an_undisturbed_one_would(tmp_path, where, old):
    raw = write_raw(tmp_path / "raw")
    make(tmp_path / "undisturbed", raw)
    (tmp_path / "killed").mkdir()
    if old:
        make(tmp_path / "killed", raw, min_events=4)
    code = [sys.executable, "-c", KILLED, raw, tmp_path / "killed/store", where]
    assert subprocess.run(code).returncode == -signal.SIGKILL
    assert (tmp_path / "killed/store/.preparing_toys").exists()
    if old and where != "moving":  # moved away, the old dataset is in the workspace
        stats = json.loads((tmp_path / "killed/store/toys/stats.json").read_text())
        assert stats["rules"]["min_events"] == 4
    make(tmp_path / "killed", raw)
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "source", "users", "items", "events", "repeats", "duplicates"),
    [
        ("Industrial_and_Scientific_timed", "amazon2018", 3271, 3541, 22743, 986, 1006),
        ("Industrial_and_Scientific", "jsonl", 8441, 4385, 59384, 140, 0),
    ],
)
def test_real_data_has_the_sizes_that_its_description_gives(
    shared_data, tmp_path, folder, source, users, items, events, repeats, duplicates
):
    raw = shared_data / "amazon2018" / folder
    stats = prepare(source, raw, tmp_path, "industrial", Rules(keep_duplicates=True))
    assert (stats["users"], stats["items"], stats["events_read"]) == (users, items, events)
    assert stats["repeats_merged"] == repeats
    assert not stats["rejected_lines"] and not stats["fields_left_out"]
    stats = prepare(source, raw, tmp_path, "industrial")
    assert (stats["users"], stats["items"], stats["events_read"]) == (users, items, events)
    assert stats["events_duplicated"] == duplicates
