import csv
import datetime
import decimal
import gzip
import io
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item, Rejected, json_array
from calrec_jax.errors import CalrecError

FORMATS = ("jsonl", "csv", "parquet")
TIME = 1_500_000_000


def write(path, source: str, records: list[dict]) -> None:
    """A file in the format `source`; a key that a record lacks is a missing value."""
    if source == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return
    names = list(dict.fromkeys(name for record in records for name in record))
    if source == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(records)
    else:
        columns = {name: [record.get(name) for record in records] for name in names}
        pq.write_table(pa.table(columns), path)


@pytest.fixture
def read(tmp_path):
    """Writes records (or a file's bytes) and reads them back: the outcomes."""

    def run(reader, source, content, columns=None, time_unit="s", **options):
        path = tmp_path / f"file.{source}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write(path, source, content)
        return list(reader(sources.get_source(source, columns, time_unit, **options), str(path)))

    return run


def first_line(source: str) -> int:
    return 2 if source == "csv" else 1


@pytest.mark.parametrize("source", FORMATS)
def test_events_and_items(read, source):
    events = [
        {"user_id": "u", "item_id": "a", "order": 1, "timestamp": TIME, "rating": 5.0},
        {"user_id": "u", "item_id": " b ", "order": 0},
        {"user_id": "v", "item_id": "é", "timestamp": TIME},
    ]
    found = read(sources.read_events, source, events)
    assert [number for number, _ in found] == [first_line(source) + n for n in range(3)]
    assert [event for _, event in found] == [
        Event("u", "a", 1, TIME),
        Event("u", "b", 0, None),
        Event("v", "é", None, TIME),
    ]
    items = [
        {"item_id": "a", "title": "T", "category": "C", "brand": "B", "price": "$1.50", "x": "y"},
        {"item_id": "b", "title": "<b>Nuts</b> &amp;\n bolts", "price": "4" * 41},
        {"item_id": "c"},
    ]
    assert [item for _, item in read(sources.read_items, source, items)] == [
        Item("a", {"title": "T", "category": "C", "brand": "B", "price": "$1.50"}),
        Item("b", {"title": "Nuts & bolts"}, ("price is no price",)),
        Item("c", {}),
    ]


