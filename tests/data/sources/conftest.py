"""Files of the formats of tables, written and read back."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calrec_jax.data import sources


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
