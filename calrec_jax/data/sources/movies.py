"""MovieLens and MovieTweetings: ratings and movies, as CSV or with "::" between the values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from calrec_jax.data.sources import records, rows, times
from calrec_jax.data.sources.records import Event, Item, Reject
from calrec_jax.data.sources.source import Row, Rows, Source, text_names

_RATING = ("userId", "movieId", "rating", "timestamp")
_MOVIE = ("movieId", "title", "genres")
_NO_GENRES = "(no genres listed)"


@dataclasses.dataclass(frozen=True)
class Movies(Source):
    """MovieLens or MovieTweetings. A file has "::" between its values if its first line has.

    Attributes:
      latin1: whether lines with "::" that are not UTF-8 are read as Latin-1, which ml-1m is in.
    """

    latin1: bool = False

    def event_rows(self, path: str) -> Rows:
        return _rows(path, ("userId", "movieId", "timestamp"))

    def item_rows(self, path: str) -> Rows:
        return _rows(path, _MOVIE)

    def parse_event(self, row: Row) -> Event:
        record = row if isinstance(row, Mapping) else self._rating(row)
        user_id = records.identifier(record, "userId")
        item_id = records.identifier(record, "movieId")
        time = times.moment(records.given(record, "timestamp"), "timestamp")
        if time is None:
            raise Reject("no timestamp")
        return Event(user_id, item_id, None, *time)

    def parse_item(self, row: Row) -> Item:
        record = row if isinstance(row, Mapping) else self._movie(row)
        return records.item(records.identifier(record, "movieId"), record, _READERS)

    def _rating(self, line: bytes) -> dict[str, str]:
        values = self._text(line).split("::")
        if len(values) != len(_RATING):
            raise Reject("not four values with :: between them")
        return dict(zip(_RATING, values, strict=True))

    def _movie(self, line: bytes) -> dict[str, str]:
        movie_id, first, rest = self._text(line).partition("::")
        title, second, genres = rest.rpartition("::")  # a title may have "::" in it
        if not first or not second:
            raise Reject("not three values with :: between them")
        return {"movieId": movie_id, "title": title, "genres": genres}

    def _text(self, line: bytes) -> str:
        try:
            return rows.line_text(line)
        except Reject as reason:
            if self.latin1 and str(reason) == "not UTF-8":
                return line.decode("latin-1")
            raise


def _genres(record: Mapping[str, Any]) -> str:
    genres = records.clean_text(records.text(record, "genres").replace("|", " "))
    return "" if genres == _NO_GENRES else genres


_READERS = {"title": functools.partial(records.text, key="title"), "category": _genres}


def _rows(path: str, needed: tuple[str, ...]) -> Rows:
    _, first = next(rows.lines(path), (0, b""))
    if b"::" in first:
        return rows.lines(path)
    hint = "--source=csv reads columns of other names, given with --columns"
    return rows.csv_rows(path, rows.Columns(needed, hint=hint))


MOVIES = (
    Movies(
        "movielens",
        event_names=text_names("ratings", "csv", "dat"),
        item_names=text_names("movies", "csv", "dat"),
        latin1=True,
    ),
    Movies(
        "movietweetings",
        event_names=text_names("ratings", "dat"),
        item_names=text_names("movies", "dat"),
    ),
)
