from decimal import Decimal

import pytest

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item, Rejected
from calrec_jax.errors import CalrecError

FORMATS = ("jsonl", "csv", "parquet")
TIME = 1_500_000_000


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
    # Times counted from another beginning: these are no dates, though a few look like dates.
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
