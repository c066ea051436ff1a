"""DuckDB's engine against the rules applied in memory, one by one."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
import reference_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from calrec_jax.data.preparation import duckdb_engine, sequences
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.sources import Event, Item, RawFiles, get_source
from calrec_jax.data.store import datasets
from calrec_jax.errors import CalrecError

# What a database might change: NUL, white space, what looks like a number or like nothing, text in
# two forms of Unicode, and characters that sort otherwise in UTF-16.
IDS = ["a", "A", "1e5", "null", "NULL", "a\0b", "e\u0301", "\u00e9", "\uffee", "\U0001f600", "a'b"]


def write(folder, events, listings) -> RawFiles:
    """Writes raw files in the format jsonl."""
    records = {
        "events": [_written(event) for event in events],
        "items": [{"item_id": item.item_id, **item.fields} for item in listings],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_bytes(gzip.compress(text.encode(), 1))
    return RawFiles((str(folder / "events"),), (str(folder / "items"),))


def _written(event: Event) -> dict:
    values = {k: v for k, v in event._asdict().items() if v is not None}
    nanosecond = values.pop("nanosecond")
    if event.timestamp is not None and nanosecond:
        values["timestamp"] = f"{event.timestamp}.{nanosecond:09d}"
    if isinstance(event.order, Decimal):
        values["order"] = str(event.order)
    return values


class Written:
    """A writer that keeps the engine's records, and checks that they come in the store's order."""

    def __init__(self):
        self.splits: dict = {split: {} for split in datasets.SPLITS}
        self.users, self.items, self.names = [], {}, None

    def add_user(self, user_id, splits):
        self.users.append(user_id)
        for split, sequence in splits.items():
            self.splits[split][user_id] = sequence

    def write_items(self, names, items):
        self.names, self.items = names, dict(items)

    def check(self):
        for ids in (self.users, list(self.items)):
            assert ids == sorted(ids, key=lambda i: (hashlib.md5(i.encode()).hexdigest(), i))
        assert self.names == sorted({name for fields in self.items.values() for name in fields})


def engine(folder, events, listings, rules):
    """(what the engine returns, what it has written)."""
    files, written = write(folder, events, listings), Written()
    with datasets.workspace(folder / "store", "d") as scratch:
        found = duckdb_engine.run(
            "d", get_source("jsonl"), files, rules, scratch, written, lambda *_: None
        )
    written.check()
    return found, written


def agree(folder, events, listings, rules):
    """Asserts that the engine returns and writes the same as the reference."""
    found, written = engine(folder, events, listings, rules)
    expected = reference_pipeline.run("d", events, listings, rules)
    assert written.splits == {split: expected.split(split) for split in datasets.SPLITS}
    assert written.items == expected.catalogue
    assert found.counts == {name: expected.counts[name] for name in found.counts}
    assert found.cold == {split: expected.cold(split) for split in ("validation", "test")}
    assert found.times == expected.times
    of_users = duckdb_engine.UserStatistics()
    for user in expected.users.values():
        of_users.add(user)
    assert found.users.result() == of_users.result()
    assert found.users.checksums() == of_users.checksums()
    of_items = duckdb_engine.ItemStatistics()
    for item_id, fields in expected.catalogue.items():
        of_items.add(item_id, fields)
    assert (found.items.result(), found.items.checksums()) == (
        of_items.result(),
        of_items.checksums(),
    )
    return written


RULES = [
    Rules(),
    Rules(keep_duplicates=True),
    Rules(merge_repeats=False, max_history=2, catalogue="bought"),
    Rules(k_core=2, same_time="item_id"),
    Rules(k_core=3, k_core_iterated=False, catalogue="bought"),
    Rules(sample=0.6, seed=3, same_time="random", require=("title",)),
    Rules(k_core=1, latest=40),
    Rules(split="temporal", validation_from=20, test_from=40, min_events=2),
    Rules(split="temporal", validation_from=20, test_from=40, k_core=2, latest=70, max_history=1),
]

times = st.integers(1, 90)
some_event = st.builds(
    Event,
    st.sampled_from(IDS[:6]),
    st.sampled_from(IDS[4:]),
    st.none() | st.integers(0, 3) | st.sampled_from([Decimal("0.5"), Decimal("1.25")]),
    times,
    st.sampled_from([0, 0, 1, 500_000_000]),
)
some_events = st.lists(some_event, max_size=60) | st.lists(some_event, max_size=9).map(
    lambda events: [*events, *events[::-1], *events[:4]]
)
some_items = st.lists(
    st.builds(
        Item,
        st.sampled_from(IDS[4:]),
        st.dictionaries(st.sampled_from(["title", "brand"]), st.sampled_from("xy")),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(st.sampled_from(RULES), some_events, some_items, st.booleans())
def test_it_agrees_with_the_rules_in_memory(tmp_path_factory, rules, events, items, ordered):
    if not ordered:
        events = [event._replace(order=None) for event in events]
    agree(tmp_path_factory.mktemp("d"), events, items, rules)


def test_it_agrees_where_much_is_left(tmp_path):
    """Users and items with all kinds of defects, in many small batches."""
    items = [Item(i, {"title": i, "brand": "B"}) for i in IDS] + [Item(IDS[0], {"title": "other"})]
    events = [Event(IDS[n % 10], IDS[(n * n + n // 7) % 11], None, 1 + n // 3) for n in range(300)]
    assert len(agree(tmp_path, events, items, Rules(k_core=20)).splits["test"]) == 10


def test_equal_events_are_one_wherever_they_are(tmp_path):
    """The same file twice, of a user who buys several items a day."""
    items = [Item(i, {"title": i}) for i in "ABCDE"]
    events = [
        Event("u", i, None, 86_400 * day) for i, day in zip("ABCDE", (1, 2, 2, 3, 3), strict=True)
    ]
    found, written = engine(tmp_path, [*events, *events], items, Rules())
    assert written.splits["test"]["u"].item_ids == tuple("ABCDE")
    assert found.counts["events_duplicated"] == 5
    agree(tmp_path, [*events, *events], items, Rules(k_core=2))  # each item is there once
    found, written = engine(tmp_path, [*events, *events], items, Rules(keep_duplicates=True))
    assert written.splits["test"]["u"].item_ids == tuple("ABCBCDEDE")
    assert found.counts["events_duplicated"] == 0


def test_users_with_an_order_and_users_with_times_are_each_sorted_by_their_own(tmp_path):
    items = [Item(i, {"title": i}) for i in "abc"]
    events = [Event("u", i, order, 9) for i, order in zip("abc", (3, 1, 2), strict=True)]
    events += [Event("v", i, None, time) for i, time in zip("abc", (5, 9, 7), strict=True)]
    orders = zip("abcb", (4, 3, 2, None), strict=True)
    events += [Event("w", i, order, 5) for i, order in orders]
    found, written = engine(tmp_path, events, items, Rules())
    test = {user: "".join(s.item_ids) for user, s in written.splits["test"].items()}
    assert test == {"u": "bca", "v": "acb", "w": "cba"}
    assert found.counts["events_without_order"] == 1
    agree(tmp_path, events, items, Rules())


def test_fields_that_are_left_out_are_counted(tmp_path):
    files = write(tmp_path, [], [])
    lines = [{"item_id": f"i{n}", "title": "T", "price": "None"} for n in range(3)]
    lines += [{"item_id": "i", "title": "T", "brand": True, "price": "-"}]
    (tmp_path / "items").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with datasets.workspace(tmp_path / "store", "d") as scratch:
        found = duckdb_engine.run(
            "d", get_source("jsonl"), files, Rules(), scratch, Written(), lambda *_: None
        )
    assert found.fields_left_out == {
        "price is no price": 4,
        "brand is neither a string nor a number": 1,
    }


def test_small_batches_give_the_same(tmp_path, monkeypatch):
    events = [Event(f"u{n % 7}", f"i{n % 5}", None, 1 + n) for n in range(100)]
    items = [Item(f"i{n}", {"title": "T"}) for n in range(5)]
    monkeypatch.setattr(duckdb_engine, "_ROWS", 3)
    monkeypatch.setattr(duckdb_engine, "_USES", 2)  # several files of uses
    agree(tmp_path, events, items, Rules(catalogue="bought"))


def test_the_core_shrinks_until_all_that_are_left_are_large(tmp_path):
    """Item x is sold once: without x user v is small, without v item c is, without c user w is."""
    bought = {"u": "aaabbb", "v": "xcc", "w": "cab", "t": "aab"}
    events = [Event(u, i, None, 1 + n) for u, items in bought.items() for n, i in enumerate(items)]
    items = [Item(i, {"title": i}) for i in "abcxz"]
    rules = Rules(k_core=3, merge_repeats=False)
    found, written = engine(tmp_path, events, items, rules)
    assert {u: s.item_ids for u, s in written.splits["test"].items()} == {
        "u": tuple("aaabbb"),
        "t": tuple("aab"),
    }
    assert set(written.items) == {"a", "b"}
    names = ("events_not_in_core", "users_not_in_core", "items_not_in_core")
    assert [found.counts[name] for name in names] == [6, 2, 3]
    once, written = engine(tmp_path, events, items, Rules(k_core=3, k_core_iterated=False))
    assert [once.counts[name] for name in names] == [1, 0, 2]
    assert set(written.items) == {"a", "b", "c"}


core_events = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc")), max_size=8)


@given(core_events, st.integers(1, 3))
def test_the_k_core_is_the_union_of_all_sets_whose_users_and_items_are_large(pairs, k):
    """The reference's k-core, against the definition of a k-core."""
    events = [(n, Event(user, item, None, 1)) for n, (user, item) in enumerate(pairs)]

    def all_large(subset):
        ids = [("user", e.user_id) for _, e in subset] + [("item", e.item_id) for _, e in subset]
        return all(ids.count(one) >= k for one in ids)

    sets = (c for n in range(len(events) + 1) for c in itertools.combinations(events, n))
    union = {event for subset in sets if all_large(subset) for event in subset}
    left, items = reference_pipeline.k_core(events, k, iterated=True)
    assert left == sorted(union)
    assert items == {event.item_id for _, event in left}


