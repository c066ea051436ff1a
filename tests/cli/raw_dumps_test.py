"""`calrec prepare` on dumps with all kinds of defects, in the format of every source."""

from __future__ import annotations

import collections
import functools
import gzip
import json
import pathlib

import pytest
from raw_formats import (
    DAY,
    EVENTS,
    FORMATS,
    ITEMS,
    PATH,
    PRICE,
    START,
    Format,
    catalogue,
    prepare_toys,
    records,
)

from calrec_jax.data.store import reader

MARKED_UP = "<b>Nuts</b> &amp;\tBolts"
LONG = 17_000_000  # more than 16 MiB
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capfd):
    """`prepare_toys`, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(prepare_toys, capfd)


def fields(form: Format, **values) -> dict[str, str]:
    return {name: value for name, value in values.items() if name in form.fields}


def without_utf8(line: str) -> bytes:
    return line.encode().replace(b"%", b"\xff")


@every_format
def test_a_good_dump(prepare, tmp_path, form):
    stats, err = prepare(form.source, form.write(tmp_path / "raw", EVENTS, ITEMS))
    assert (err, stats["rejected_lines"]) == ([], {})
    assert (stats["users"], stats["items"], stats["events_read"]) == (4, 7, 23)
    assert (stats["events"], stats["events_without_item"]) == (20, 3)
    test = {s.user_id: s for s in reader.read_sequences("store", "toys", "test")}
    assert set(test) == {"u0", "u1", "u2", "u3"}
    assert test["u3"].item_ids == ("i3", "i4", "i5", "i0", "i1")
    assert test["u3"].timestamps == tuple(START + DAY * n for n in range(5))
    of_all = fields(form, category="Tools Saws", price=PRICE)
    assert catalogue() == {f"i{n}": {"title": f"Thing {n}"} | of_all for n in range(7)}


@every_format
def test_a_bad_line_is_rejected_and_nothing_else(prepare, tmp_path, form):
    good, _ = prepare(form.source, form.write(tmp_path / "raw", EVENTS, ITEMS))
    records_of_good = records()
    events = {
        ("u0", "i1", None): form.untimed,
        ("u0", "i1", 0): "time stamp is not after 1970",
        ("u0", "i1", 4_102_444_800): f"time stamp is after 2100: {form.unit}",
        ("u" * LONG, "i1", START): "longer than 16 MiB",
    }
    items = {("i1", "x" * LONG, PATH, False, PRICE): "longer than 16 MiB"}
    if not form.latin1:
        events[without_utf8(form.event("u%", "i1", START))] = "not UTF-8"
        items[without_utf8(form.item("i1", "%", PATH, False, PRICE))] = "not UTF-8"
    raw = form.write(tmp_path / "raw", [*events, *EVENTS], [*items, *ITEMS])
    stats, err = prepare(form.source, raw)
    reasons = [*items.values(), *events.values()]
    assert stats == good | {"rejected_lines": dict(collections.Counter(reasons))}
    assert records() == records_of_good and len(records()) == 4
    expected = [
        (name, n, reason)
        for name, header, bad in zip(
            form.files[::-1], form.headers[::-1], (items, events), strict=True
        )
        for n, reason in enumerate(bad.values(), start=1 + len(header))
    ]
    rejects = [json.loads(line) for line in open("store/toys/rejects.jsonl")]
    assert [(r["file"], r["line"], r["reason"]) for r in rejects] == expected
    assert all(0 < len(r["text"]) <= 500 for r in rejects)
    summary = f"calrec prepare: {len(expected)} lines rejected, see store/toys/rejects.jsonl"
    assert err == [summary]


@every_format
def test_blank_lines_are_no_lines(prepare, tmp_path, form):
    good, _ = prepare(form.source, form.write(tmp_path / "raw", EVENTS, ITEMS))
    records_of_good = records()
    events = [*EVENTS[:9], b"", b" \t\r", *EVENTS[9:], b"", b""]
    raw = form.write(tmp_path / "raw", events, [b"", *ITEMS[:2], b"\r", *ITEMS[2:]])
    assert prepare(form.source, raw) == (good, []) and records() == records_of_good


def test_a_record_of_50_mb_is_rejected_and_nothing_else(prepare, tmp_path):
    form = FORMATS["amazon2018"]
    good, _ = prepare(form.source, form.write(tmp_path / "raw", EVENTS, ITEMS))
    events = [*EVENTS[:9], ("u0", "i" * 50_000_000, START), *EVENTS[9:]]
    items = [*ITEMS[:3], ("i2", "x" * 50_000_000, PATH, True, PRICE), *ITEMS[3:]]
    stats, _ = prepare(form.source, form.write(tmp_path / "raw", events, items))
    assert stats == good | {"rejected_lines": {"longer than 16 MiB": 2}}


@every_format
def test_text_is_cleaned_and_of_several_listings_the_first_counts(prepare, tmp_path, form):
    items = [
        ("i0", MARKED_UP, ("Home &amp; Garden", "<i>Saws</i>"), True, "<span>$1</span>"),
        ("i1", "Thing 1", PATH, False, "x" * 41),  # the remains of a page
        *ITEMS[2:],
        ("i2", "Another 2", PATH, True, "$5"),
        ITEMS[3],
    ]
    stats, err = prepare(form.source, form.write(tmp_path / "raw", EVENTS, items))
    assert (err, stats["items"], stats["items_read"]) == ([], 7, 9)
    assert (stats["items_listed_again"], stats["items_listed_differently"]) == (2, 1)
    found = catalogue()
    cleaned = fields(form, category="Home & Garden Saws", price="$1")
    assert found["i0"] == {"title": "Nuts & Bolts"} | cleaned
    assert found["i1"] == {"title": "Thing 1"} | fields(form, category="Tools Saws")
    assert found["i2"] == {"title": "Thing 2"} | fields(form, category="Tools Saws", price=PRICE)


@every_format
def test_times_in_the_future_give_a_warning(prepare, tmp_path, form):
    events = [*EVENTS, *((f"u{n}", "i0", 4_000_000_000) for n in range(3))]
    stats, err = prepare(form.source, form.write(tmp_path / "raw", events, ITEMS))
    assert err == [
        "calrec prepare: 3 events are dated in the future; --latest=DATE leaves them out"
    ]
    assert stats["time"]["last"] == "2096-10-02"
    stats, err = prepare(form.source, tmp_path / "raw", "--latest=2030-01-01")
    assert (err, stats["events_too_late"], stats["time"]["last"]) == ([], 3, "2017-07-18")


@pytest.mark.parametrize("cut", [0, 1], ids=["events", "items"])
@pytest.mark.parametrize("form", [f for f in FORMATS.values() if f.files[0].endswith(".gz")])
def test_a_truncated_file_is_one_line_and_what_was_there_stays(prepare, tmp_path, form, cut):
    raw = form.write(tmp_path / "raw", EVENTS, ITEMS)
    prepare(form.source, raw)
    before = records()
    path = raw / form.files[cut]
    path.write_bytes(path.read_bytes()[:-20])
    stats, (line,) = prepare(form.source, raw)
    assert stats is None and line == (
        f"calrec prepare: error: {path} cannot be read to its end: Compressed file ended before "
        f"the end-of-stream marker was reached"
    )
    assert records() == before
    assert [p.name for p in pathlib.Path("store").iterdir()] == ["toys"]


@every_format
def test_a_file_given_twice_counts_once(prepare, tmp_path, form):
    raw = form.write(tmp_path / "raw", EVENTS, ITEMS)
    expected, _ = prepare(form.source, raw)
    name, end = form.files[0].split(".", 1)
    again = raw / f"{name}_again.{end}"
    again.write_bytes((raw / form.files[0]).read_bytes())
    both = f"--events={raw / form.files[0]},{again}"
    stats, err = prepare(form.source, raw, both)
    assert err == [] and stats["checksums"] == expected["checksums"]
    assert (stats["events_read"], stats["events_duplicated"]) == (46, 23)
    stats, err = prepare(form.source, raw, both, "--keep_duplicates", "--keep_repeats")
    assert (stats["events"], stats["events_duplicated"]) == (2 * expected["events"], 0)


def test_fields_that_cannot_be_used_are_left_out_and_counted(prepare, tmp_path):
    form = FORMATS["amazon2018"]
    script = "var aPageStart = (new Date()).getTime();"
    items = [("i0", script, PATH, True, "None"), ("i1", "T", PATH, True, {"usd": 9}), *ITEMS[2:]]
    stats, err = prepare(form.source, form.write(tmp_path / "raw", EVENTS, items))
    assert (err, stats["items"], stats["rejected_lines"]) == ([], 7, {})
    assert stats["fields_left_out"] == {
        "title is the remains of a web page": 1,
        "price is no price": 1,
        "price is neither a string nor a number": 1,
    }
    assert catalogue()["i0"] == {"category": "Tools Saws"}
    assert catalogue()["i1"] == {"title": "T", "category": "Tools Saws"}


def test_python_literals_of_2014_are_read_and_never_evaluated(prepare, tmp_path):
    form = FORMATS["amazon2014"]
    raw = form.write(tmp_path / "raw", EVENTS, ITEMS)
    expected, _ = prepare(form.source, raw)

    def literals(make, records) -> list[bytes]:
        return [repr(json.loads(make(*record))).encode() for record in records]

    evil = [
        b"__import__('pathlib').Path('pwned').touch()",
        b"{'asin': __import__('pathlib').Path('pwned').touch()}",
        b"{'asin': 'i0', 'title': str(open('pwned', 'w'))}",
    ]
    events, items = literals(form.event, EVENTS), literals(form.item, ITEMS)
    form.write(raw, [*evil, *events], [*evil, *items])
    assert gzip.decompress((raw / form.files[1]).read_bytes()).count(b"'title': 'Thing ") == 7
    stats, _ = prepare(form.source, raw)
    reason = {"neither JSON nor a Python literal": 6}
    assert stats == expected | {"rejected_lines": reason}
    assert not list(tmp_path.rglob("pwned"))
    # No other year has them.
    stats, (line,) = prepare("amazon2018", raw)
    assert stats is None and "36 lines were rejected: 36 'not JSON'" in line
