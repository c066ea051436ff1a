"""`calrec prepare` on dumps with all their troubles, in the format of every source."""

from __future__ import annotations

import collections
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remote import Site, fill_bucket

from calrec_jax.cli import main as cli
from calrec_jax.data.store import reader

DAY = 86_400
START = 1_500_000_000
MARKED_UP = "<b>Nuts</b> &amp;\tBolts"
LONG = 17_000_000  # more than 16 MiB


@dataclasses.dataclass(frozen=True)
class Format:
    """How a source writes its files.

    Attributes:
      event: (user id, item id, Unix seconds or None) -> a line.
      item: (item id, title, category path, whether as a list, price) -> a line.
      untimed: the reason why an event without a time is not used.
      unit: that a time after 2100 is suspected of.
      headers: the first lines of events and of items.
      latin1: whether what is no UTF-8 is Latin-1.
      fields: that items have.
    """

    source: str
    files: tuple[str, str]
    event: Callable[[str, str, int | None], str]
    item: Callable[[str, str, Sequence[str], bool, str], str]
    untimed: str
    unit: str = "seconds were expected"
    headers: tuple[tuple[bytes, ...], tuple[bytes, ...]] = ((), ())
    latin1: bool = False
    fields: tuple[str, ...] = ("title", "category", "price")

    def write(self, folder: pathlib.Path, events: Sequence, items: Sequence) -> pathlib.Path:
        """Writes both files; bytes are a line as it is."""
        folder.mkdir(exist_ok=True)
        makers = (self.event, self.item)
        for name, header, make, records in zip(
            self.files, self.headers, makers, (events, items), strict=True
        ):
            lines = [r if isinstance(r, bytes) else make(*r).encode() for r in records]
            content = b"".join(line + b"\n" for line in (*header, *lines))
            packed = gzip.compress(content, 1) if name.endswith(".gz") else content
            (folder / name).write_bytes(packed)
        return folder


def as_json(**values) -> str:
    return json.dumps({name: value for name, value in values.items() if value is not None})


def as_csv(*cells) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(cells)
    return written.getvalue()


def amazon(year: int, user="reviewerID", item="asin", time="unixReviewTime", **more) -> Format:
    kind, per_second = ("jsonl", 1000) if year == 2023 else ("json", 1)
    categories = "category" if year == 2018 else "categories"
    wrap = (lambda path: [path]) if year == 2014 else (lambda path: path)

    def event(user_id, item_id, seconds):
        stamp = None if seconds is None else seconds * per_second
        return as_json(**{user: user_id, item: item_id, time: stamp})

    def listing(item_id, title, path, as_list, price):
        written = wrap(list(path)) if as_list else " ".join(path)
        return as_json(**{item: item_id, "title": title, categories: written, "price": price})

    files = (f"Toys.{kind}.gz", f"meta_Toys.{kind}.gz")
    return Format(f"amazon{year}", files, event, listing, f"no {time}", **more)


def colons(source: str, **more) -> Format:
    return Format(
        source,
        ("ratings.dat", "movies.dat"),
        lambda user, item, seconds: f"{user}::{item}::5::{'' if seconds is None else seconds}",
        lambda item, title, path, as_list, price: f"{item}::{title}::{'|'.join(path)}",
        "no timestamp",
        fields=("title", "category"),
        **more,
    )


