"""Parquet files (sources/rows.py): their types, and files that are damaged."""

import datetime
import decimal
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item
from calrec_jax.errors import CalrecError

TIME = 1_500_000_000


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
@pytest.mark.parametrize(
    ("kind", "seconds", "nanosecond"),
    [
        (pa.timestamp("s"), TIME, 0),
        (pa.timestamp("ms"), TIME, 1_000_000),
        (pa.timestamp("ns"), TIME, 1_001_000),
        (pa.timestamp("us", "Europe/Berlin"), TIME, 1_001_000),
        (pa.date32(), TIME - 9600, 0),
        (pa.date64(), TIME - 9600, 0),
    ],
)
def test_the_times_of_parquet_have_their_own_unit(read, tmp_path, unit, kind, seconds, nanosecond):
    moment = datetime.datetime(2017, 7, 14, 2, 40, 0, 1001)
    if pa.types.is_date(kind):
        moment = moment.date()
    elif kind.tz:
        moment = moment.replace(tzinfo=datetime.UTC)
    times = pa.array([moment, None]).cast(kind, safe=False)
    pq.write_table(
        pa.table(
            {"user_id": ["u", "u"], "item_id": ["a", "a"], "timestamp": times, "order": [1, 2]}
        ),
        tmp_path / "file",
    )
    content = (tmp_path / "file").read_bytes()
    assert read(sources.read_events, "parquet", content, None, unit) == [
        (1, Event("u", "a", 1, seconds, nanosecond)),
        (2, Event("u", "a", 2, None)),
    ]
    items = {"item_id": "when", "title": "user_id", "author": "timestamp"}
    table = pq.read_table(tmp_path / "file").append_column("when", [["a", "b"]])
    pq.write_table(table, tmp_path / "file")
    found = read(sources.read_items, "parquet", (tmp_path / "file").read_bytes(), items)
    assert [set(item.fields) for _, item in found] == [{"title", "author"}, {"title"}]
    assert found[0][1].fields["author"].startswith("2017-07-14")


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.date32()])
def test_times_far_from_ours_are_told_as_such(read, tmp_path, kind):
    times = pa.array([datetime.date(2500, 1, 1), datetime.date(1500, 1, 1)]).cast(kind)
    pq.write_table(
        pa.table({"user_id": ["u"] * 2, "item_id": ["a"] * 2, "timestamp": times}), tmp_path / "f"
    )
    found = read(sources.read_events, "parquet", (tmp_path / "f").read_bytes())
    assert [rejected.reason for _, rejected in found] == [
        "time stamp is after 2100: seconds were expected, see --time_unit",
        "time stamp is not after 1970",
    ]
    assert '"timestamp": "2500-01-01"' in found[0][1].text


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2)])
def test_numbers_of_parquet_are_as_short_as_their_type_allows(read, tmp_path, kind):
    values = pa.array([Decimal("12.99"), Decimal("0.1"), None]).cast(pa.float64())
    prices = values.cast(kind, safe=False)
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "price": prices}), tmp_path / "f")
    found = read(sources.read_items, "parquet", (tmp_path / "f").read_bytes())
    assert [item.fields.get("price") for _, item in found] == ["12.99", "0.1", None]


def test_parquet_is_read_in_batches_and_numbered_through(read):
    events = [{"user_id": "u", "item_id": f"i{n}", "order": n} for n in range(10_000)]
    events[9_000]["item_id"] = None
    found = read(sources.read_events, "parquet", events)
    assert [number for number, _ in found] == list(range(1, 10_001))
    assert found[8_999] == (9_000, Event("u", "i8999", 8_999, None))
    assert found[9_000][1].reason == "no item_id" and found[9_000][1].line == 9_001


@pytest.mark.parametrize(
    ("column", "written"),
    [
        (
            pa.array([7, None], pa.float64()),
            "7",
        ),  # as pandas writes integers of which one is missing
        (pa.array([decimal.Decimal(7), None], pa.decimal128(10, 2)), "7"),
        (pa.array([2**64 - 1, None], pa.uint64()), "18446744073709551615"),
        (pa.array([b" caf\xc3\xa9 ", None], pa.binary()), "café"),
        (pa.array([b"a", None], pa.large_binary()), "a"),
        (pa.array([b"a", None], pa.binary_view()), "a"),
        (pa.array([b"abcd", None], pa.binary(4)), "abcd"),
        (pa.array([b"a", None]).dictionary_encode(), "a"),
        (pa.array(["a", None]).dictionary_encode(), "a"),
        (pa.array([bytes(16), None], pa.uuid()), "00000000-0000-0000-0000-000000000000"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_ids_of_all_types_of_parquet(read, tmp_path, column, written):
    ids = {"user_id": column, "item_id": column}
    pq.write_table(pa.table(ids | {"order": [1, 2]}), tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (_, event), (_, rejected) = read(sources.read_events, "parquet", content)
    assert event == Event(written, written, 1, None) and rejected.reason == "no user_id"
    (_, item), (_, rejected) = read(sources.read_items, "parquet", content)
    assert item == Item(written, {}) and rejected.reason == "no item_id"


def test_texts_of_parquet_may_be_bytes(read, tmp_path):
    titles = pa.array(["café".encode(), b"b\xffd"], pa.binary())
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": titles}), tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (_, item), (_, rejected) = read(sources.read_items, "parquet", content)
    assert item == Item("a", {"title": "café"}) and rejected.reason == "title is not Unicode"


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_ids_that_are_fractions_are_told_as_such(read, source):
    events = [{"user_id": 1.5, "item_id": "a", "order": 0}]
    [(_, rejected)] = read(sources.read_events, source, events)
    assert rejected.reason == "user_id is neither a string nor an integer"
    assert '"user_id": 1.5' in rejected.text


def test_strings_of_parquet_that_are_no_utf8_are_rejected(read, tmp_path):
    titles = pa.array([b"good", b"b\xffd"]).view(pa.string())
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": titles}), tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (_, item), (_, rejected) = read(sources.read_items, "parquet", content)
    assert item == Item("a", {"title": "good"})
    assert rejected.reason == "title is not Unicode" and rejected.text.encode()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_parquet_file_is_one_error_that_names_it(read, tmp_path, damage):
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "file")
    content = damage((tmp_path / "file").read_bytes())
    with pytest.raises(CalrecError, match="file.parquet cannot be read to its end: ") as error:
        read(sources.read_items, "parquet", content)
    assert len(str(error.value).splitlines()) == 1