@pytest.mark.parametrize("source", FORMATS)
def test_columns_are_mapped_and_further_fields_added(read, source):
    columns = {"user_id": "who", "item_id": "isbn", "timestamp": "when", "author": "writer"}
    columns |= {"title": "name"}
    events = [{"who": "u", "isbn": "a", "when": 1_500_000_000_999, "user_id": "x"}]
    assert read(sources.read_events, source, events, columns, "ms") == [
        (first_line(source), Event("u", "a", None, TIME, 999_000_000))
    ]
    items = [{"isbn": "a", "name": "T", "writer": "A &amp; B", "brand": "P", "title": "no"}]
    assert read(sources.read_items, source, items, columns) == [
        (first_line(source), Item("a", {"title": "T", "brand": "P", "author": "A & B"}))
    ]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize(
    ("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
def test_time_units(read, source, unit, factor):
    times = [TIME * factor, TIME * factor + factor - 1, 0, 4_102_444_800 * factor]
    events = [{"user_id": "u", "item_id": "a", "timestamp": time} for time in times]
    found = [outcome for _, outcome in read(sources.read_events, source, events, None, unit)]
    last = (factor - 1) * (10**9 // factor)
    assert found[:2] == [Event("u", "a", None, TIME), Event("u", "a", None, TIME, last)]
    word = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[unit]
    assert [rejected.reason for rejected in found[2:]] == [
        "time stamp is not after 1970",
        f"time stamp is after 2100: {word} were expected, see --time_unit",
    ]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize(
    ("written", "seconds", "nanosecond"),
    [
        ("2017-07-14T02:40:00Z", TIME, 0),
        ("2017-07-14 02:40:00.999", TIME, 999_000_000),
        ("2017-07-14T02:40:00.000000001Z", TIME, 1),
        ("2017-07-14T04:40:00+02:00", TIME, 0),
        ("2017-07-14", TIME - 9600, 0),
        ("2017-07", 1_498_867_200, 0),
        ("20170714", TIME - 9600, 0),
        ("2017", 1_483_228_800, 0),
        ("20170714T024000Z", TIME, 0),
        ("1500000000", TIME, 0),
        ("1500000000.5", TIME, 500_000_000),
        ("1500000000.000000001", TIME, 1),
        ("1.5e9", TIME, 0),
    ],
)
def test_times_in_words_are_utc(read, source, written, seconds, nanosecond):
    events = [{"user_id": "u", "item_id": "a", "timestamp": written}]
    assert read(sources.read_events, source, events) == [
        (first_line(source), Event("u", "a", None, seconds, nanosecond))
    ]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_numbers_are_dates_where_none_of_the_first_is_a_time(read, source, unit):
    def times(*values):
        events = [{"user_id": "u", "item_id": "a", "timestamp": value} for value in values]
        found = [outcome for _, outcome in read(sources.read_events, source, events, None, unit)]
        return [o.timestamp if type(o) is Event else o.reason for o in found]

    day = 86_400
    april = 1_711_929_600
    assert times(20240401, 20240402, None, 20240403) == [
        april, april + day, "neither order nor timestamp", april + 2 * day,
    ]  # fmt: skip
    assert times(2023, 2024) == [1_672_531_200, 1_704_067_200]
    assert times(20240401, 20240402, *[20240403] * 1000, 20240431)[-1] == (
        "timestamp is neither a date like those before it nor an ISO 8601 date"
    )
    # Counted from a beginning of one's own: these are no dates, though some look like them.
    factor = {"s": 1, "ms": 1000}[unit]
    counted = [20_240_401, 20_240_431, 5_000_000, 2023_000]
    assert times(*counted) == [number // factor for number in counted]


def test_numbers_with_more_digits_than_a_float_are_exact(read):
    for source in FORMATS:
        lines = {
            "jsonl": b'{"user_id": "u", "item_id": "a", "timestamp": 1500000000.000000001}\n',
            "csv": b"user_id,item_id,timestamp\nu,a,1500000000.000000001\n",
            "parquet": [
                {"user_id": "u", "item_id": "a", "timestamp": Decimal("1500000000.000000001")}
            ],
        }
        [(_, event)] = read(sources.read_events, source, lines[source])
        assert event == Event("u", "a", None, TIME, 1)


def test_a_number_beyond_all_exponents_is_missing_as_infinity_is(read):
    for digits in (b"1e999", b"1e99999999999999999999999"):
        line = b'{"user_id": "u", "item_id": "a", "order": 1, "timestamp": %b}\n' % digits
        [(_, event)] = read(sources.read_events, "jsonl", line)
        assert event == Event("u", "a", 1, None)


@pytest.mark.parametrize("source", FORMATS)
def test_orders_may_have_fractions_or_be_dates(read, source):
    def orders(*values):
        events = [{"user_id": "u", "item_id": "a", "when": value} for value in values]
        found = read(sources.read_events, source, events, {"order": "when"})
        return [event.order for _, event in found]

    assert orders(1700000000.3, 2.0) == [Decimal("1700000000.3"), 2]
    assert orders("2017-07-14T02:40:00.3Z", "2017-07-14T02:40:00") == [
        Decimal("1500000000.3"), TIME,
    ]  # fmt: skip


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


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": ""}, "no user_id"),
        ({"item_id": None}, "no item_id"),
        ({"order": None, "timestamp": None}, "neither order nor timestamp"),
        ({"order": "first"}, "order is neither a 64-bit number nor an ISO 8601 date"),
        ({"order": "9" * 20}, "order is neither a 64-bit number nor an ISO 8601 date"),
        ({"timestamp": "yesterday"}, "timestamp is neither a number nor an ISO 8601 date"),
        ({"timestamp": "1e999"}, "timestamp is neither a number nor an ISO 8601 date"),
        ({"timestamp": 0}, "time stamp is not after 1970"),
        ({"timestamp": -1}, "time stamp is not after 1970"),
        (
            {"timestamp": 1_500_000_000_000},
            "time stamp is after 2100: seconds were expected, see --time_unit",
        ),
    ],
)
def test_events_that_cannot_be_used_are_rejected(read, source, change, reason):
    bad = {"user_id": "u", "item_id": "a", "order": 0, "timestamp": 5} | change
    [(number, rejected)] = read(sources.read_events, source, [bad])
    assert rejected == Rejected(f"file.{source}", number, reason, rejected.text)
    assert '"item_id": ' in rejected.text


def test_integers_in_words_are_exact(read):
    events = [{"user_id": "u", "item_id": "a", "order": str(-(2**63) + 1)}]
    for source in FORMATS:
        [(_, event)] = read(sources.read_events, source, events)
        assert event.order == -(2**63) + 1


def test_a_reason_names_the_column_as_the_user_does(read):
    columns = {"user_id": "who", "timestamp": "when"}
    events = [{"who": None, "item_id": "a", "when": 5}, {"who": "u", "item_id": "a", "when": None}]
    found = read(sources.read_events, "jsonl", events, columns)
    assert [outcome.reason for _, outcome in found] == ["no who", "neither order nor when"]


def test_nan_is_a_missing_value(read):
    nan = float("nan")
    events = [{"user_id": "u", "item_id": "a", "order": 1.0, "timestamp": nan}] * 2
    items = [{"item_id": "a", "title": "T", "brand": nan, "price": nan, "category": nan}]
    for source in ("jsonl", "parquet"):
        assert read(sources.read_events, source, events)[1] == (2, Event("u", "a", 1, None))
        assert read(sources.read_items, source, items) == [(1, Item("a", {"title": "T"}))]


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_categories_are_strings_lists_or_lists_of_lists(read, source):
    for category in ("Tools Saws", ["Tools", "Saws"], [["Tools", "Saws"], ["Garden"]]):
        [(_, item)] = read(sources.read_items, source, [{"item_id": "a", "category": category}])
        assert item.fields == {"category": "Tools Saws"}


def test_numbers_of_a_table_have_no_currency(read):
    for source in FORMATS:
        [(_, item)] = read(
            sources.read_items, source, [{"item_id": 1, "title": 1984, "price": 9.5}]
        )
        assert item == Item("1", {"title": "1984", "price": "9.5"})


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2)])
def test_numbers_of_parquet_are_as_short_as_their_type_allows(read, tmp_path, kind):
    values = pa.array([Decimal("12.99"), Decimal("0.1"), None]).cast(pa.float64())
    prices = values.cast(kind, safe=False)
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "price": prices}), tmp_path / "f")
    found = read(sources.read_items, "parquet", (tmp_path / "f").read_bytes())
    assert [item.fields.get("price") for _, item in found] == ["12.99", "0.1", None]


