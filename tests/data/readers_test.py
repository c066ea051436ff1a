import gzip
import json
import pathlib

import pytest

from calrec_jax.data import readers
from calrec_jax.data.readers import Event
from calrec_jax.errors import CalrecError

FILES = {
    "amazon2018": ("meta.json.gz", "reviews.json.gz"),
    "jsonl": ("items.jsonl.gz", "interactions.jsonl.gz"),
}
KEYS = {"amazon2018": ("reviewerID", "asin"), "jsonl": ("user_id", "item_id")}


def line(record) -> bytes:
    return (record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n"


@pytest.fixture
def read(tmp_path):
    """Writes both files of a source and reads them: (domain, [rejected lines])."""

    def run(source, items=(), events=()):
        for name, records in zip(FILES[source], (items, events), strict=True):
            (tmp_path / name).write_bytes(gzip.compress(b"".join(map(line, records))))
        rejects = readers.Rejects(tmp_path / "rejects.jsonl")
        domain = readers.READERS[source](tmp_path, "d", rejects)
        rejects.close()
        lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
        kept = [json.loads(text) for text in lines]
        assert len(kept) == rejects.counts.total()
        return domain, kept

    return run


def fields(read, source="jsonl", **given) -> dict[str, str]:
    domain, rejected = read(source, [{KEYS[source][1]: "a", **given}])
    assert not rejected
    return domain.items["a"]


def test_the_jsonl_format(read):
    item = {"item_id": "a", "title": "T", "category": "C", "brand": "B", "price": "$1.50"}
    events = [
        {"user_id": "u", "item_id": "a", "order": 1, "timestamp": 50},
        {"user_id": "u", "item_id": "a", "order": 0, "timestamp": None},
        {"user_id": 7, "item_id": " a ", "order": 2.0, "timestamp": 60.0},
    ]
    domain, rejected = read("jsonl", [item | {"more": "x"}], events)
    assert not rejected
    assert domain.name == "d"
    assert domain.items == {"a": {"title": "T", "category": "C", "brand": "B", "price": "$1.50"}}
    assert domain.events == [
        Event("u", "a", 1, 50),
        Event("u", "a", 0, None),
        Event("7", "a", 2, 60),
    ]


def test_jsonl_events_are_sorted_by_what_the_first_one_has(read):
    timed = {"user_id": "u", "item_id": "a", "timestamp": 60}
    ranked = {"user_id": "u", "item_id": "a", "order": 3}
    domain, rejected = read("jsonl", [], [timed, ranked | timed, ranked])
    assert domain.events == [Event("u", "a", 60, 60), Event("u", "a", 60, 60)]
    assert [(r["line"], r["reason"]) for r in rejected] == [
        (3, "no timestamp, unlike the first event")
    ]
    domain, rejected = read("jsonl", [], [{}, ranked, timed, ranked | timed])
    assert domain.events == [Event("u", "a", 3, None), Event("u", "a", 3, 60)]
    assert [(r["line"], r["reason"]) for r in rejected] == [
        (1, "no user_id"), (3, "no order, unlike the first event"),
    ]  # fmt: skip


def test_the_amazon_2018_format(read):
    item = {"asin": "a", "title": "T", "category": ["Tools", "Saws"], "brand": "B", "price": "$2"}
    event = {"reviewerID": "u", "asin": "a", "overall": 5.0, "unixReviewTime": 1_500_000_000}
    domain, rejected = read("amazon2018", [item | {"main_cat": "x"}], [event])
    assert not rejected
    assert domain.items == {
        "a": {"title": "T", "category": "Tools Saws", "brand": "B", "price": "$2"}
    }
    assert domain.events == [Event("u", "a", 1_500_000_000, 1_500_000_000)]


BAD_LINES = {
    b'{"half": ': "not JSON",
    b"": "not JSON",
    b"[" * 100_000: "not JSON",
    b'{"title": "\xff\xfe"}': "not UTF-8",
    b"[1, 2]": "not a JSON object",
    b"null": "not a JSON object",
}


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("place", ["items", "events"])
def test_lines_that_are_no_objects_are_rejected_and_reading_goes_on(read, source, place):
    user, item = KEYS[source]
    good = {user: "u", item: "a", "title": "T", "timestamp": 5, "unixReviewTime": 5}
    domain, rejected = read(source, **{place: [*BAD_LINES, good]})
    name = FILES[source][place == "events"]
    assert [(r["source"], r["line"], r["reason"]) for r in rejected] == [
        (name, number, reason) for number, reason in enumerate(BAD_LINES.values(), start=1)
    ]
    assert [r["text"] for r in rejected][::4] == ['{"half": \n', "[1, 2]\n"]
    assert max(len(r["text"]) for r in rejected) == 500
    assert len(getattr(domain, place)) == 1


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ID": None}, "no {ID}"),
        ({"ID": "  "}, "no {ID}"),
        ({"ID": 1.5}, "no {ID}"),
        ({"ID": True}, "no {ID}"),
        ({"ID": ["a"]}, "no {ID}"),
        ({"ID": "a\ud83d"}, "{ID} is not Unicode"),
        ({"title": True}, "title is neither a string nor a number"),
        ({"title": "half \ud83d"}, "title is not Unicode"),
        ({"brand": ["B"]}, "brand is neither a string nor a number"),
        ({"price": {"usd": 9}}, "price is neither a string nor a number"),
        ({"category": 3}, "category is neither a string nor a list of strings"),
        ({"category": ["a", None]}, "category is neither a string nor a list of strings"),
        ({"category": ["a", "\udc00"]}, "category is not Unicode"),
    ],
)
def test_items_that_cannot_be_used_are_rejected(read, source, change, reason):
    key = KEYS[source][1]
    changed = {(key if name == "ID" else name): value for name, value in change.items()}
    good = {key: "a", "title": "T"}
    domain, rejected = read(source, [good | changed, {key: "b", "title": "T"}])
    assert [r["reason"] for r in rejected] == [reason.format(ID=key)]
    assert list(domain.items) == ["b"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": ""}, "no user_id"),
        ({"item_id": None}, "no item_id"),
        ({"timestamp": None, "order": None}, "neither order nor timestamp"),
        ({"timestamp": "5"}, "timestamp is not a 64-bit integer"),
        ({"timestamp": 5.5}, "timestamp is not a 64-bit integer"),
        ({"timestamp": True}, "timestamp is not a 64-bit integer"),
        ({"timestamp": 2**63}, "timestamp is not a 64-bit integer"),
        ({"timestamp": float("inf")}, "timestamp is not a 64-bit integer"),
        ({"timestamp": float("nan")}, "timestamp is not a 64-bit integer"),
        ({"order": [0]}, "order is not a 64-bit integer"),
    ],
)
def test_jsonl_events_that_cannot_be_used_are_rejected(read, change, reason):
    good = {"user_id": "u", "item_id": "a", "order": 0, "timestamp": 5}
    domain, rejected = read("jsonl", [], [good | change, good])
    assert [(r["line"], r["reason"]) for r in rejected] == [(1, reason)]
    assert domain.events == [Event("u", "a", 0, 5)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reviewerID": None}, "no reviewerID"),
        ({"asin": ""}, "no asin"),
        ({"unixReviewTime": None}, "no unixReviewTime"),
        ({"unixReviewTime": "yesterday"}, "unixReviewTime is not a 64-bit integer"),
    ],
)
def test_amazon_events_that_cannot_be_used_are_rejected(read, change, reason):
    good = {"reviewerID": "u", "asin": "a", "unixReviewTime": 5}
    domain, rejected = read("amazon2018", [], [good | change, good])
    assert [(r["line"], r["reason"]) for r in rejected] == [(1, reason)]
    assert len(domain.events) == 1


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Nuts &amp; Bolts", "Nuts & Bolts"),
        ("5&quot; pipe &#39;A&#39; caf&eacute;", "5\" pipe 'A' café"),
        ("<span class='x'>Big</span><br/>Saw", "Big Saw"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("sizes &lt; 5 and &gt; 3", "sizes < 5 and > 3"),  # no markup
        ("  two\n\tlines\u00a0here ", "two lines here"),
        ("日本語 🚴", "日本語 🚴"),
    ],
)
def test_text_is_cleaned(read, raw, cleaned):
    assert fields(read, title=raw, brand=raw) == {"title": cleaned, "brand": cleaned}
    assert fields(read, category=[raw]) == fields(read, category=raw) == {"category": cleaned}


