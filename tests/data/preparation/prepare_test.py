"""From a raw folder to a dataset: what is kept, and what is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from toys import EVENTS, bought, files, make, temporal, write_raw

from calrec_jax.data.preparation.prepare import prepare
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.store import datasets, reader


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
        "same_time": 0.5,  # the second and the last pair of "long", the first of "three"
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