def test_a_field_that_cannot_be_used_does_not_cost_its_item(read):
    columns = {"in_stock": "in_stock", "tags": "tags"}
    odd = {"in_stock": True, "tags": ["red", "blue"], "category": ["A", None, "B"]}
    items = [
        {"item_id": "a", "title": "T", "price": {"amount": 9}, **odd},
        {"item_id": "b", "title": ["T", {"x": 1}], "in_stock": True, "price": "\u2014"},
    ]
    assert [item for _, item in read(sources.read_items, "jsonl", items, columns)] == [
        Item(
            "a",
            {"title": "T", "category": "A B", "tags": "red blue"},
            (
                "price is neither a string nor a number",
                "in_stock is neither a string nor a number",
            ),
        ),
        Item(
            "b",
            {},
            (
                "title is a list of more than strings and numbers",
                "price is no price",
                "in_stock is neither a string nor a number",
            ),
        ),
    ]


# CSV


def texts(outcomes) -> list:
    return [(n, o.fields["title"] if type(o) is Item else (o.reason, o.text)) for n, o in outcomes]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b'a,"x\ny",\nb,z,\n', [(2, "x y"), (4, "z")]),
        (b'a,"say ""hi"", you",\r\nb,z,\r\n', [(2, 'say "hi", you'), (3, "z")]),
        (b'a,5" pipe,\n', [(2, '5" pipe')]),
        (b"a,x\nb,y,z,w\n\nc,z,\n", [
            (2, ("not as many cells as columns", "a,x")),
            (3, ("not as many cells as columns", "b,y,z,w")),
            (5, "z"),
        ]),
        (b'a,"x\n\ny",\n\r\n  \nb,z,\n\n', [(2, "x y"), (7, "z")]),  # blank lines
        (b'a,"x\ny"\nb,z,\n', [
            (2, ("not as many cells as columns", 'a,"x\ny"')), (4, "z"),
        ]),
        # A quote that is never closed costs its own line, not the rest of the file.
        (b'a,"x,\nb,y,\nc,z,\n', [(2, ("not CSV", 'a,"x,')), (3, "y"), (4, "z")]),
        (b'a,"x"y,\nb,z,\n', [(2, ("not CSV", 'a,"x"y,')), (3, "z")]),
        (b"a,caf\xe9,\nb,z,\n", [(2, ("not UTF-8", "a,caf\ufffd,")), (3, "z")]),
        (b"a,x,\nb,z,", [(2, "x"), (3, "z")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_the_quirks_of_csv(read, bom, rows, expected):
    content = bom + b"item_id,title,brand\n" + rows
    assert texts(read(sources.read_items, "csv", content)) == expected


def test_a_long_field_and_a_long_line_of_csv_are_rejected(read):
    content = b"item_id,title\na,%b\nb,%b\nc,z\n" % (b"x" * 200_000, b"y," * (9 * 2**20))
    assert texts(read(sources.read_items, "csv", content)) == [
        (2, ("not CSV", "a," + "x" * 498)),
        (3, ("longer than 16 MiB", "b," + "y," * 249)),
        (4, "z"),
    ]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_every_row_that_csv_writes_is_read(tmp_path_factory, cells):
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([("item_id", "title"), *cells])
    path = tmp_path_factory.mktemp("csv") / "items.csv"
    path.write_bytes(written.getvalue().encode())
    found = list(sources.read_items(sources.get_source("csv"), str(path)))
    assert [type(outcome) for _, outcome in found] == [
        Item if item_id.strip() else Rejected for item_id, _ in cells
    ]
    starts = [2]
    for item_id, title in cells:
        starts.append(starts[-1] + 1 + item_id.count("\n") + title.count("\n"))
    assert [number for number, _ in found] == starts[:-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"user,item,time\n",
            "has no column user_id, item_id, but user, item, time; --columns or --event_c",
        ),
        (b"user_id,item_id\n", "has no column order or timestamp, but user_id, item_id;"),
        (b"user_id,item_id,order,order\n", "has more than one column order"),
        (b"", "is empty: its first line must name the columns"),
        (b"us\xe9r\n", "is not UTF-8 in its first line"),
        (b'"user\n', "is not CSV in its first line"),
    ],
)
def test_a_csv_header_that_does_not_fit(read, content, message):
    with pytest.raises(CalrecError, match=f"file.csv {message}"):
        read(sources.read_events, "csv", content)


