import gzip
import json

import pytest

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item

YEARS = ("amazon2014", "amazon2018", "amazon2023")
EVENT = {
    "amazon2014": {"reviewerID": "u", "asin": "a", "unixReviewTime": 1_400_000_000},
    "amazon2018": {"reviewerID": "u", "asin": "a", "unixReviewTime": 1_500_000_000},
    "amazon2023": {"user_id": "u", "parent_asin": "a", "timestamp": 1_600_000_000_999},
}
KEYS = {year: tuple(event) for year, event in EVENT.items()}


def line(record) -> bytes:
    return (record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n"


@pytest.fixture
def read(tmp_path):
    """Writes lines and reads them back with `read_events` or `read_items`."""

    def run(reader, year, records):
        path = tmp_path / "file.json.gz"
        path.write_bytes(gzip.compress(b"".join(map(line, records))))
        return list(reader(sources.get_source(year), str(path)))

    return run


def one_item(read, year, **fields) -> dict[str, str]:
    [(number, item)] = read(sources.read_items, year, [{KEYS[year][1]: "a", **fields}])
    assert (number, item.item_id) == (1, "a")
    return item.fields


def reason(read, reader, year, record) -> str:
    [(_, outcome)] = read(reader, year, [record])
    return outcome.reason


@pytest.mark.parametrize(
    ("year", "time"),
    [("amazon2014", 1_400_000_000), ("amazon2018", 1_500_000_000), ("amazon2023", 1_600_000_000)],
)
def test_events(read, year, time):
    more = 999_000_000 if year == "amazon2023" else 0
    records = [
        EVENT[year] | {"rating": 5.0},
        EVENT[year] | {KEYS[year][0]: 7, KEYS[year][1]: " b "},
    ]
    assert read(sources.read_events, year, records) == [
        (1, Event("u", "a", None, time, more)),
        (2, Event("7", "b", None, time, more)),
    ]


def test_the_items_of_2014(read):
    record = {"asin": "a", "title": "T", "brand": "B", "price": 12.0}
    categories = {"categories": [["Beauty", "Skin Care"], ["Other"]], "salesRank": {"Beauty": 5}}
    fields = {"title": "T", "category": "Beauty Skin Care", "brand": "B", "price": "$12.00"}
    assert one_item(read, "amazon2014", **record, **categories) == fields
    assert one_item(read, "amazon2014", **record, category=["Beauty", "Skin Care"]) == fields


def test_the_items_of_2018(read):
    record = {"title": "T", "category": ["Tools", "Saws"], "brand": "B", "price": "$2"}
    fields = {"title": "T", "category": "Tools Saws", "brand": "B", "price": "$2"}
    assert one_item(read, "amazon2018", **record, main_cat="x") == fields


def test_the_items_of_2023(read):
    record = {
        "main_category": "All Beauty",
        "title": "T",
        "price": 12.5,
        "store": "S",
        "categories": ["Beauty", "Skin"],
        "details": {"Brand": "B"},
        "asin": "variant",
    }
    fields = {"title": "T", "category": "Beauty Skin", "brand": "S", "price": "$12.50"}
    assert one_item(read, "amazon2023", **record) == fields
    lacking = record | {"categories": [], "store": None, "price": None}
    fields = {"title": "T", "category": "All Beauty", "brand": "B"}
    assert one_item(read, "amazon2023", **lacking) == fields
    assert one_item(read, "amazon2023", title="T", details="{}", price="from 9.99") == {
        "title": "T",
        "price": "from 9.99",
    }


def test_an_item_of_2023_is_its_parent_or_else_itself(read):
    event = EVENT["amazon2023"] | {"asin": "variant"}
    alone = event | {"parent_asin": None}
    outcomes = read(sources.read_events, "amazon2023", [event, alone, alone | {"asin": None}])
    assert [outcome.item_id for _, outcome in outcomes[:2]] == ["a", "variant"]
    assert outcomes[2][1].reason == "no parent_asin"


@pytest.mark.parametrize("year", YEARS)
def test_entities_markup_nan_and_empty_fields(read, year):
    nan = float("nan")
    brand = {"amazon2023": "store"}.get(year, "brand")
    given = {"title": "<b>Nuts</b> &amp;\n Bolts", brand: nan, "price": nan, "category": nan}
    assert one_item(read, year, **given) == {"title": "Nuts & Bolts"}
    assert one_item(read, year, title="  ", **{brand: "<br>"}, price="") == {}


@pytest.mark.parametrize(
    ("price", "kept"),
    [
        ("$12.99 - $20.00", "$12.99 - $20.00"),
        ("4" * 40, "4" * 40),
        ("4" * 41, None),
        (7, "$7.00"),
        (12.989999771118164, "$12.99"),
        ("None", None),
        ("\u2014", None),
        (".a-box-inner{background-color:#fff}", None),
    ],
)
@pytest.mark.parametrize("year", YEARS)
def test_prices(read, year, price, kept):
    assert one_item(read, year, price=price).get("price") == kept


BAD_LINES = {
    b"[1, 2]": "not a JSON object",
    b"null": "not a JSON object",
    b'{"title": "\xff\xfe"}': "not UTF-8",
    b'{"half": ': "not JSON",
    b"[" * 100_000: "not JSON",
    b"9" * 5000: "not JSON",
    b"__import__('os').system('touch pwned')": "not JSON",
    b"{'asin': __import__('os').system('touch pwned')}": "not JSON",
    b"{'asin': [c for c in ().__class__.__base__.__subclasses__()]}": "not JSON",
    b"(" * 100_000: "not JSON",
    b"{[]: 1}": "not JSON",
    b"\x00": "not JSON",
}


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("reader", [sources.read_items, sources.read_events])
def test_lines_that_are_no_objects_are_rejected_and_reading_goes_on(
    read, reader, year, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    *rejected, (last, outcome) = read(reader, year, [*BAD_LINES, EVENT[year]])
    reasons = list(BAD_LINES.values())
    if year == "amazon2014":
        neither = "neither JSON nor a Python literal"
        reasons = [neither if reason == "not JSON" else reason for reason in reasons]
    assert [(number, r.file, r.line, r.reason) for number, r in rejected] == [
        (number, "file.json.gz", number, reason) for number, reason in enumerate(reasons, start=1)
    ]
    texts = [r.text for _, r in rejected]
    assert texts[:4] == ["[1, 2]", "null", '{"title": "\ufffd\ufffd"}', '{"half": ']
    assert texts[4] == "[" * 500
    assert (last, outcome.item_id) == (len(BAD_LINES) + 1, "a")
    assert not (tmp_path / "pwned").exists()


def test_the_lines_of_2014_may_be_python_literals(read):
    event = b"{'reviewerID': 'u', 'asin': 'a', 'helpful': [0, 1], 'unixReviewTime': 1400000000}"
    assert read(sources.read_events, "amazon2014", [event]) == [
        (1, Event("u", "a", None, 1_400_000_000))
    ]
    item = b"""{'asin': 'a', 'title': "Bob's \\xe9", 'price': 9.5, 'categories': [['X', 'Y']]}"""
    assert read(sources.read_items, "amazon2014", [item]) == [
        (1, Item("a", {"title": "Bob's é", "category": "X Y", "price": "$9.50"}))
    ]
    neither = "asin is neither a string nor an integer"
    assert reason(read, sources.read_items, "amazon2014", b"{1, 2}") == "not a JSON object"
    assert reason(read, sources.read_items, "amazon2014", b"{'asin': 1j}") == neither
    huge = b"{'asin': 'a', 'title': 0x" + b"f" * 9000 + b"}"
    expected = "title is neither a string nor a number"
    [(_, item)] = read(sources.read_items, "amazon2014", [huge])
    assert item == Item("a", {}, (expected,))


@pytest.mark.parametrize("year", ["amazon2018", "amazon2023"])
def test_python_literals_are_of_2014_alone(read, year):
    assert reason(read, sources.read_events, year, repr(EVENT[year]).encode()) == "not JSON"


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize(
    ("change", "reason_given"),
    [
        ({"USER": None}, "no USER"),
        ({"ITEM": " "}, "no ITEM"),
        ({"USER": "u\ud83d"}, "USER is not Unicode"),
        ({"TIME": None}, "no TIME"),
        ({"TIME": float("nan")}, "no TIME"),
        ({"TIME": "yesterday"}, "TIME is neither a number nor an ISO 8601 date"),
        ({"TIME": [5]}, "TIME is neither a number nor an ISO 8601 date"),
        ({"TIME": 2**63}, "TIME is neither a number nor an ISO 8601 date"),
        ({"TIME": 0}, "time stamp is not after 1970"),
        ({"TIME": -5}, "time stamp is not after 1970"),
        ({"TIME": 4_102_444_800_000}, "time stamp is after 2100: UNIT were expected"),
    ],
)
def test_events_that_cannot_be_used_are_rejected(read, year, change, reason_given):
    user, item, time = KEYS[year]
    names = {"USER": user, "ITEM": item, "TIME": time}
    changed = {names[name]: value for name, value in change.items()}
    for name, key in (
        names | {"UNIT": "seconds" if year < "amazon2023" else "milliseconds"}
    ).items():
        reason_given = reason_given.replace(name, key)
    (_, bad), (_, good) = read(sources.read_events, year, [EVENT[year] | changed, EVENT[year]])
    assert bad.reason == reason_given
    assert isinstance(good, Event)


@pytest.mark.parametrize(
    ("change", "reason_given"),
    [
        ({"asin": None}, "no asin"),
        ({"asin": True}, "asin is neither a string nor an integer"),
        ({"title": "half \ud83d"}, "title is not Unicode"),
        ({"category": ["a", "\udc00"]}, "category is not Unicode"),
    ],
)
def test_items_that_cannot_be_used_are_rejected(read, change, reason_given):
    assert reason(read, sources.read_items, "amazon2018", {"asin": "a"} | change) == reason_given


@pytest.mark.parametrize(
    ("field", "reason_given"),
    [
        ({"title": True}, "title is neither a string nor a number"),
        ({"brand": {"name": "B"}}, "brand is neither a string nor a number"),
        ({"price": {"usd": 9}}, "price is neither a string nor a number"),
        ({"price": "None"}, "price is no price"),
        ({"category": ["a", True]}, "category is a list of more than strings and numbers"),
        ({"title": "var aPageStart = (new Date()).getTime();"}, "title is the remains of a web pa"),
        ({"brand": ".a-box-inner{background-color:#fff}"}, "brand is the remains of a web page"),
    ],
)
def test_fields_that_cannot_be_used_are_left_out(read, field, reason_given):
    record = {"asin": "a", "title": "T", "brand": "B", "price": "$1", "category": ["C"]} | field
    [(_, item)] = read(sources.read_items, "amazon2018", [record])
    fields = {"title": "T", "brand": "B", "price": "$1", "category": "C"}
    assert item.fields == {k: v for k, v in fields.items() if k not in field}
    [left_out] = item.left_out
    assert left_out.startswith(reason_given)


def test_styles_and_scripts_of_2018_are_no_text(read):
    given = {
        "title": "<style>a{}</style>Lamp",
        "brand": "<script>var x = 1;</script>",
        "category": ["Tools", "<style type='text/css'>.a{color:red}</style>", None, "Saws"],
    }
    assert one_item(read, "amazon2018", **given) == {"title": "Lamp", "category": "Tools Saws"}


def test_a_record_of_50_mb_is_rejected_and_reading_goes_on(read):
    long = b'{"reviewText": "' + b"x" * 50_000_000 + b'"}'
    good = EVENT["amazon2018"]
    outcomes = read(sources.read_events, "amazon2018", [good, long, good, long])
    assert [number for number, _ in outcomes] == [1, 2, 3, 4]
    assert [type(outcome).__name__ for _, outcome in outcomes] == ["Event", "Rejected"] * 2
    assert outcomes[1][1].reason == "longer than 16 MiB"
    assert outcomes[1][1].text == '{"reviewText": "' + "x" * 484


@pytest.mark.slow
def test_real_files(shared_data):
    folder = str(shared_data / "amazon2018" / "Industrial_and_Scientific_timed")
    source = sources.get_source("amazon2018")
    files = sources.find_files(source, folder, download_dir=folder)
    [events], [items] = files.events, files.items
    read = [outcome for _, outcome in sources.read_events(source, events)]
    assert len(read) == 22_743 and {type(outcome) for outcome in read} == {Event}
    listed = [outcome for _, outcome in sources.read_items(source, items)]
    assert len(listed) == 3_541 and {type(outcome) for outcome in listed} == {Item}
    assert {event.item_id for event in read} == {item.item_id for item in listed}
