"""The same events and items give the same dataset, from files in any format and anywhere."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_formats import EVENTS, FORMATS, ITEMS, PATH, prepare_toys, records
from remote import Site, fill_bucket


@pytest.fixture
def prepare(tmp_path, monkeypatch, capfd):
    """`prepare_toys`, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(prepare_toys, capfd)


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
