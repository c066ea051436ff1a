"""JSON that is one array of objects."""

import gzip
import json

import pytest

from calrec_jax.data import sources
from calrec_jax.data.sources import Item, Rejected, json_array
from calrec_jax.errors import CalrecError

ARRAY = [{"item_id": f"i{n}", "title": 'a "[{,}]" \n\\ é'} for n in range(5)]


@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_an_array_of_objects_is_read_as_lines_are(read, monkeypatch, layout, piece):
    monkeypatch.setattr(json_array, "_PIECE", piece)
    found = read(sources.read_items, "jsonl", b" \n" + json.dumps(ARRAY, **layout).encode() + b"\n")
    assert found == [(n + 1, Item(f"i{n}", {"title": 'a "[{,}]" \\ é'})) for n in range(5)]
    raw = json.dumps(ARRAY, ensure_ascii=False, **layout).encode()
    assert read(sources.read_items, "jsonl", gzip.compress(b"\xef\xbb\xbf" + raw)) == found


def test_elements_that_cannot_be_used_are_rejected(read):
    content = b'[{"item_id": 1}, 12, null, {"title": "T"}, {"item_id": "\xff"},\n{"item_id": 2}]'
    found = read(sources.read_items, "jsonl", content)
    assert [(o.reason, o.text) if type(o) is Rejected else o.item_id for _, o in found] == [
        "1",
        ("not a JSON object", "12"),
        ("not a JSON object", "null"),
        ("no item_id", '{"title": "T"}'),
        ("not UTF-8", '{"item_id": "\ufffd"}'),
        "2",
    ]
    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"item_id": 1}, {"item_id": 2}', "broken or cut off in its element 3 "),
        (b'[{"item_id": 1}, {"item_id"', "broken or cut off in its element 2 "),
        (b'[{"item_id": 1} {"item_id": 2}]', "broken or cut off in its element 2 "),
        (b'[{"item_id": 1},]', "broken or cut off in its element 2 "),
        (b"[{'item_id': 1}]", "broken or cut off in its element 1 "),
        (b'[{"item_id": 1}]\n[{"item_id": 2}]', "holds something after its JSON array: give one"),
        (b'[{"item_id": "%b"}]' % (b"x" * 18 * 2**20), "or that one is longer than 16 MiB"),
    ],
)
def test_a_broken_array_is_one_line(read, content, message):
    with pytest.raises(CalrecError, match=f"file.jsonl .*{message}"):
        read(sources.read_items, "jsonl", content)


def test_lines_that_are_arrays_are_no_array_of_objects(read):
    found = read(sources.read_items, "jsonl", b'[1]\n[]\n{"item_id": 1}\n')
    assert [o.reason for _, o in found[:2]] == ["not a JSON object"] * 2 and found[2][0] == 3
