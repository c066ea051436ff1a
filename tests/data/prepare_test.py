"""From a raw folder to a dataset: what is kept, what is counted, what is refused."""

from __future__ import annotations

import gzip
import json

import pytest

from calrec_jax.data import store
from calrec_jax.data.prepare import prepare
from calrec_jax.data.sequences import Rules
from calrec_jax.errors import CalrecError

ITEMS = [{"item_id": f"i{n}", "title": f"Thing {n}", "brand": "B" * (n % 2)} for n in range(6)]
BOUGHT = {  # the last but one of "long" is sold to nobody else and in no training sequence
    "long": ["i0", "i0", "i1", "i2", "i3", "i4"],
    "three": ["i1", "i2", "i0"],
    "short": ["i1", "i1", "i2"],
    "unknown": ["i9", "i0", "i1"],
}
EVENTS = [
    {"user_id": user, "item_id": item, "order": n, "timestamp": 86_400 * (n // 2)}
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
    return prepare("jsonl", raw, tmp_path / "store", "toys", Rules(**rules))


def test_statistics_by_hand(tmp_path):
    stats = make(tmp_path)
    assert json.loads((tmp_path / "store/toys/stats.json").read_text()) == stats
    assert stats == {
        "domain": "toys",
        "items": 6,
        "events_read": 15,
        "events_without_item": 1,  # i9
        "repeats_merged": 2,
        "users_too_short": 2,
        "users": 2,
        "events": 8,
        "examples": {"train": 1, "validation": 2, "test": 2},
        "mean_length": 4.0,
        "missing_share": {"title": 0.0, "category": 1.0, "brand": 0.5, "price": 1.0},
        "cold_target_share": 0.5,  # i4, but not i0
        "same_time_target_share": 0.5,  # long: orders 4, 5; three: 1, 2
        "source": "jsonl",
        "rules": {"merge_repeats": True, "min_events": 3},
        "rejected_lines": {},
    }


def test_splits_by_hand(tmp_path):
    make(tmp_path)
    data_dir, found = tmp_path / "store", {}
    for split in store.SPLITS:
        sequences = store.read_sequences(data_dir, "toys", split)
        found[split] = {s.user_id: s.item_ids for s in sequences}
    assert found == {
        "train": {"long": ("i0", "i1", "i2")},
        "validation": {"long": ("i0", "i1", "i2", "i3"), "three": ("i1", "i2")},
        "test": {"long": ("i0", "i1", "i2", "i3", "i4"), "three": ("i1", "i2", "i0")},
    }


def test_rules_are_applied_and_recorded(tmp_path):
    stats = make(tmp_path, merge_repeats=False, min_events=4)
    assert stats["rules"] == {"merge_repeats": False, "min_events": 4}
    assert (stats["repeats_merged"], stats["users"], stats["events"]) == (0, 1, 6)


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
        "source": "interactions.jsonl.gz",
        "line": 17,
        "reason": "neither order nor timestamp",
        "text": '{"user_id": "u", "item_id": "i1"}\n',
    }


def test_an_empty_domain_is_one_line_that_says_why_and_leaves_what_was_there(tmp_path):
    make(tmp_path)
    before = store.read_catalogue(tmp_path / "store", "toys")
    with pytest.raises(CalrecError) as told:
        make(tmp_path, write_raw(tmp_path / "raw", events=EVENTS[:2], more=[b"{"] * 3))
    assert str(told.value) == (
        "toys is empty: of 2 events 0 have no item with text, and 1 users have fewer than 3 events "
        "left; 3 lines were rejected: 3 'not JSON'"
    )
    assert store.read_catalogue(tmp_path / "store", "toys") == before


def test_a_domain_without_a_training_example_is_one_line(tmp_path):
    three = [event for event in EVENTS if event["user_id"] == "three"]
    with pytest.raises(CalrecError, match="nothing to train on: none of its 1 users has the 4 eve"):
        make(tmp_path, write_raw(tmp_path / "raw", events=three))
    assert not (tmp_path / "store").exists()


def test_an_unknown_source_is_named_with_the_nearest(tmp_path):
    with pytest.raises(CalrecError, match="unknown source 'amazon2019': did you mean 'amazon2018'"):
        prepare("amazon2019", tmp_path, tmp_path / "store", "toys")


def test_a_missing_file_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(CalrecError, match="meta.json.gz is missing"):
        prepare("amazon2018", tmp_path, tmp_path / "store", "toys")
    assert not (tmp_path / "store").exists()


def test_the_same_raw_files_give_the_same_dataset(tmp_path):
    for name in "ab":
        prepare("jsonl", write_raw(tmp_path / "raw"), tmp_path / name, "toys")
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) >= 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "source", "users", "items", "events", "repeats"),
    [
        ("Industrial_and_Scientific_timed", "amazon2018", 3271, 3541, 22743, 986),
        ("Industrial_and_Scientific", "jsonl", 8441, 4385, 59384, 140),
    ],
)
def test_real_data_has_the_sizes_that_its_description_gives(
    shared_data, tmp_path, folder, source, users, items, events, repeats
):
    stats = prepare(source, shared_data / "amazon2018" / folder, tmp_path, "industrial")
    assert (stats["users"], stats["items"], stats["events_read"]) == (users, items, events)
    assert stats["repeats_merged"] == repeats and not stats["rejected_lines"]
