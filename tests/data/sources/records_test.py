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


def test_identifiers_are_strings_or_integers():
    assert records.identifier({"i": " a b "}, "i") == "a b"
    assert records.identifier({"i": 7}, "i") == "7"
    assert records.identifier({"i": "é"}, "i") == "é"


@pytest.mark.parametrize(
    "value", [None, "", "  ", 1.5, True, ["a"], pytest.param(16**9000, id="huge")]
)
def test_what_is_no_identifier(value):
    with pytest.raises(Reject, match="^no i$"):
        records.identifier({"i": value}, "i")


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
