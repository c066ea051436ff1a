"""Times and orders: each form by hand, and none rounded."""

import decimal
import fractions

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.sources import times
from calrec_jax.data.sources.records import Instant, Reject

D = decimal.Decimal
TIME = 1_500_000_000


@pytest.mark.parametrize(
    ("value", "unit", "moment"),
    [
        (TIME, "s", (TIME, 0)),
        (TIME * 1000 + 150, "ms", (TIME, 150_000_000)),
        (TIME * 10**6 + 1, "us", (TIME, 1000)),
        (TIME * 10**9 + 1, "ns", (TIME, 1)),
        (float(TIME), "s", (TIME, 0)),
        (TIME + 0.15, "s", (TIME, 150_000_000)),
        (D("1500000000.123456789"), "s", (TIME, 123_456_789)),
        (D("1500000000.9999999999999999999999999999999"), "s", (TIME, 999_999_999)),
        (D("1500000000000.000001"), "ms", (TIME, 1)),
        ("1500000000.3", "s", (TIME, 300_000_000)),
        (" 1500000000123 ", "ms", (TIME, 123_000_000)),
        ("1.5000000003e9", "s", (TIME, 300_000_000)),
        ("2017-07-14T02:40:00.000000001Z", "s", (TIME, 1)),
        ("2017-07-14 02:40:00,5", "ms", (TIME, 500_000_000)),
        ("2017-07-14T04:40:00.25+02:00", "s", (TIME, 250_000_000)),
        ("20170714T024000.75", "s", (TIME, 750_000_000)),
        ("2017-07-13 21:40:00 -0500", "s", (TIME, 0)),
        ("2017-07-14 02:40:00.5 UTC", "s", (TIME, 500_000_000)),
        ("2017-07-14", "s", (TIME - 9600, 0)),
        ("2017-07", "s", (1_498_867_200, 0)),
        (Instant(TIME * 10**9 + 7), "ms", (TIME, 7)),
    ],
)
def test_times_are_exact(value, unit, moment):
    assert times.moment(value, "t", unit) == moment


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (20240401, (1_711_929_600, 0)),
        ("20240401", (1_711_929_600, 0)),
        (20240401.0, (1_711_929_600, 0)),
        (2023, (1_672_531_200, 0)),
        ("2023", (1_672_531_200, 0)),
        ("2024-04-01T00:00:01", (1_711_929_601, 0)),
    ],
)
def test_numbers_may_be_dates(value, moment):
    assert times.moment(value, "t", "ms", dates=True) == moment


@pytest.mark.parametrize(
    "value", [20240431, 20241301, 2100, 1899, 202404, 20240401.5, 1_500_000_000, -2023, 0]
)
def test_what_is_no_date_in_digits(value):
    number = times.number(value)
    assert number is not None and times.date_in_digits(number) is None
    with pytest.raises(Reject, match="^t is neither a date like those before it nor an ISO 8601"):
        times.moment(value, "t", dates=True)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_what_is_missing(value):
    assert times.moment(value, "t") is None and times.order(value, "o") is None


@pytest.mark.parametrize(
    "value",
    ["yesterday", "1e999", "1_000", True, [1], 2**63, D("1E+400"), D("nan"), 1e300, "2017-02-30"],
)
def test_what_is_neither_a_time_nor_an_order(value):
    with pytest.raises(Reject, match="^t is neither a number nor an ISO 8601 date$"):
        times.moment(value, "t")
    with pytest.raises(Reject, match="^o is neither a 64-bit number nor an ISO 8601 date$"):
        times.order(value, "o")


def test_times_are_after_1970_and_before_2100():
    for value in (1, 4_102_444_799, D("4102444799.999999999")):
        assert times.moment(value, "t")[0] == int(value)
    for value in (0, -1, 0.5, D("-1E-400"), "1970-01-01", Instant(-1)):
        with pytest.raises(Reject, match="^time stamp is not after 1970$"):
            times.moment(value, "t")
    with pytest.raises(Reject, match="^time stamp is after 2100: milliseconds were expected, or$"):
        times.moment(4_102_444_800_000, "t", "ms", ", or")


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (5, 5),
        (2.0, 2),
        (D("2.00"), 2),
        ("-3", -3),
        (1700000000.3, D("1700000000.3")),
        ("0.10", D("0.1")),
        (-(2**63), -(2**63)),
        ("2017-07-14T02:40:00.3", D("1500000000.3")),
        ("2017-07-14T02:40:00Z", TIME),
        (Instant(TIME * 10**9 + 1), D("1500000000.000000001")),
        (20240401, 20240401),
    ],
)
def test_orders_are_numbers_or_the_seconds_of_dates(value, order):
    found = times.order(value, "o")
    assert found == order and type(found) is type(order) and str(found) == str(order)


@given(st.decimals(-1000, 1000, allow_nan=False) | st.floats(-1e18, 1e18))
def test_equal_orders_have_the_same_digits_and_none_is_changed(value):
    exact = D(repr(value)) if isinstance(value, float) else value
    found = times.order(value, "o")
    assert found == exact
    digits = f"{exact:f}"
    for written in (digits, digits + ("0" if "." in digits else ".00"), exact):
        assert str(times.order(written, "o")) == str(found)


@given(st.decimals(D("1.1"), D("4e9"), allow_nan=False, places=12))
def test_what_is_finer_than_a_nanosecond_is_rounded_down(value):
    seconds, nanosecond = times.moment(value, "t")
    whole = fractions.Fraction(value) * 10**9
    assert seconds * 10**9 + nanosecond == whole.numerator // whole.denominator
