import functools
import gzip
import os
import sys

import pytest
from remote import fill_bucket

from calrec_jax.data import sources
from calrec_jax.data.sources import RawFiles
from calrec_jax.errors import CalrecError

LINE = b'{"user_id": "u", "item_id": "a", "order": 0}\n'


@pytest.fixture
def find(tmp_path):
    """`find_files` for the source called `source`."""

    def run(source, input_dir=None, events=(), items=()):
        return sources.find_files(
            sources.get_source(source), input_dir, events, items, download_dir=tmp_path / "web"
        )

    return run


@pytest.fixture
def gs(monkeypatch):
    """Google Cloud Storage in memory, with the objects {url: bytes}."""
    return functools.partial(fill_bucket, monkeypatch)


def make(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(LINE)


def names(paths) -> list[str]:
    return [os.path.basename(path) for path in paths]


@pytest.mark.parametrize(
    ("source", "events", "items"),
    [
        ("amazon2014", ["reviews_Books_5.json.gz"], ["meta_Books.json.gz"]),
        ("amazon2018", ["Books.json", "Toys.json.gz"], ["meta.json", "meta_Toys.json.gz"]),
        ("amazon2023", ["Books.jsonl.gz", "Toys.jsonl"], ["meta_Books.jsonl.gz"]),
        ("movielens", ["ratings.csv"], ["movies.csv.gz"]),
        ("movielens", ["ratings.dat.gz"], ["movies.dat"]),
        ("movietweetings", ["ratings.dat"], ["movies.dat.gz"]),
        ("jsonl", ["interactions.jsonl.gz"], ["items.jsonl"]),
        ("jsonl", ["interactions.json"], ["items.ndjson.gz"]),
        ("csv", ["interactions.csv"], ["items.csv.gz"]),
        ("csv", ["interactions.tsv.gz"], ["items.tsv"]),
        ("csv", ["ml-100k.inter"], ["ml-100k.item"]),
        ("parquet", ["interactions.parquet"], ["items.parquet"]),
    ],
)
def test_the_files_of_a_folder(find, tmp_path, source, events, items):
    make(tmp_path, *events, *items, "README.md", "._meta.json", ".x.json", "users.dat", "tags.csv")
    (tmp_path / "folder.json").mkdir()
    found = find(source, str(tmp_path))
    assert found == RawFiles(
        tuple(str(tmp_path / name) for name in events),
        tuple(str(tmp_path / name) for name in items),
    )


def test_named_files_are_read_in_place_of_those_of_the_folder(find, tmp_path):
    make(tmp_path, "interactions.jsonl", "items.jsonl", "b.x", "a.x", "c[1].x")
    found = find("jsonl", str(tmp_path), events=[f"{tmp_path}/*.x", str(tmp_path / "a.x")])
    assert names(found.events) == ["a.x", "b.x", "c[1].x"]
    assert names(found.items) == ["items.jsonl"]
    found = find("jsonl", events=[str(tmp_path / "c[1].x")], items=[f"{tmp_path}/[ab].x"])
    assert (names(found.events), names(found.items)) == (["c[1].x"], ["a.x", "b.x"])


def spark_table(folder, *more):
    folder.mkdir()
    for name in (
        "part-00001-x.parquet",
        "part-00000-x.parquet",
        "_SUCCESS",
        "._SUCCESS.crc",
        *more,
    ):
        (folder / name).write_bytes(LINE)


def test_a_folder_of_parts_is_a_table(find, tmp_path):
    table = tmp_path / "interactions.parquet"
    spark_table(table, ".part-00000-x.parquet.crc", "_committed_1")
    (tmp_path / "items.parquet").touch()
    parts = ("part-00000-x.parquet", "part-00001-x.parquet")
    events = tuple(str(table / name) for name in parts)
    assert find("parquet", str(tmp_path)).events == events
    for pattern in (str(table), f"{table}/", f"{tmp_path}/inter*", f"{table}/*", f"{table}/part*"):
        found = find("parquet", str(tmp_path), events=[pattern])
        assert found.events == events and names(found.items) == ["items.parquet"]


def test_a_folder_of_more_than_parts_is_none(find, tmp_path):
    spark_table(tmp_path / "interactions.parquet")
    (tmp_path / "interactions.parquet" / "_delta_log").mkdir()
    (tmp_path / "items.parquet").touch()
    beside = "interactions.parquet/ holds _delta_log beside its parts: name the files to read with"
    with pytest.raises(CalrecError, match=beside):
        find("parquet", str(tmp_path))
    with pytest.raises(CalrecError, match=beside):
        find("parquet", str(tmp_path), events=[str(tmp_path / "interactions.parquet")])


@pytest.mark.parametrize(
    ("source", "one", "other"),
    [
        ("csv", "interactions.csv", "interactions.tsv"),
        ("csv", "a.inter", "a.train.inter"),
        ("jsonl", "interactions.json", "interactions.jsonl"),
        ("movielens", "ratings.csv", "ratings.dat"),
    ],
)
def test_of_two_files_of_a_folder_the_user_says_which(find, tmp_path, source, one, other):
    make(tmp_path, one, other)
    message = f"has both {one} and {other}: name the one to read with --events"
    with pytest.raises(CalrecError, match=message):
        find(source, str(tmp_path))


def test_mistakes_are_named(find, tmp_path):
    with pytest.raises(CalrecError, match="no files of events: name them with --events, or give"):
        find("jsonl")
    with pytest.raises(CalrecError, match=f"there is no folder {tmp_path}/none"):
        find("jsonl", str(tmp_path / "none"))
    with pytest.raises(
        CalrecError, match="no events in .*: jsonl reads them from interactions.jso"
    ):
        find("jsonl", str(tmp_path))
    make(tmp_path, "interactions.jsonl")
    with pytest.raises(CalrecError, match="interactions.jsonl is a file, no folder: name files w"):
        find("jsonl", f"{tmp_path}/interactions.jsonl")
    with pytest.raises(
        CalrecError, match="no items in .*items.json .or .gz of that.; name the files with --it"
    ):
        find("jsonl", str(tmp_path))
    with pytest.raises(CalrecError, match=r"no file matches .*/\*.x$"):
        find("jsonl", str(tmp_path), items=[f"{tmp_path}/*.x"])
    with pytest.raises(CalrecError, match="no file matches .*: it is a folder; name its files"):
        find("jsonl", str(tmp_path), items=[str(tmp_path)])
    make(tmp_path, "interactions.jsonl.gz", "items.jsonl")
    both = "has both interactions.jsonl and interactions.jsonl.gz: name the one to read with --ev"
    with pytest.raises(CalrecError, match=both):
        find("jsonl", str(tmp_path))
    with pytest.raises(CalrecError, match="http://x is no folder that can be listed"):
        find("jsonl", "http://x")


def test_buckets(find, gs):
    folder = {f"gs://bucket/raw/{name}": LINE for name in ("items.jsonl", "part-1", "part-0")}
    gs(folder | {"gs://bucket/raw/interactions.jsonl.gz": gzip.compress(LINE)})
    for input_dir in ("gs://bucket/raw", "gs://bucket/raw/"):
        found = find("jsonl", input_dir)
        assert found.events == ("gs://bucket/raw/interactions.jsonl.gz",)
        assert found.items == ("gs://bucket/raw/items.jsonl",)
    found = find("jsonl", None, ["gs://bucket/raw/part-*"], ["gs://bucket/raw/items.jsonl"])
    assert found.events == ("gs://bucket/raw/part-0", "gs://bucket/raw/part-1")
    source = sources.get_source("jsonl")
    for path in (*found.events, "gs://bucket/raw/interactions.jsonl.gz"):
        [(number, event)] = sources.read_events(source, path)
        assert (number, event.item_id) == (1, "a")
    with pytest.raises(CalrecError, match=r"no file matches gs://bucket/raw/x\*$"):
        find("jsonl", None, ["gs://bucket/raw/x*"], ["gs://bucket/raw/items.jsonl"])
    with pytest.raises(CalrecError, match="no events in gs://bucket/none: jsonl reads"):
        find("jsonl", "gs://bucket/none")


def test_a_folder_of_parts_in_a_bucket(find, gs):
    table = "gs://bucket/raw/interactions.jsonl"
    gs({f"{table}/{name}": LINE for name in ("part-1.json", "part-0.json", "_SUCCESS")})
    events = (f"{table}/part-0.json", f"{table}/part-1.json")
    items = [f"{table}/part-0.json"]
    assert find("jsonl", "gs://bucket/raw", items=items).events == events
    for pattern in (table, f"{table}/", "gs://bucket/raw/inter*", f"{table}/*"):
        assert find("jsonl", None, [pattern], items).events == events


def test_tables_of_a_bucket(find, gs, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "x")
    gs({"gs://bucket/items.parquet": (tmp_path / "x").read_bytes(), "gs://bucket/cut": b"PAR1"})
    source = sources.get_source("parquet")
    [(_, item)] = sources.read_items(source, "gs://bucket/items.parquet")
    assert item.item_id == "a"
    with pytest.raises(CalrecError, match="gs://bucket/cut cannot be read to its end: "):
        list(sources.read_items(source, "gs://bucket/cut"))


def test_what_reads_a_bucket_may_be_missing(find, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(CalrecError, match=r"pip install 'calrec_jax\[gcs\]'$"):
        find("jsonl", "gs://bucket/raw")
    with pytest.raises(
        CalrecError, match="^nosuch://x cannot be read: Protocol not known: nosuch$"
    ):
        find("jsonl", None, ["nosuch://x"])


def read(path) -> list:
    return list(sources.read_items(sources.get_source("jsonl"), str(path)))


def test_gzip_is_known_by_its_content(tmp_path):
    packed, plain = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(LINE) + gzip.compress(LINE))
    plain.write_bytes(b"\xef\xbb\xbf" + LINE + LINE)
    for path in (packed, plain):
        assert [(number, item.item_id) for number, item in read(path)] == [(1, "a"), (2, "a")]


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes(255 - byte for byte in data[40:60]) + data[60:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        flipped,
        lambda data: data + b"x",
        lambda data: b"",
    ],
    ids=["truncated", "a byte of the end missing", "bytes changed", "something after", "empty"],
)
def test_a_damaged_gz_file_is_one_error_that_names_it(tmp_path, damage):
    lines = b"".join(b'{"item_id": "%d", "title": "T%d"}\n' % (i**7, i**5) for i in range(300))
    path = tmp_path / "items.jsonl.gz"
    path.write_bytes(damage(gzip.compress(lines)))
    with pytest.raises(CalrecError, match="items.jsonl.gz cannot be read to its end: ") as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04", "is a zip archive: unpack it first"),
        (b"BZh9", "is packed with bzip2: unpack it first"),
        (b"\xfd7zXZ\0", "is packed with xz: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "is packed with zstd: unpack it first"),
    ],
)
def test_other_packings_are_an_error(tmp_path, start, message):
    (tmp_path / "x").write_bytes(start + bytes(99))
    with pytest.raises(CalrecError, match=f"x {message}"):
        read(tmp_path / "x")


@pytest.mark.parametrize(("bom", "encoding"), [("", "utf-16"), ("\ufeff", "utf-16-be")])
def test_utf_16_is_an_error(tmp_path, bom, encoding):
    (tmp_path / "x").write_text(bom + LINE.decode(), encoding)
    with pytest.raises(CalrecError, match="x is UTF-16: save it as UTF-8, which alone is read"):
        read(tmp_path / "x")


def test_a_parquet_file_is_no_text(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1\x15")
    with pytest.raises(CalrecError, match="x is a Parquet file: read it with --source=parquet"):
        read(tmp_path / "x")


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(CalrecError, match="none cannot be opened: No such file or directory"):
        read(tmp_path / "none")
    (tmp_path / "empty").touch()
    assert read(tmp_path / "empty") == []