def test_users_of_a_sample_are_as_they_are_without_it(tmp_path):
    events = [Event(f"u{n % 40}", f"i{n % 7}", None, 1 + n) for n in range(400)]
    items = [Item(f"i{n}", {"title": "T"}) for n in range(7)]
    everyone = engine(tmp_path, events, items, Rules())[1].splits
    found, written = engine(tmp_path, events, items, Rules(sample=0.3))
    sample = written.splits
    for split in datasets.SPLITS:
        assert 3 < len(sample[split]) < 25
        assert sample[split] == {u: everyone[split][u] for u in sample[split]}
    assert found.counts["events_not_sampled"] == 400 - 10 * len(sample["test"])
    outside = next(user for user in everyone["test"] if user not in sample["test"])
    users = {outside, *list(sample["test"])[:3]}  # other users do not matter
    few = engine(tmp_path, [e for e in events if e.user_id in users], items, Rules(sample=0.3))[1]
    assert set(few.splits["test"]) == users - {outside}


def test_rejected_lines_are_kept_and_future_events_counted(tmp_path):
    events = [Event("u", "i", None, 1), Event("u", "i", None, 4_000_000_000)]
    files = write(tmp_path, events, [Item("i", {"title": "T"})])
    broken = gzip.decompress((tmp_path / "events").read_bytes()) + b"{\n"
    (tmp_path / "events").write_bytes(broken)
    with datasets.workspace(tmp_path / "store", "d") as scratch:
        found = duckdb_engine.run(
            "d", get_source("jsonl"), files, Rules(), scratch, Written(), lambda *_: None
        )
        (reject,) = (scratch / "rejects.jsonl").read_text().splitlines()
        exported = pq.read_table(scratch / "events.parquet")
    assert (found.rejected, found.times.future) == ({"not JSON": 1}, 1)
    assert json.loads(reject) == {"file": "events", "line": 3, "reason": "not JSON", "text": "{"}
    assert exported.column("position").to_pylist() == [sequences.position(0, n) for n in (1, 2)]


def test_progress_is_told(tmp_path, monkeypatch):
    files = write(
        tmp_path,
        [Event(f"u{n % 2}", "ab"[n // 2 % 2], None, 1 + n) for n in range(10)],
        [Item(i, {"title": "T"}) for i in "ab"],
    )
    monkeypatch.setattr(duckdb_engine, "_ROWS", 2)
    reports = []
    with datasets.workspace(tmp_path / "store", "d") as scratch:
        duckdb_engine.run(
            "d",
            get_source("jsonl"),
            files,
            Rules(),
            scratch,
            Written(),
            lambda *a: reports.append(a),
        )
    assert reports == [
        ("reading listings", 2),
        *(("reading events", n) for n in (2, 4, 6, 8, 10)),
        ("sorting", 10),
        ("writing users", 2),
        ("writing items", 2),
    ]


def test_missing_times_are_one_line(tmp_path):
    events = [Event("u", "i", 1, None), Event("u", "i", 2, 5)]
    with pytest.raises(CalrecError, match="1 events of d have no timestamp"):
        engine(tmp_path, events, [Item("i", {"title": "T"})], Rules(latest=9))
    assert not (tmp_path / "store").exists()
