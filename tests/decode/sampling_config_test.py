"""What cannot be asked of the sampler is refused when it is configured."""

from __future__ import annotations

import pytest

from calrec_jax.decode.generate import SamplingConfig
from calrec_jax.errors import CalrecError


@pytest.mark.parametrize(
    "impossible",
    [
        {"num_samples": 0},
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_impossible_sampling_is_refused(impossible):
    with pytest.raises(CalrecError, match="impossible sampling"):
        SamplingConfig(**impossible)


def test_an_unknown_way_to_choose_is_refused():
    with pytest.raises(CalrecError, match="'beams' is no way to choose tokens"):
        SamplingConfig(method="beams")


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.9}])
def test_beams_have_no_filters(filters):
    with pytest.raises(CalrecError, match="beam search draws nothing: unset them"):
        SamplingConfig(method="beam", **filters)
