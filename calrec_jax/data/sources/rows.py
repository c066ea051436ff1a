"""Numbered rows of JSON, CSV and Parquet files, which are read piece by piece."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import decimal
import functools
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from calrec_jax.data.sources import json_array
from calrec_jax.data.sources.files import opened, opened_as_is, reading
from calrec_jax.data.sources.records import Instant, Reject, Rejected
from calrec_jax.data.sources.source import Rows, excerpt, first_line
from calrec_jax.errors import CalrecError

if TYPE_CHECKING:
    import pyarrow

MAX_LINE = 16 * 2**20  # bytes
_TOO_LONG = "longer than 16 MiB"
_DELIMITERS = (",", "\t", ";", "|")
_TYPED = re.compile(r"(.+):(?:token|token_seq|float|float_seq)")  # RecBole's
_BATCH = 4096  # rows of a Parquet file in memory at a time


def _number(digits: str) -> float | decimal.Decimal:
    """A number with a fraction: a float, or an exact decimal where it has too many digits."""
    if len(digits) > 16:
        with contextlib.suppress(decimal.InvalidOperation):  # the exponent is too large
            return decimal.Decimal(digits)
    return float(digits)


_decode_json = json.JSONDecoder(parse_float=_number).decode


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its newline) of a text file, plain or gzip, without blank lines.

    A line longer than 16 MiB is cut to a part that `line_text` rejects.

    Raises:
      CalrecError: the file cannot be read to its end.
    """
    with opened(path) as file:
        yield from _not_blank(file)


