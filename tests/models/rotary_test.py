"""Rotary frequencies against float64 and transformers, for each kind of scaling."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import decoder as decoder_oracle
from oracles import rotary as oracle

from calrec_jax.errors import CalrecError
from calrec_jax.models import rotary
from calrec_jax.models.rotary import RopeScaling

SCALINGS = {
    "none": None,
    "linear": RopeScaling("linear", 8.0),
    "llama3": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
    "llama3, short": RopeScaling("llama3", 32.0, 64, 0.5, 3.0),
    "yarn": RopeScaling("yarn", 4.0, 32_768),
    "yarn, short": RopeScaling("yarn", 16.0, 64, beta_fast=8.0, beta_slow=0.5),
    "yarn, given factor": RopeScaling("yarn", 4.0, 4096, attention_factor=1.3),
    "yarn, not truncated": RopeScaling("yarn", 4.0, 4096, truncate=False),
    "yarn, a step": RopeScaling("yarn", 4.0, 1_000_000_000, beta_fast=2.0, beta_slow=1.0),
}
each = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
sizes = pytest.mark.parametrize(("theta", "width"), [(10_000.0, 8), (500_000.0, 128), (1e6, 256)])


def as_dict(scaling):
    return None if scaling is None else dataclasses.asdict(scaling)


@each
@sizes
def test_frequencies_are_those_of_float64(scaling, theta, width):
    found = rotary.frequencies(theta, width, scaling)
    assert (found.dtype, found.shape) == (np.float32, (width // 2,))
    # A few float32 roundings of 6e-8 each.
    expected = oracle.frequencies(theta, width, as_dict(scaling))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_frequencies_by_hand():
    np.testing.assert_allclose(rotary.frequencies(100.0, 4), [1.0, 0.1], rtol=1e-6)
    linear = rotary.frequencies(100.0, 4, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(linear, [0.25, 0.025], rtol=1e-6)
    # Wavelengths 2 pi and 20 pi in a length of 16: none has more than 4 rotations, the second fewer
    # than 1.
    kept = rotary.frequencies(100.0, 4, RopeScaling("llama3", 8.0, 16, 1.0, 4.0))
    share = (16 / (2 * math.pi) - 1) / 3
    np.testing.assert_allclose(kept, [share + (1 - share) / 8, 0.1 / 8], rtol=1e-6)


def test_the_amplitude_of_queries_and_keys():
    assert RopeScaling("linear", 8.0).amplitude == 1.0
    assert RopeScaling("llama3", 8.0, 16).amplitude == 1.0
    assert RopeScaling("yarn", 4.0, 16).amplitude == pytest.approx(0.1 * math.log(4) + 1)
    assert RopeScaling("yarn", 1.0, 16).amplitude == 1.0
    assert RopeScaling("yarn", 4.0, 16, attention_factor=0.5).amplitude == 0.5


@each
def test_heads_are_rotated_as_by_the_oracle(scaling):
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 3, 2, 8)), np.array([[0, 1, 5], [7, 100, 3]])
    frequencies = rotary.frequencies(50.0, 8, scaling)
    amplitude = 1.0 if scaling is None else scaling.amplitude
    sin, cos = rotary.rotations(jnp.asarray(positions), frequencies, amplitude)
    assert sin.shape == cos.shape == (2, 3, 4) and sin.dtype == jnp.float32
    found = rotary.rotate(jnp.asarray(x, jnp.float32), sin, cos)
    for b in range(2):
        for s in range(3):
            for h in range(2):
                expected = decoder_oracle.rope(x[b, s, h], positions[b, s], 50.0, as_dict(scaling))
                # float32 angles of up to 100 radians are good to 4e-6.
                np.testing.assert_allclose(found[b, s, h], expected, atol=3e-5)


def test_rotation_keeps_the_dtype():
    sin, cos = rotary.rotations(jnp.arange(2)[None], rotary.frequencies(50.0, 4))
    assert rotary.rotate(jnp.ones((1, 2, 1, 4), jnp.bfloat16), sin, cos).dtype == jnp.bfloat16


@given(
    kind=st.sampled_from(["linear", "llama3", "yarn"]),
    theta=st.floats(10.0, 1e6),
    factor=st.floats(1.0, 64.0),
    length=st.integers(8, 100_000),
)
def test_scaled_frequencies_lie_between_divided_and_kept_ones(kind, theta, factor, length):
    plain = rotary.frequencies(theta, 16)
    scaled = rotary.frequencies(theta, 16, RopeScaling(kind, factor, length))
    assert (scaled <= plain * (1 + 1e-6)).all()
    assert (scaled >= plain / factor * (1 - 1e-6)).all()
    assert (np.diff(scaled) <= 0).all()  # and in their order


WRONG = {
    "kind": (
        ("dynamic", 2.0),
        "RopeScaling.kind 'dynamic' is none of ('linear', 'llama3', 'yarn')",
    ),
    "factor": (("linear", 0.0), "RopeScaling.factor 0.0 is not positive"),
    "length": (("yarn", 2.0), "RopeScaling 'yarn' needs original_length, in tokens"),
    "no length": (("llama3", 2.0, 0), "RopeScaling 'llama3' needs original_length, in tokens"),
    "ramp": (
        ("llama3", 2.0, 8, 4.0, 4.0),
        "RopeScaling.low_freq_factor must be below high_freq_factor",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_scalings_are_refused(wrong):
    arguments, message = WRONG[wrong]
    with pytest.raises(CalrecError) as error:
        RopeScaling(*arguments)
    assert str(error.value) == message


# transformers' own functions


def transformers_frequencies(scaling: RopeScaling, theta: float, width: int):
    """(frequencies, amplitude) of transformers."""
    transformers = pytest.importorskip("transformers", reason="its functions: .[parity]")
    pytest.importorskip("torch", reason="transformers computes with it: .[parity]")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": scaling.kind,
        "rope_theta": theta,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_length,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": scaling.attention_factor,
        "truncate": scaling.truncate,
    }
    config = transformers.LlamaConfig(
        hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=1 << 17
    )
    config.rope_parameters = parameters
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu")
    return frequencies.numpy(), amplitude


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "none"])
@sizes
def test_frequencies_are_those_of_transformers(name, theta, width):
    scaling = SCALINGS[name]
    frequencies, amplitude = transformers_frequencies(scaling, theta, width)
    np.testing.assert_allclose(rotary.frequencies(theta, width, scaling), frequencies, rtol=1e-6)
    assert scaling.amplitude == pytest.approx(amplitude)