FORMATS = {
    "amazon2014": amazon(2014),
    "amazon2018": amazon(2018),
    "amazon2023": amazon(
        2023, "user_id", "parent_asin", "timestamp", unit="milliseconds were expected"
    ),
    "movielens": Format(
        "movielens",
        ("ratings.csv.gz", "movies.csv.gz"),
        lambda user, item, seconds: as_csv(user, item, 4.5, seconds),
        lambda item, title, path, as_list, price: as_csv(item, title, "|".join(path)),
        "no timestamp",
        headers=((b"userId,movieId,rating,timestamp",), (b"movieId,title,genres",)),
        fields=("title", "category"),
    ),
    "movielens_1m": colons("movielens", latin1=True),
    "movietweetings": colons("movietweetings"),
    "jsonl": Format(
        "jsonl",
        ("interactions.jsonl.gz", "items.jsonl.gz"),
        lambda user, item, seconds: as_json(user_id=user, item_id=item, timestamp=seconds),
        lambda item, title, path, as_list, price: as_json(
            item_id=item,
            title=title,
            category=list(path) if as_list else " ".join(path),
            price=price,
        ),
        "neither order nor timestamp",
        "seconds were expected, see --time_unit",
    ),
    "csv": Format(
        "csv",
        ("interactions.csv.gz", "items.csv.gz"),
        as_csv,
        lambda item, title, path, as_list, price: as_csv(item, title, " ".join(path), price),
        "neither order nor timestamp",
        "seconds were expected, see --time_unit",
        headers=((b"user_id,item_id,timestamp",), (b"item_id,title,category,price",)),
    ),
}
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)

PATH, PRICE = ("Tools", "Saws"), "$12.99 - $20.00"
ITEMS = [(f"i{n}", f"Thing {n}", PATH, n % 2 == 0, PRICE) for n in range(7)]
# i6 is listed and never bought; "gone" is bought and never listed.
EVENTS = [
    *((f"u{u}", f"i{(u + n) % 6}", START + DAY * n) for u in range(4) for n in range(5)),
    *(("u0", "gone", START + DAY * n) for n in range(3)),
]


