import decimal
import functools
import re
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.sources import records
from calrec_jax.data.sources.records import Instant, Item, LeftOut, Reject


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Nuts &amp; Bolts", "Nuts & Bolts"),
        ("AT&T", "AT&T"),
        ("5&quot; pipe &#39;A&#39; caf&eacute;", "5\" pipe 'A' café"),
        ("<span class='x'>Big</span><br/>Saw", "Big Saw"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("sizes &lt; 5 and &gt; 3", "sizes < 5 and > 3"),  # no markup
        ("sizes < 5", "sizes < 5"),
        ("half a pair &#xd83d;", "half a pair \ufffd"),
        ("  two\n\tlines\u00a0here ", "two lines here"),
        ("日本語 🚴", "日本語 🚴"),
        ("<br>", ""),
        ("<style>a{}</style>Lamp", "Lamp"),
        ("Big <SCRIPT type='x'>if (a < b) { c() }</script >Lamp", "Big Lamp"),
        ("&lt;style&gt;a{}&lt;/style&gt;Lamp", "Lamp"),
        ("<!-- <b>not</b> shown -->Lamp<!---->", "Lamp"),
        ("Using <script> and <style>", "Using and"),
        ("<i>--x</i> <style>a{}--y</style> --> z", "--x --> z"),
        ("<scripture>Psalms</scripture>", "Psalms"),
    ],
)
def test_text_is_cleaned(raw, cleaned):
    assert records.clean_text(raw) == cleaned
    assert records.text({"t": raw}, "t") == cleaned
    assert records.path({"t": [raw]}, "t") == records.path({"t": raw}, "t") == cleaned


@given(st.text())
def test_clean_text_has_single_spaces_and_no_others(raw):
    cleaned = records.clean_text(raw)
    assert cleaned.split(" ") == cleaned.split() or cleaned == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, ""), (float("nan"), ""), (float("inf"), ""), (1984, "1984"), (9.99, "9.99"), ("", "")],
)
def test_text_of_numbers_and_of_what_is_missing(value, written):
    assert records.text({"t": value}, "t") == records.text({"t": written}, "t") == written
    assert records.text({}, "t") == ""


D = decimal.Decimal


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (D("12.99"), "12.99"),
        (D("12.9900000000"), "12.99"),
        (D("1E+2"), "100"),
        (D("-0.000001"), "-0.000001"),
        (D("1E-400"), "1E-400"),
        (12.0, "12.0"),
        (Instant(0), "1970-01-01"),
        (Instant(1_500_000_000 * 10**9), "2017-07-14 02:40:00"),
        (Instant(1_500_000_000 * 10**9 + 1_000), "2017-07-14 02:40:00.000001"),
        (Instant(1), "1970-01-01 00:00:00.000000001"),
        (Instant(2**63 * 10**9 - 10**9), "292277026596-12-04 15:30:07"),
        (Instant(-86_400 * 10**9), "1969-12-31"),
    ],
)
def test_numbers_and_dates_are_written_as_short_as_they_can_be(value, written):
    assert records.text({"t": value}, "t") == written


@pytest.mark.parametrize("value", [True, {"a": 1}, 2**63, 1j, D("1E+30"), D("nan"), b"a"])
def test_what_is_no_text_is_left_out(value):
    with pytest.raises(LeftOut, match="^t is neither a string nor a number$"):
        records.text({"t": value}, "t")
    with pytest.raises(LeftOut, match="^t is neither a string nor a number$"):
        records.path({"t": value}, "t")


@pytest.mark.parametrize("value", [["a", True], [["a"], "b"][::-1], ["a", {"b": 1}], ["a", ["b"]]])
def test_a_list_of_more_than_texts_is_left_out(value):
    for read in (records.text, records.path):
        with pytest.raises(LeftOut, match="^t is a list of more than strings and numbers$"):
            read({"t": value}, "t")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (["A", None, "B"], "A B"),
        (["red", "blue &amp; green", ""], "red blue & green"),
        ([1, 2.5, float("nan"), "x"], "1 2.5 x"),
        ([None], ""),
        ([], ""),
    ],
)
def test_lists_of_texts_are_joined_without_what_is_missing(value, written):
    assert records.text({"t": value}, "t") == records.path({"t": value}, "t") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (["Tools", "Saws &amp; Blades"], "Tools Saws & Blades"),
        ([["Tools", "Saws"], ["Garden"]], "Tools Saws"),
        ([["Tools", None, "Saws"]], "Tools Saws"),
        ("Tools", "Tools"),
        (3, "3"),
        ([], ""),
        ([[]], ""),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_a_category_path_is_written_from_the_root_to_the_leaf(value, written):
    assert records.path({"c": value}, "c") == written


