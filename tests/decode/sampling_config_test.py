"""Impossible settings of the sampler are refused when it is configured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError


@pytest.mark.parametrize(
    ("impossible", "reason"),
    [
        ({"num_samples": 0}, "it must be at least 1"),
        ({"max_new_tokens": 0}, "it must be at least 1"),
        ({"temperature": -0.1}, "it must be finite and not negative"),
        ({"temperature": float("inf")}, "it must be finite and not negative"),
        ({"temperature": float("nan")}, "it must be finite and not negative"),
        ({"top_k": 0}, "it must be at least 1"),
        ({"top_p": 0.0}, r"give one in \(0, 1\]"),
        ({"top_p": 1.5}, r"give one in \(0, 1\]"),
    ],
)
def test_a_value_out_of_its_range_is_refused(impossible, reason):
    ((name, value),) = impossible.items()
    with pytest.raises(CalrecError, match=f"^SamplingConfig.{name} is {value}: {reason}$"):
        SamplingConfig(**impossible)


def test_values_at_the_ends_of_the_ranges_are_accepted():
    SamplingConfig(num_samples=1, temperature=0, max_new_tokens=1, top_k=1, top_p=1)


def test_an_unknown_method_is_refused():
    with pytest.raises(CalrecError, match="^SamplingConfig.method 'beams' is none of"):
        SamplingConfig(method="beams")


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.9}])
def test_beams_have_no_filters(filters):
    with pytest.raises(CalrecError, match="'beam' draws nothing: unset them"):
        SamplingConfig(method="beam", **filters)


@pytest.mark.parametrize("value", [{"num_samples": "8"}, {"temperature": None}, {"top_p": "all"}])
def test_values_of_other_types_are_left_to_the_check_of_types(value):
    ((name, given),) = value.items()
    assert getattr(SamplingConfig(**value), name) == given


def test_the_configuration_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; import calrec_jax.decode.sampling"
    subprocess.run([sys.executable, "-c", code], check=True)