def test_numbers_are_text_too(read):
    assert fields(read, title=1984, price=9.99) == {"title": "1984", "price": "9.99"}


def test_nan_is_a_missing_field_and_no_text(read):
    # Known defect elsewhere: a missing field is written as "nan".
    nan = float("nan")
    assert fields(read, title="T", brand=nan, price=nan, category=nan) == {"title": "T"}


def test_a_category_path_is_written_from_the_root_to_the_leaf(read):
    path = ["Industrial &amp; Scientific", "Saws", "Hand Saws"]
    written = {"category": "Industrial & Scientific Saws Hand Saws"}
    assert fields(read, category=path) == fields(read, "amazon2018", category=path) == written


@pytest.mark.parametrize("absent", [None, "", "   ", "<br>"])
def test_a_field_without_text_is_missing(read, absent):
    assert fields(read, title="T", brand=absent, category=absent, price=absent) == {"title": "T"}
    assert fields(read, category=[]) == {}


@pytest.mark.parametrize(
    ("price", "kept"),
    [
        ("$15.99", "$15.99"),
        ("$1,234.56 - $2,345.67", "$1,234.56 - $2,345.67"),
        ("4" * 40, "4" * 40),
        ("4" * 41, None),
        (".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected", None),
    ],
)
def test_a_price_is_kept_as_it_is_unless_it_is_the_remains_of_a_page(read, price, kept):
    assert fields(read, title="T", price=price).get("price") == kept


def test_the_first_listing_of_an_id_counts(read):
    items = [{"item_id": "a", "title": title} for title in ("first", "second")]
    domain, rejected = read("jsonl", items)
    assert domain.items == {"a": {"title": "first"}} and not rejected


def test_the_same_text_under_two_ids_is_two_items(read):
    domain, _ = read("jsonl", [{"item_id": i, "title": "same"} for i in "ab"])
    assert domain.items == {"a": {"title": "same"}, "b": {"title": "same"}}


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_missing_file_is_named(read, tmp_path, source, place):
    read(source)
    missing = tmp_path / FILES[source][place]
    missing.unlink()
    rejects = readers.Rejects(tmp_path / "r")
    with pytest.raises(CalrecError, match=f"{missing.name} is missing"):
        readers.READERS[source](tmp_path, "d", rejects)
    rejects.close()


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes(255 - byte for byte in data[40:60]) + data[60:]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], flipped, lambda data: b"plain text"],
    ids=["truncated", "bytes changed", "no gzip at all"],
)
def test_a_damaged_gz_file_is_one_error_that_names_it(read, tmp_path, damage):
    read("jsonl", [{"item_id": f"{i**7}", "title": f"T{i**5}"} for i in range(300)])
    path: pathlib.Path = tmp_path / "items.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    rejects = readers.Rejects(tmp_path / "r")
    with pytest.raises(CalrecError, match="items.jsonl.gz cannot be read to its end") as error:
        readers.read_jsonl(tmp_path, "d", rejects)
    assert len(str(error.value).splitlines()) == 1
    rejects.close()
