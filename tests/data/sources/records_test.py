import decimal
import re
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.sources import records
from calrec_jax.data.sources.records import Reject


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


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, 2**63, 1j])
def test_what_is_no_text(value):
    with pytest.raises(Reject, match="^t is neither a string nor a number$"):
        records.text({"t": value}, "t")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (["Tools", "Saws &amp; Blades"], "Tools Saws & Blades"),
        ([["Tools", "Saws"], ["Garden"]], "Tools Saws"),
        ("Tools", "Tools"),
        ([], ""),
        ([[]], ""),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_a_category_path_is_written_from_the_root_to_the_leaf(value, written):
    assert records.path({"c": value}, "c") == written


@pytest.mark.parametrize("value", [3, ["a", None], [["a"], "b"][::-1], {"a": 1}, [[["a"]]]])
def test_what_is_no_category(value):
    with pytest.raises(Reject, match="^c is neither a string nor a list of strings$"):
        records.path({"c": value}, "c")


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


@pytest.mark.parametrize("value", ["$15.99", "$1,234.56 - $2,345.67", "4" * 40])
def test_a_price_is_kept_as_it_is(value):
    assert records.price(value) == value


@pytest.mark.parametrize(
    "value", ["4" * 41, ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget"]
)
def test_the_remains_of_a_page_are_no_price(value):
    assert records.price(value) == ""


@pytest.mark.parametrize(
    ("value", "integer"), [(None, None), (5, 5), (-5, -5), (2.0, 2), (2**63 - 1, 2**63 - 1)]
)
def test_whole_numbers(value, integer):
    assert records.whole(value, "k") == integer


@pytest.mark.parametrize("value", ["5", 5.5, True, 2**63, -(2**63) - 1, 1e300, [0]])
def test_what_is_no_whole_number(value):
    with pytest.raises(Reject, match="^k is not a 64-bit integer$"):
        records.whole(value, "k")


def test_time_stamps_are_after_1970_and_before_2100():
    for seconds in (1, 1_500_000_000, 4_102_444_799):
        assert records.seconds_of_our_time(seconds) == seconds
    for seconds in (0, -1):
        with pytest.raises(Reject, match="^time stamp is not after 1970$"):
            records.seconds_of_our_time(seconds)
    with pytest.raises(Reject, match="^time stamp is after 2100: seconds were expected$"):
        records.seconds_of_our_time(4_102_444_800)