@pytest.fixture
def prepare(tmp_path, monkeypatch, capfd):
    """Prepares a folder as `toys` in `store`: (statistics or None, lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(source: str, raw: pathlib.Path, *flags):
        made = ["--data_dir=store", "--domain=toys"]
        code = cli.main(["prepare", f"--source={source}", f"--input_dir={raw}", *made, *flags])
        out, err = capfd.readouterr()
        assert bool(out) == (code == 0)
        return json.loads(out) if out else None, err.splitlines()

    return run


def catalogue() -> dict[str, dict[str, str]]:
    found = reader.read_catalogue("store", "toys")
    return dict(zip(found.item_ids, found.fields, strict=True))


def records() -> dict[str, bytes]:
    """The files of the dataset that hold users and items."""
    return {path.name: path.read_bytes() for path in pathlib.Path("store").rglob("*.tfrecord*")}


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
def test_a_bad_line_costs_itself_and_nothing_else(prepare, tmp_path, form):
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
    told = f"calrec prepare: {len(expected)} lines rejected, see store/toys/rejects.jsonl"
    assert err == [told]


@every_format
def test_blank_lines_are_no_lines(prepare, tmp_path, form):
    good, _ = prepare(form.source, form.write(tmp_path / "raw", EVENTS, ITEMS))
    records_of_good = records()
    events = [*EVENTS[:9], b"", b" \t\r", *EVENTS[9:], b"", b""]
    raw = form.write(tmp_path / "raw", events, [b"", *ITEMS[:2], b"\r", *ITEMS[2:]])
    assert prepare(form.source, raw) == (good, []) and records() == records_of_good


def test_a_record_of_50_mb_costs_itself_and_nothing_else(prepare, tmp_path):
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
def test_times_in_the_future_are_warned_of(prepare, tmp_path, form):
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


def test_parquet_holds_what_lines_of_json_do(prepare, tmp_path):
    form = FORMATS["jsonl"]
    raw = form.write(tmp_path / "raw", EVENTS, ITEMS)
    expected, _ = prepare("jsonl", raw)
    records_of_lines = records()
    columns = zip(*EVENTS, ("u0", "i1", None), ("u0", "i1", 0), strict=True)
    events = dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True))
    pq.write_table(pa.table(events), raw / "interactions.parquet")
    items = [json.loads(form.item(*item)) | {"category": list(PATH)} for item in ITEMS]
    pq.write_table(pa.Table.from_pylist(items), raw / "items.parquet")
    stats, _ = prepare("parquet", raw)
    assert stats["rejected_lines"] == {
        "neither order nor timestamp": 1,
        "time stamp is not after 1970": 1,
    }
    assert stats["checksums"] == expected["checksums"] and records() == records_of_lines
    whole = (raw / "interactions.parquet").read_bytes()
    (raw / "interactions.parquet").write_bytes(whole[:-20])
    stats, (line,) = prepare("parquet", raw)
    assert stats is None and "interactions.parquet cannot be read to its end: " in line
    assert records() == records_of_lines


def test_tables_of_other_shapes_hold_what_lines_of_json_do(prepare, tmp_path):
    raw = FORMATS["jsonl"].write(tmp_path / "raw", EVENTS, ITEMS)
    expected, _ = prepare("jsonl", raw)
    records_of_lines = records()

    def same(source, folder, *flags):
        stats, err = prepare(source, folder, *flags)
        assert err == [] and records() == records_of_lines
        assert stats["checksums"] == expected["checksums"]

    def rows(*records) -> str:
        return "".join(f"{';'.join(map(str, record))}\n" for record in records)

    table = [(item, title, " ".join(path), price) for item, title, path, _, price in ITEMS]
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "interactions.csv").write_text(rows(("Email", "Lineitem sku", "at"), *EVENTS))
    (shop / "items.csv").write_text(rows(("Variant SKU", "title", "category", "price"), *table))
    events = "--event_columns=user_id=Email,item_id=Lineitem sku"
    same("csv", shop, "--columns=timestamp=at", events, "--item_columns=item_id=Variant SKU")
    same(
        "csv",
        shop,
        "--columns=timestamp=at",
        events,
        "--item_columns=item_id=Variant SKU",
        "--delimiter=;",
    )

    recbole = tmp_path / "recbole"
    recbole.mkdir()
    header = ("user_id:token", "item_id:token", "timestamp:float")
    (recbole / "toys.inter").write_text(rows(header, *EVENTS).replace(";", "\t"))
    header = ("item_id:token", "title:token_seq", "category:token_seq", "price:token")
    (recbole / "toys.item").write_text(rows(header, *table).replace(";", "\t"))
    same("csv", recbole)

    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for name in ("interactions", "items"):
        lines = gzip.decompress((raw / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
        (arrays / f"{name}.json").write_text(f"[{','.join(lines)}]")
    same("jsonl", arrays)

    spark = tmp_path / "spark"
    for name in ("interactions", "items"):
        (spark / f"{name}.jsonl").mkdir(parents=True)
        lines = (arrays / f"{name}.json").read_text()[1:-1].replace("},{", "}\n{").splitlines()
        for n, part in enumerate((lines[:5], lines[5:])):
            (spark / f"{name}.jsonl" / f"part-0000{n}.json").write_text("\n".join(part))
        (spark / f"{name}.jsonl" / "_SUCCESS").touch()
    same("jsonl", spark)


def test_wherever_the_files_are_the_dataset_is_the_same(prepare, tmp_path, monkeypatch):
    form = FORMATS["amazon2018"]
    raw = form.write(tmp_path / "raw", EVENTS, ITEMS)
    events, items = (raw / name for name in form.files)
    expected, _ = prepare(form.source, raw)
    records_of_folder = records()

    def same(*flags):
        stats, err = prepare(form.source, "nowhere", *flags)
        assert err == [] and records() == records_of_folder
        assert stats["checksums"] == expected["checksums"]

    same(f"--events={raw}/T*.gz", f"--items={items}")
    packed = {"events.json": events.read_bytes(), "items.json": items.read_bytes()}
    fill_bucket(monkeypatch, {f"gs://bucket/{name}": data for name, data in packed.items()})
    same("--events=gs://bucket/e*", "--items=gs://bucket/items.json")
    sha256 = hashlib.sha256(packed["items.json"]).hexdigest()
    with Site({f"/{name}": data for name, data in packed.items()}) as site:
        pinned = f"--items={site.url}/items.json#sha256={sha256}"
        same(f"--events={site.url}/events.json", pinned)
        stats, (line,) = prepare(form.source, "nowhere", f"--events={site.url}/none", pinned)
        assert stats is None and line.startswith(
            f"calrec prepare: error: {site.url}/none cannot be downloaded: "
        )
    same(f"--events={site.url}/events.json", pinned)  # which is no longer there
    assert site.asked == ["/events.json", "/items.json", "/none"]
