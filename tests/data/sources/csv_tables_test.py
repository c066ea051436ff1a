"""Separated values: delimiters, quotes, headers."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data import sources
from calrec_jax.data.sources import Event, Item, Rejected
from calrec_jax.errors import CalrecError

TIME = 1_500_000_000


def texts(outcomes) -> list:
    return [(n, o.fields["title"] if type(o) is Item else (o.reason, o.text)) for n, o in outcomes]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b'a,"x\ny",\nb,z,\n', [(2, "x y"), (4, "z")]),
        (b'a,"say ""hi"", you",\r\nb,z,\r\n', [(2, 'say "hi", you'), (3, "z")]),
        (b'a,5" pipe,\n', [(2, '5" pipe')]),
        (b"a,x\nb,y,z,w\n\nc,z,\n", [
            (2, ("not as many cells as columns", "a,x")),
            (3, ("not as many cells as columns", "b,y,z,w")),
            (5, "z"),
        ]),
        (b'a,"x\n\ny",\n\r\n  \nb,z,\n\n', [(2, "x y"), (7, "z")]),  # blank lines
        (b'a,"x\ny"\nb,z,\n', [
            (2, ("not as many cells as columns", 'a,"x\ny"')), (4, "z"),
        ]),
        # A quote that is never closed costs its own line, not the rest of the file.
        (b'a,"x,\nb,y,\nc,z,\n', [(2, ("not CSV", 'a,"x,')), (3, "y"), (4, "z")]),
        (b'a,"x"y,\nb,z,\n', [(2, ("not CSV", 'a,"x"y,')), (3, "z")]),
        (b"a,caf\xe9,\nb,z,\n", [(2, ("not UTF-8", "a,caf\ufffd,")), (3, "z")]),
        (b"a,x,\nb,z,", [(2, "x"), (3, "z")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_the_quirks_of_csv(read, bom, rows, expected):
    content = bom + b"item_id,title,brand\n" + rows
    assert texts(read(sources.read_items, "csv", content)) == expected


def test_a_long_field_and_a_long_line_of_csv_are_rejected(read):
    content = b"item_id,title\na,%b\nb,%b\nc,z\n" % (b"x" * 200_000, b"y," * (9 * 2**20))
    assert texts(read(sources.read_items, "csv", content)) == [
        (2, ("not CSV", "a," + "x" * 498)),
        (3, ("longer than 16 MiB", "b," + "y," * 249)),
        (4, "z"),
    ]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_every_row_that_csv_writes_is_read(tmp_path_factory, cells):
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([("item_id", "title"), *cells])
    path = tmp_path_factory.mktemp("csv") / "items.csv"
    path.write_bytes(written.getvalue().encode())
    found = list(sources.read_items(sources.get_source("csv"), str(path)))
    assert [type(outcome) for _, outcome in found] == [
        Item if item_id.strip() else Rejected for item_id, _ in cells
    ]
    starts = [2]
    for item_id, title in cells:
        starts.append(starts[-1] + 1 + item_id.count("\n") + title.count("\n"))
    assert [number for number, _ in found] == starts[:-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"user,item,time\n",
            "has no column user_id, item_id, but user, item, time; --columns or --event_c",
        ),
        (b"user_id,item_id\n", "has no column order or timestamp, but user_id, item_id;"),
        (b"user_id,item_id,order,order\n", "has more than one column order"),
        (b"", "is empty: its first line must name the columns"),
        (b"us\xe9r\n", "is not UTF-8 in its first line"),
        (b'"user\n', "is not CSV in its first line"),
    ],
)
def test_a_csv_header_that_does_not_fit(read, content, message):
    with pytest.raises(CalrecError, match=f"file.csv {message}"):
        read(sources.read_events, "csv", content)


SEMICOLONS = b"item_id;title, long;title\na;x,y;T 1\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"item_id;title\na;x, y\nb;z\n", [(2, "x, y"), (3, "z")]),
        (b"item_id\ttitle\na\tx, y; z\n", [(2, "x, y; z")]),
        (b"item_id|title\na|x, y; z\n", [(2, "x, y; z")]),
        (b'"item_id";"title"\n"a";"x; ""y"""\n', [(2, 'x; "y"')]),
        (b"\n \n item_id ; title \na;x\n", [(4, "x")]),
        # The delimiter is inferred from the header, whatever else is in it and in the rows.
        (SEMICOLONS, [(2, "T 1")]),
        (b"title;x,item_id\nx;y,a\n", [(2, None)]),
        (b"item_id,title\na;b,x;y\n", [(2, "x;y")]),
        (b"item_id\na;b,c\n", [(2, ("not as many cells as columns", "a;b,c"))]),
    ],
)
def test_the_header_tells_the_delimiter(read, content, expected):
    found = read(sources.read_items, "csv", content)
    shown = [o.fields.get("title") if type(o) is Item else (o.reason, o.text) for _, o in found]
    assert [(number, title) for (number, _), title in zip(found, shown, strict=True)] == expected


def test_a_delimiter_that_is_given(read):
    content = b"item_id~title;x\na~T\n"
    assert texts(
        read(sources.read_items, "csv", content, delimiter="~", columns={"title": "title;x"})
    ) == [(2, "T")]
    with pytest.raises(CalrecError, match="has no column item_id, but item_id;title;"):
        read(sources.read_items, "csv", b"item_id;title\na;T\n", delimiter=",")


def test_a_header_without_what_is_needed_is_shown_column_by_column(read):
    with pytest.raises(CalrecError, match="has no column item_id, but sku, title, en, name;"):
        read(sources.read_items, "csv", b"sku;title, en;name\na;T;N\n")


def test_the_files_of_recbole(read):
    events = (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4.0\t1500000000.0\n"
    )
    assert read(sources.read_events, "csv", events) == [(2, Event("u", "a", None, TIME))]
    items = (
        b"item_id:token\tmovie_title:token_seq\trelease:float\tclass:token_seq\n"
        b'a\t"Toy" Story\t1995\tComedy Family\n'
        b'b\t"x\t1996\t\n'  # quotes are text there
    )
    columns = {"title": "movie_title", "category": "class"}
    assert read(sources.read_items, "csv", items, columns) == [
        (2, Item("a", {"title": '"Toy" Story', "category": "Comedy Family"})),
        (3, Item("b", {"title": '"x'})),
    ]
    # Only where all columns have a type; otherwise the colon is part of a name.
    assert read(sources.read_items, "csv", b"item_id,a:token\ni,x\n", {"title": "a:token"}) == [
        (2, Item("i", {"title": "x"}))
    ]
