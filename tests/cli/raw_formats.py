"""Raw files in the format of every source, with the same events and items."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.data.store import reader

DAY = 86_400
START = 1_500_000_000


@dataclasses.dataclass(frozen=True)
class Format:
    """How a source writes its files.

    Attributes:
      event: (user id, item id, Unix seconds or None) -> a line.
      item: (item id, title, category path, whether to write it as a list, price) -> a line.
      untimed: the reason for rejecting an event without a time.
      unit: what the reason for rejecting a time after 2100 says of the unit.
      headers: the first lines of the files of events and of items.
      latin1: whether lines that are not UTF-8 are read as Latin-1.
      fields: the fields that items have.
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
        """Writes both files; records that are bytes become lines as they are."""
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


def as_json(**values: Any) -> str:
    return json.dumps({name: value for name, value in values.items() if value is not None})


def as_csv(*cells: object) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow(cells)
    return written.getvalue()


def amazon(
    year: int,
    user: str = "reviewerID",
    item: str = "asin",
    time: str = "unixReviewTime",
    **more: Any,
) -> Format:
    kind, per_second = ("jsonl", 1000) if year == 2023 else ("json", 1)
    categories = "category" if year == 2018 else "categories"
    wrap = (lambda path: [path]) if year == 2014 else (lambda path: path)

    def event(user_id: str, item_id: str, seconds: int | None) -> str:
        stamp = None if seconds is None else seconds * per_second
        return as_json(**{user: user_id, item: item_id, time: stamp})

    def listing(
        item_id: str, title: str, path: Sequence[str], as_list: bool, price: str | None
    ) -> str:
        written = wrap(list(path)) if as_list else " ".join(path)
        return as_json(**{item: item_id, "title": title, categories: written, "price": price})

    files = (f"Toys.{kind}.gz", f"meta_Toys.{kind}.gz")
    return Format(f"amazon{year}", files, event, listing, f"no {time}", **more)


def colons(source: str, **more: Any) -> Format:
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
PATH, PRICE = ("Tools", "Saws"), "$12.99 - $20.00"
ITEMS = [(f"i{n}", f"Thing {n}", PATH, n % 2 == 0, PRICE) for n in range(7)]
# i6 is listed and never bought; "gone" is bought and never listed.
EVENTS = [
    *((f"u{u}", f"i{(u + n) % 6}", START + DAY * n) for u in range(4) for n in range(5)),
    *(("u0", "gone", START + DAY * n) for n in range(3)),
]


def prepare_toys(
    capfd: pytest.CaptureFixture[str], source: str, raw: pathlib.Path | str, *flags: str
) -> tuple[dict[str, Any] | None, list[str]]:
    """Prepares a folder as `toys` in `store`: (statistics or None, lines of standard error)."""
    files = [f"--source={source}", f"--input_dir={raw}"]
    code = cli.main(["prepare", *files, "--data_dir=store", "--domain=toys", *flags])
    out, err = capfd.readouterr()
    assert bool(out) == (code == 0)
    return json.loads(out) if out else None, err.splitlines()


def catalogue() -> dict[str, dict[str, str]]:
    """{item id: fields} of the prepared dataset."""
    read = reader.read_catalogue("store", "toys")
    return dict(zip(read.item_ids, read.fields, strict=True))


def records() -> dict[str, bytes]:
    """{name: bytes} of the files of the dataset that hold users and items."""
    return {path.name: path.read_bytes() for path in pathlib.Path("store").rglob("*.tfrecord*")}