CODE = [
    "var aPageStart = (new Date()).getTime();",
    "var aPageStart = (new Date()).getTime(); var ue_t0=ue_t0||+new Date(); (function(a){ a.b",
    "P.when('A').execute(function(A) { A.on('x') });",
    "window.ue = window.ue || {}; ue.t0 = 1",
    "document.getElementById('x').innerHTML = 1;",
    ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{background-color:#fffbf3;",
    ".a-box-inner{background-color:#fff}",
    "Lamp .a-section.a-spacing-mini { margin-bottom: 6px !important }",
    "@media print {.noprint { display: none }}",
    "body{margin:0;padding:0}",
]
NO_CODE = [
    'Omron Healthcare H-CL22 ComFit BP Cuff, Pre-formed, Wide Range 9"-17" ()',
    "Justrite J09100 09100; Galvanized-steel; Safety cans; For Oily waste",
    "Resistor Kit 56 Values x 20pcs =1120pcs (1ohm-10Mohm)",
    "The Art of {code}: Functions, Variables; Objects",
    "Var. 3; a = b",
    "Function (and Form); Design {2nd ed.}",
    "A.C. Moore {set of 5}; .22 cal. pellets",
    "T-Shirt {Color: Red; Size: XL}",
    "$.99 Tunes {Live}",
    "#Girlboss {Hardcover : large print}",
    "#Girlboss {Hardcover}; (new Date)",
    "JavaScript: The Good Parts",
    "new Date (2010); window.display",
    "Sets {x: x > 0} and maps",
]


@pytest.mark.parametrize("value", CODE)
def test_the_remains_of_a_page_are_no_text(value):
    for read in (records.text, records.path):
        for given_as in (value, [value]):
            with pytest.raises(LeftOut, match="^t is the remains of a web page$"):
                read({"t": given_as}, "t")
    assert records.path({"t": ["Tools", value, "Saws"]}, "t") == "Tools Saws"


@pytest.mark.parametrize("value", NO_CODE)
def test_what_only_looks_like_the_remains_of_a_page_stays(value):
    assert records.text({"t": value}, "t") == value


@pytest.mark.parametrize("unit", ["{.a", "<script ", "<!-- <style>", "function (a", "document.a.b"])
def test_a_megabyte_is_cleaned_as_a_line_is(unit):
    """Cleaning takes time proportional to the length: with its square this would take hours."""

    def outcome(repeats: int) -> type | str:
        try:
            return records.text({"t": "{();" + unit * repeats}, "t")[:10]
        except LeftOut:
            return LeftOut

    assert outcome(2**20 // len(unit)) == outcome(20)


@pytest.mark.parametrize("read", [records.text, records.path, records.identifier])
def test_half_a_surrogate_pair_is_no_unicode(read):
    with pytest.raises(Reject, match="^k is not Unicode$"):
        read({"k": "half \ud83d"}, "k")


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (" a b ", "a b"),
        ("é", "é"),
        (" \u00a0é", "é"),
        ("12.0", "12.0"),
        (7, "7"),
        (-7, "-7"),
        (2**64 - 1, "18446744073709551615"),
        (10**38 - 1, "9" * 38),
        (12.0, "12"),
        (-0.0, "0"),
        (2.0**53 - 1, "9007199254740991"),
        (decimal.Decimal("12.00"), "12"),
        (decimal.Decimal("9" * 38), "9" * 38),
        (np.int64(7), "7"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.float64(7), "7"),
        (np.str_("a "), "a"),
        (UUID, "12345678-1234-5678-1234-567812345678"),
    ],
)
def test_identifiers_are_strings_or_integers(value, written):
    assert records.identifier({"i": value}, "i") == records.id_text(value, "i") == written
    assert type(records.id_text(value, "i")) is str


NO_ID = [None, "", "  ", "\u00a0", float("nan"), float("inf"), decimal.Decimal("NaN")]
NEITHER = [1.5, True, ["a"], {"a": 1}, 1j, decimal.Decimal("1.5"), 2**128]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((value, "no i") for value in NO_ID),
        *((value, "i is neither a string nor an integer") for value in NEITHER),
        pytest.param(16**9000, "i is neither a string nor an integer", id="huge"),
        (2.0**53, "i is a float of 2**53 or more, in which integers lose digits"),
        (1e300, "i is a float of 2**53 or more, in which integers lose digits"),
    ],
)
def test_what_is_no_identifier(value, reason):
    with pytest.raises(Reject, match=f"^{re.escape(reason)}$"):
        records.identifier({"i": value}, "i")


def test_an_identifier_that_is_not_there():
    with pytest.raises(Reject, match="^no i$"):
        records.identifier({}, "i")


@pytest.mark.parametrize("value", ["$15.99", "$1,234.56 - $2,345.67", "4" * 40, "$$", "Free"])
def test_a_price_is_kept_as_it_is(value):
    assert records.price(value) == value
    assert records.text_of_price({"p": value}, "p") == value


@pytest.mark.parametrize(
    "value",
    [
        "4" * 41,
        "None",
        "none",
        "\u2014",
        "-",
        "--",
        "nan",
        "NaN",
        "$nan",
        "null",
        "N/A",
        "n/a",
        "?",
    ],
)
def test_what_is_certainly_no_price(value):
    assert records.price(value) == ""
    with pytest.raises(LeftOut, match="^p is no price$"):
        records.text_of_price({"p": value}, "p")


def test_an_item_has_the_fields_that_can_be_used():
    readers = {
        name: functools.partial(read, key=name)
        for name, read in {"t": records.text, "b": records.text, "p": records.text_of_price}.items()
    }
    record = {"t": "T", "b": {"name": "B"}, "p": "None"}
    reasons = ("b is neither a string nor a number", "p is no price")
    assert records.item("a", record, readers) == Item("a", {"t": "T"}, reasons)
    with pytest.raises(Reject, match="^b is not Unicode$"):
        records.item("a", {"b": "\ud83d"}, readers)
