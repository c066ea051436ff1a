"""A small raw folder in the format jsonl, prepared as the domain `toys`."""

from __future__ import annotations

import gzip
import json

from calrec_jax.data.preparation.prepare import prepare
from calrec_jax.data.preparation.sequences import Rules

ITEMS = [{"item_id": f"i{n}", "title": f"Thing {n}", "brand": "B" * (n % 2)} for n in range(6)]
# The last but one item of "long" is sold to nobody else, and is in no training sequence.
BOUGHT = {
    "long": ["i0", "i0", "i1", "i2", "i3", "i4"],
    "three": ["i1", "i2", "i0"],
    "short": ["i1", "i1", "i2"],
    "unknown": ["i9", "i0", "i1"],
}
EVENTS = [
    {"user_id": user, "item_id": item, "order": n, "timestamp": 86_400 * (1 + n // 2)}
    for user, items in BOUGHT.items()
    for n, item in enumerate(items)
]


def write_raw(folder, items=ITEMS, events=EVENTS, more=()):
    """Writes both files and returns the folder; `more` are events or, as bytes, raw lines."""
    folder.mkdir(exist_ok=True)
    for name, records in (("items", items), ("interactions", [*events, *more])):
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*lines, b""])))
    return folder


def make(tmp_path, raw=None, **rules):
    """Prepares `raw`, or the default folder, and returns the statistics."""
    raw = raw or write_raw(tmp_path / "raw")
    quiet = {"warn": lambda _: None}  # times of 1970 are warned of
    return prepare("jsonl", raw, tmp_path / "store", "toys", Rules(**rules), **quiet)


def temporal(**rules):
    """Rules of the temporal split, whose periods begin with the second and the third day."""
    day = 86_400
    return {"split": "temporal", "validation_from": 2 * day, "test_from": 3 * day} | rules


def bought(*times, user="u", **more) -> list[dict]:
    """Events of a user who buys i0, i1, ... at `times`."""
    return [
        {"user_id": user, "item_id": f"i{n}", "timestamp": t, **more} for n, t in enumerate(times)
    ]


def files(folder):
    """{relative path: bytes} of all files in a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