SEMICOLONS = b"item_id;title, long;title\na;x,y;T 1\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"item_id;title\na;x, y\nb;z\n", [(2, "x, y"), (3, "z")]),
        (b"item_id\ttitle\na\tx, y; z\n", [(2, "x, y; z")]),
        (b"item_id|title\na|x, y; z\n", [(2, "x, y; z")]),
        (b'"item_id";"title"\n"a";"x; ""y"""\n', [(2, 'x; "y"')]),
        (b"\n \n item_id ; title \na;x\n", [(4, "x")]),
        # The header says it, whatever else is in it, and in the rows.
        (SEMICOLONS, [(2, "T 1")]),
        (b"title;x,item_id\nx;y,a\n", [(2, None)]),
        (b"item_id,title\na;b,x;y\n", [(2, "x;y")]),
        (b"item_id\na;b,c\n", [(2, ("not as many cells as columns", "a;b,c"))]),
    ],
)
def test_the_header_tells_the_delimiter(read, content, expected):
    found = read(sources.read_items, "csv", content)
    shown = [o.fields.get("title") if type(o) is Item else (o.reason, o.text) for _, o in found]
    assert [(number, title) for (number, _), title in zip(found, shown, strict=True)] == expected


def test_a_delimiter_that_is_given(read):
    content = b"item_id~title;x\na~T\n"
    assert texts(
        read(sources.read_items, "csv", content, delimiter="~", columns={"title": "title;x"})
    ) == [(2, "T")]
    with pytest.raises(CalrecError, match="has no column item_id, but item_id;title;"):
        read(sources.read_items, "csv", b"item_id;title\na;T\n", delimiter=",")