def _not_blank(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in _numbered(file):
        if not line.isspace():
            yield number, line


def _numbered(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of all lines, including blank ones."""
    readline = functools.partial(file.readline, MAX_LINE + 1)
    for number, line in enumerate(iter(readline, b""), start=1):
        if len(line) > MAX_LINE:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = readline()
        yield number, line


def json_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The `lines` of a file, or the elements of a file that is one JSON array of objects.

    Yields:
      (number from 1, line or element).

    Raises:
      CalrecError: the file cannot be read to its end, or the array is broken.
    """
    with opened(path) as file:
        if json_array.begins(file.peek()):
            yield from json_array.elements(file, path, MAX_LINE)
        else:
            yield from _not_blank(file)


def line_text(line: bytes) -> str:
    """A line decoded as UTF-8. Raises Reject where it is not UTF-8, or too long."""
    if len(line) > MAX_LINE:
        raise Reject(_TOO_LONG)
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise Reject("not UTF-8") from None


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises Reject where there is none."""
    try:
        record = _decode_json(line_text(line))
    except (RecursionError, ValueError):
        raise Reject("not JSON") from None
    if type(record) is not dict:
        raise Reject("not a JSON object")
    return record


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that are read of a table.

    Attributes:
      needed: columns that must be present.
      one_of: columns of which at least one must be present.
      others: columns that may be present.
      hint: what the user can do where a column is missing.
    """

    needed: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    hint: str = ""

    def missing_from(self, header: Sequence[str]) -> list[str]:
        """The columns that must be in `header` and are not, as an error names them."""
        missing = [name for name in self.needed if name not in header]
        if not missing and self.one_of and not set(self.one_of) & set(header):
            missing = [" or ".join(self.one_of)]
        return missing

    def select(self, header: Sequence[str], path: str) -> list[str]:
        """The columns of `header` that are read.

        Raises:
          CalrecError: a column is missing, or there twice.
        """
        missing = self.missing_from(header)
        if missing:
            raise CalrecError(
                f"{path} has no column {', '.join(missing)}, but {', '.join(header)}; {self.hint}"
            )
        names = dict.fromkeys((*self.needed, *self.one_of, *self.others))
        twice = [name for name in names if header.count(name) > 1]
        if twice:
            raise CalrecError(f"{path} has more than one column {', '.join(twice)}")
        return [name for name in names if name in header]


class _LineFeed:
    """Feeds lines to csv.reader, and remembers the lines of the row that is being read."""

    def __init__(self, numbered: Iterator[tuple[int, bytes]]):
        self._numbered = numbered
        self._returned: list[tuple[int, bytes]] = []
        self.row: list[tuple[int, bytes]] = []

    def __iter__(self) -> _LineFeed:
        return self

    def __next__(self) -> str:
        number, line = self._returned.pop() if self._returned else next(self._numbered)
        self.row.append((number, line))
        if len(line) > MAX_LINE:
            raise csv.Error(_TOO_LONG)
        return line.decode(errors="surrogateescape")

    def give_back(self, first: int = 1) -> None:
        """Takes back the row's lines from the `first` (from 0) on: they are fed again."""
        self._returned += self.row[first:][::-1]
        del self.row[first:]


def csv_rows(path: str, columns: Columns, delimiter: str | None = None) -> Rows:
    """Rows of a CSV file with a header line, each {column: cell} of all columns of the file.

    Blank lines are skipped. Types in the header (`item_id:token`, as RecBole writes them) are not
    part of the columns' names; in such a file quotes have no meaning.

    Args:
      columns: the columns that must be there.
      delimiter: the character between cells; None: the one of comma, tab, ; and | that gives the
        header line the needed columns.

    Raises:
      CalrecError: a column is missing, or the file cannot be read to its end.
    """
    name = os.path.basename(path)
    with opened(path) as file:
        feed = _LineFeed(itertools.dropwhile(lambda line: line[1].isspace(), _numbered(file)))
        delimiter = delimiter or _infer_delimiter(feed, columns)
        header, quoting = _read_header(feed, delimiter, path)
        columns.select(header, path)
        for cells in _csv_cells(feed, delimiter, quoting):
            number, line = feed.row[0]
            if isinstance(cells, str):
                yield number, Rejected(name, number, cells, excerpt(line))
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif len(cells) > 1 or not line.isspace():
                reason = "not as many cells as columns"
                row = b"".join(line for _, line in feed.row)
                yield number, Rejected(name, number, reason, excerpt(row))


def _infer_delimiter(feed: _LineFeed, columns: Columns) -> str:
    """The first delimiter that gives the header the needed columns; otherwise the most cells.

    The header line is fed again afterwards.
    """
    headers = {}
    for delimiter in _DELIMITERS:
        cells = next(_csv_cells(feed, delimiter), ())
        headers[delimiter] = () if isinstance(cells, str) else _column_names(cells)[0]
        feed.give_back(0)
    for delimiter, header in headers.items():
        if not columns.missing_from(header):
            return delimiter
    return max(headers, key=lambda delimiter: len(headers[delimiter]))


def _read_header(feed: _LineFeed, delimiter: str, path: str) -> tuple[list[str], int]:
    """(the columns' names, csv's constant for how cells are quoted).

    Raises:
      CalrecError: there is no header line.
    """
    cells = next(_csv_cells(feed, delimiter), None)
    if cells is None:
        raise CalrecError(f"{path} is empty: its first line must name the columns")
    if isinstance(cells, str):
        raise CalrecError(f"{path} is {cells} in its first line, which must name the columns")
    names, typed = _column_names(cells)
    return names, csv.QUOTE_NONE if typed else csv.QUOTE_MINIMAL


def _column_names(header: Sequence[str]) -> tuple[list[str], bool]:
    """(the columns' names without types, whether all of them were written with a type)."""
    typed = [_TYPED.fullmatch(cell.strip()) for cell in header]
    if header and all(typed):
        return [match[1] for match in typed], True
    return [cell.strip() for cell in header], False


def _csv_cells(
    feed: _LineFeed, delimiter: str, quoting: int = csv.QUOTE_MINIMAL
) -> Iterator[list[str] | str]:
    """The cells of each row, or why it is rejected; its lines are in `feed.row`."""
    reader = csv.reader(feed, strict=True, delimiter=delimiter, quoting=quoting)
    while True:
        feed.row = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # also a quote that is never closed
            one_line = len(feed.row) == 1
            feed.give_back()
            yield _TOO_LONG if one_line and str(error) == _TOO_LONG else "not CSV"
            continue
        escaped = not all(map(str.isascii, cells)) and _has_escapes(cells)
        yield "not UTF-8" if escaped else cells


def _has_escapes(cells: list[str]) -> bool:
    """Whether `cells`, decoded with "surrogateescape", held bytes that are not UTF-8."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return True
    return False


def parquet_rows(path: str, columns: Columns) -> Rows:
    """Rows of a Parquet file, each {column: value}, with those of `columns` alone.

    Dates and times come as Instants.

    Raises:
      CalrecError: a column is missing, or the file cannot be read to its end.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with reading(path), opened_as_is(path) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            wanted = columns.select(parquet.schema_arrow.names, path)
            number = 0
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                names = batch.schema.names
                values = [_values(column) for column in batch.columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield number, dict(zip(names, row, strict=True))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise CalrecError(f"{path} cannot be read to its end: {first_line(error)}") from error


def _values(column: pyarrow.Array) -> list[Any]:
    """A column's values as Python's. Bytes that are not UTF-8 become halves of surrogate pairs."""
    import pyarrow

    kind, per_unit = column.type, _nanoseconds(column.type)
    if per_unit:
        units = column.cast(pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64())
        return [None if v is None else Instant(v * per_unit) for v in units.to_pylist()]
    if kind in (pyarrow.float16(), pyarrow.float32()):
        # 12.99 in 32 bits is 12.989999771118164 in 64: the shortest digits are the number meant.
        dtype = np.float16 if kind == pyarrow.float16() else np.float32
        return [None if v is None else float(str(dtype(v))) for v in column.to_pylist()]
    if _holds_bytes(kind):  # strings whose type the file does not mark as text
        return _decoded(column)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return _decoded(column.cast(pyarrow.large_binary()))


def _nanoseconds(kind: pyarrow.DataType) -> int:
    """Nanoseconds in the unit of a date or time type; 0 for other types."""
    import pyarrow

    if pyarrow.types.is_timestamp(kind):
        return {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[kind.unit]
    if pyarrow.types.is_date32(kind):
        return 86_400 * 10**9
    return 10**6 if pyarrow.types.is_date64(kind) else 0


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow

    types = pyarrow.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return types.is_fixed_size_binary(kind) or any(test(kind) for test in tests)


def _decoded(column: pyarrow.Array) -> list[str | None]:
    values = column.to_pylist()
    return [None if v is None else v.decode(errors="surrogateescape") for v in values]
