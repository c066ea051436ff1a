"""The interface of a source: one format of raw files, and how it is found, read and parsed."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from calrec_jax.data.sources.records import TEXT_LENGTH, Event, Item, Reject, Rejected

Row = bytes | Mapping[str, Any]
"""A raw line, or a row's values by column."""

Rows = Iterator[tuple[int, Row | Rejected]]
"""(number from 1, row or why it cannot be read) of each row of a file."""


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """One format of raw files.

    Attributes:
      name: the source's name on the command line.
      event_names, item_names: patterns for the names of its files in a folder. A file that both
        match holds items.
      several: whether a folder may hold several files of events, or of items, which are then all
        read; otherwise that is an error.
    """

    name: str
    event_names: tuple[str, ...]
    item_names: tuple[str, ...]
    several: bool = False

    @abc.abstractmethod
    def event_rows(self, path: str) -> Rows:
        """Numbered rows of a file of events, not parsed yet. Raises as `read_events` does."""

    @abc.abstractmethod
    def item_rows(self, path: str) -> Rows:
        """Numbered rows of a file of items, not parsed yet. Raises as `read_items` does."""

    @abc.abstractmethod
    def parse_event(self, row: Row) -> Event:
        """The event in a row. Raises Reject where it cannot be used."""

    @abc.abstractmethod
    def parse_item(self, row: Row) -> Item:
        """The item in a row. Raises Reject where it cannot be used."""

    def fitted(self, path: str) -> Source:
        """This source, adapted to one file of events. Raises as `read_events` does."""
        return self


def read_events(source: Source, path: str) -> Iterator[tuple[int, Event | Rejected]]:
    """Reads one file of events, lazily.

    Args:
      path: a local path or an fsspec URL.

    Yields:
      (line number from 1, event or why there is none), in the file's order.

    Raises:
      CalrecError: the file cannot be read to its end, or lacks a column.
    """
    source = source.fitted(os.fspath(path))
    yield from _read(path, source.event_rows, source.parse_event)


def read_items(source: Source, path: str) -> Iterator[tuple[int, Item | Rejected]]:
    """Reads one file of items, as `read_events` does; an item that is listed twice comes twice."""
    return _read(path, source.item_rows, source.parse_item)


def _read(
    path: str | os.PathLike, rows: Callable[[str], Rows], parse: Callable[[Row], Any]
) -> Iterator[tuple[int, Any]]:
    path = os.fspath(path)
    name = os.path.basename(path)
    for number, row in rows(path):
        try:
            yield number, row if type(row) is Rejected else parse(row)
        except Reject as reason:
            yield number, Rejected(name, number, str(reason), excerpt(row))


def text_names(stem: str, *endings: str) -> tuple[str, ...]:
    """The names of text files with this stem and these endings, plain and gzipped."""
    return tuple(f"{stem}.{ending}{gz}" for ending in endings for gz in ("", ".gz"))


def excerpt(row: Row) -> str:
    """The first 500 characters of a row, as valid Unicode and without the newline."""
    if isinstance(row, bytes):
        text = row[: 4 * TEXT_LENGTH].decode(errors="replace").rstrip("\r\n")
    else:
        text = json.dumps(row, ensure_ascii=False, default=str)
        text = text.encode(errors="replace").decode()
    return text[:TEXT_LENGTH]


def first_line(error: Exception) -> str:
    """The first line of a library's error message, or the error's type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