def test_a_header_without_what_is_needed_is_shown_column_by_column(read):
    with pytest.raises(CalrecError, match="has no column item_id, but sku, title, en, name;"):
        read(sources.read_items, "csv", b"sku;title, en;name\na;T;N\n")


def test_the_files_of_recbole(read):
    events = (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4.0\t1500000000.0\n"
    )
    assert read(sources.read_events, "csv", events) == [(2, Event("u", "a", None, TIME))]
    items = (
        b"item_id:token\tmovie_title:token_seq\trelease:float\tclass:token_seq\n"
        b'a\t"Toy" Story\t1995\tComedy Family\n'
        b'b\t"x\t1996\t\n'  # quotes are text there
    )
    columns = {"title": "movie_title", "category": "class"}
    assert read(sources.read_items, "csv", items, columns) == [
        (2, Item("a", {"title": '"Toy" Story', "category": "Comedy Family"})),
        (3, Item("b", {"title": '"x'})),
    ]
    # Only where all columns have a type; else the colon is part of a name.
    assert read(sources.read_items, "csv", b"item_id,a:token\ni,x\n", {"title": "a:token"}) == [
        (2, Item("i", {"title": "x"}))
    ]


# JSON


ARRAY = [{"item_id": f"i{n}", "title": 'a "[{,}]" \n\\ é'} for n in range(5)]


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_an_array_of_objects_is_read_as_lines_are(read, monkeypatch, layout, piece):
    monkeypatch.setattr(json_array, "_PIECE", piece)
    found = read(sources.read_items, "jsonl", b" \n" + json.dumps(ARRAY, **layout).encode() + b"\n")
    assert found == [(n + 1, Item(f"i{n}", {"title": 'a "[{,}]" \\ é'})) for n in range(5)]
    raw = json.dumps(ARRAY, ensure_ascii=False, **layout).encode()
    assert read(sources.read_items, "jsonl", gzip.compress(b"\xef\xbb\xbf" + raw)) == found


def test_elements_that_cannot_be_used_are_rejected(read):
    content = b'[{"item_id": 1}, 12, null, {"title": "T"}, {"item_id": "\xff"},\n{"item_id": 2}]'
    found = read(sources.read_items, "jsonl", content)
    assert [(o.reason, o.text) if type(o) is Rejected else o.item_id for _, o in found] == [
        "1",
        ("not a JSON object", "12"),
        ("not a JSON object", "null"),
        ("no item_id", '{"title": "T"}'),
        ("not UTF-8", '{"item_id": "\ufffd"}'),
        "2",
    ]
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"item_id": 1}, {"item_id": 2}', "broken or cut off in its element 3 "),
        (b'[{"item_id": 1}, {"item_id"', "broken or cut off in its element 2 "),
        (b'[{"item_id": 1} {"item_id": 2}]', "broken or cut off in its element 2 "),
        (b'[{"item_id": 1},]', "broken or cut off in its element 2 "),
        (b"[{'item_id': 1}]", "broken or cut off in its element 1 "),
        (b'[{"item_id": 1}]\n[{"item_id": 2}]', "holds something after its JSON array: give one"),
        (b'[{"item_id": "%b"}]' % (b"x" * 18 * 2**20), "or that one is longer than 16 MiB"),
    ],
)
def test_a_broken_array_is_one_line(read, content, message):
    with pytest.raises(CalrecError, match=f"file.jsonl .*{message}"):
        read(sources.read_items, "jsonl", content)


def test_lines_that_are_arrays_are_no_array_of_objects(read):
    found = read(sources.read_items, "jsonl", b'[1]\n[]\n{"item_id": 1}\n')
    assert [o.reason for _, o in found[:2]] == ["not a JSON object"] * 2 and found[2][0] == 3


# Columns


def test_columns_of_events_and_of_items_apart(read):
    columns = {"item_id": "sku", "title": "name", "timestamp": "at"}
    apart = {"event_columns": {"user_id": "Email", "item_id": "Lineitem sku"}}
    apart["item_columns"] = {"item_id": "Variant SKU", "author": "Vendor"}
    events = [{"Email": "u", "Lineitem sku": "a", "at": TIME, "sku": "x", "user_id": "x"}]
    items = [{"Variant SKU": "a", "name": "T", "Vendor": "V", "sku": "x"}]
    for source in FORMATS:
        [(_, event)] = read(sources.read_events, source, events, columns, **apart)
        assert event == Event("u", "a", None, TIME)
        [(_, item)] = read(sources.read_items, source, items, columns, **apart)
        assert item == Item("a", {"title": "T", "author": "V"})
    with pytest.raises(
        CalrecError, match="no column Lineitem sku, at, but Email; --columns or --ev"
    ):
        read(sources.read_events, "csv", [{"Email": "u"}], columns, **apart)
    with pytest.raises(
        CalrecError, match="no column Vendor, but .*; --columns or --item_columns c"
    ):
        read(sources.read_items, "csv", [{"Variant SKU": "a", "name": "T"}], columns, **apart)


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_mapped_column_must_be_there(read, source):
    event = [{"user_id": "u", "item_id": "a", "order": 1}]
    with pytest.raises(CalrecError, match="has no column when, but user_id, item_id, order"):
        read(sources.read_events, source, event, {"timestamp": "when"})
    with pytest.raises(CalrecError, match="has no column writer, but item_id"):
        read(sources.read_items, source, [{"item_id": "a"}], {"author": "writer"})
    assert len(read(sources.read_events, source, event, {"author": "writer"})) == 1


# Parquet


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
    write(tmp_path / "file", "parquet", [{"item_id": "a"}])
    content = damage((tmp_path / "file").read_bytes())
    with pytest.raises(CalrecError, match="file.parquet cannot be read to its end: ") as error:
        read(sources.read_items, "parquet", content)
    assert len(str(error.value).splitlines()) == 1


# get_source


def test_the_sources():
    assert sorted(sources.SOURCES) == [
        "amazon2014", "amazon2018", "amazon2023", "csv", "jsonl", "movielens", "movietweetings",
        "parquet",
    ]  # fmt: skip
    assert all(sources.get_source(name) == source for name, source in sources.SOURCES.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("amazon2019",),
            "unknown source 'amazon2019', did you mean amazon20.*known: amazon2014, ",
        ),
        (("movielens", {"user_id": "u"}), "movielens has columns and a time unit of its own: "),
        (("amazon2018", None, "ms"), "amazon2018 has columns and a time unit of its own: "),
        (("csv", {"User": "u"}), "'User' cannot name a field: use lower-case letters"),
        (("csv", {"title": ""}), "--columns names no column for title"),
        (("csv", {"1x": "u"}), "'1x' cannot name a field: .* and underscores, beginning with a l"),
        (("csv", None, "min"), "unknown time unit 'min'; known: s, ms, us, ns"),
    ],
)
def test_get_source_names_mistakes(arguments, message):
    with pytest.raises(CalrecError, match=message):
        sources.get_source(*arguments)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("jsonl", {"delimiter": ";"}, "jsonl has no delimiter: --delimiter is for csv"),
        ("movielens", {"delimiter": ";"}, "movielens has columns and a time unit of its own: "),
        ("csv", {"delimiter": "::"}, "'::' cannot be a delimiter: give one character, or tab"),
        ("csv", {"delimiter": '"'}, "cannot be a delimiter"),
        ("csv", {"delimiter": ""}, "'' cannot be a delimiter"),
        (
            "csv",
            {"event_columns": {"title": "name"}},
            "--event_columns has title=name: events have user_id, item_id, order, timestamp alone",
        ),
        (
            "csv",
            {"item_columns": {"timestamp": "at"}},
            "--item_columns has timestamp=at: items have item_id and text fields alone",
        ),
        ("csv", {"item_columns": {"title": ""}}, "--item_columns names no column for title"),
    ],
)
def test_get_source_names_mistakes_of_its_options(source, options, message):
    with pytest.raises(CalrecError, match=message):
        sources.get_source(source, **options)


@pytest.mark.slow
def test_real_files(shared_data):
    source = sources.get_source("jsonl")
    folder = str(shared_data / "amazon2018" / "Industrial_and_Scientific")
    files = sources.find_files(source, folder, download_dir=".")
    [events], [items] = files.events, files.items
    read = [outcome for _, outcome in sources.read_events(source, events)]
    assert len(read) == 59_384 and {type(outcome) for outcome in read} == {Event}
    listed = [outcome for _, outcome in sources.read_items(source, items)]
    assert len(listed) == 4_385 and {type(outcome) for outcome in listed} == {Item}
