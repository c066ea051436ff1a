"""Filters, draws and beams against NumPy, at many random numbers and at both ends of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st

from calrec_jax.decode import next_token

NEVER = -np.inf
LAST = np.nextafter(np.float32(1), np.float32(0))  # above all that jax.random.uniform gives
SIZE = 9
_compiled = functools.partial(jax.jit, compiler_options=tiny.FAST)
draw = _compiled(next_token.draw)
sample = _compiled(next_token.sample, static_argnums=(2, 3, 4))
nucleus = _compiled(next_token.nucleus)
extend_beams = _compiled(next_token.extend_beams)

logits = st.lists(
    st.sampled_from([NEVER, -20.0, -1.5, -1.0, 0.0, 0.25, 3.0, 8.0]), min_size=SIZE, max_size=SIZE
).filter(lambda values: max(values) > NEVER)


def softmax(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def filtered(values, temperature, top_k, top_p) -> np.ndarray:
    """The distribution to draw from, float64: temperature, then top k, then the nucleus."""
    scaled = np.asarray(values, np.float64) / temperature
    if top_k is not None:
        scaled[np.argsort(-scaled, kind="stable")[top_k:]] = NEVER
    p = softmax(scaled)
    descending = np.sort(p)[::-1]
    needed = np.searchsorted(np.cumsum(descending), top_p)  # its place is the nucleus's last
    return softmax(np.where(p >= descending[min(needed, len(p) - 1)], scaled, NEVER))


def on_the_edge(values, temperature, top_k, top_p) -> bool:
    """Whether float32 rounding could decide what is in the nucleus."""
    p = filtered(values, temperature, top_k, 1.0)
    return np.abs(np.cumsum(np.sort(p)[::-1]) - top_p).min() < 1e-5


@given(logits, st.floats(0.05, 0.99))
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens(values, top_p):
    assume(not on_the_edge(values, 1.0, None, top_p))
    left = np.asarray(nucleus(np.array(values, np.float32), top_p))
    expected = filtered(values, 1.0, None, top_p) > 0
    np.testing.assert_array_equal(left > NEVER, expected)
    np.testing.assert_array_equal(left[expected], np.array(values, np.float32)[expected])


def test_equals_of_the_last_one_are_in_the_nucleus_too():
    values = np.log(np.array([0.1, 0.4, 0.2, 0.2, 0.1], np.float32))
    kept = [np.asarray(nucleus(values, p)) > NEVER for p in (0.3, 0.5, 0.85)]
    assert [k.tolist() for k in kept] == [
        [False, True, False, False, False],
        [False, True, True, True, False],
        [True] * 5,
    ]


@given(logits, st.lists(st.sampled_from([0.0, 1e-30, 0.5, float(LAST)]), min_size=2, max_size=2))
def test_what_is_not_allowed_is_never_drawn(values, uniforms):
    place = int(draw(np.array(values, np.float32), np.array(uniforms, np.float32)))
    assert values[place] > NEVER


@pytest.mark.parametrize("size", [129, 1000])
@pytest.mark.parametrize("only", [0, 127, 128])
def test_the_only_one_allowed_is_drawn(size, only):
    values = np.full(size, NEVER, np.float32)
    values[only] = -300.0
    for u in (0.0, float(LAST)):
        assert int(draw(values, np.array([u, u], np.float32))) == only


DRAWS = 200_000
VALUES = np.random.default_rng(3).normal(0, 1.5, 300).astype(np.float32)


def drawn(temperature=1.0, top_k=None, top_p=1.0, values=VALUES) -> np.ndarray:
    """How often each candidate is drawn in DRAWS draws."""
    uniforms = np.random.default_rng(4).random((DRAWS, 2), np.float32)
    one = jax.vmap(lambda u: next_token.sample(jnp.asarray(values), u, temperature, top_k, top_p))
    return np.bincount(_compiled(one)(uniforms), minlength=len(values))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.5, None, 1.0), (1.0, 7, 1.0), (0.7, None, 0.95), (2.0, 150, 0.9)],
)
def test_draws_have_the_oracles_distribution(temperature, top_k, top_p):
    values = VALUES if temperature != 0.7 else VALUES[:90]  # in one row of draw's table
    assert top_p == 1 or not on_the_edge(values, temperature, top_k, top_p)
    p = filtered(values, temperature, top_k, top_p)
    counts = drawn(temperature, top_k, top_p, values)
    assert ((counts > 0) <= (p > 0)).all()
    # 300 counts, each within five deviations of its expectation.
    deviation = np.sqrt(DRAWS * p * (1 - p))
    assert (np.abs(counts - DRAWS * p) <= 5 * deviation + 1).all()
    other = filtered(values, 1.1 * temperature, top_k, top_p)
    assert (np.abs(counts - DRAWS * other) > 5 * deviation + 1).any()


def test_of_equal_tokens_top_k_takes_the_first():
    values = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert np.flatnonzero(drawn(top_k=2, values=values)).tolist() == [1, 2]


@given(logits)
def test_temperature_zero_takes_the_likeliest(values):
    place = int(sample(np.array(values, np.float32), np.zeros(2, np.float32), 0.0, 3, 0.5))
    assert place == int(np.argmax(values))


N, F = 3, 4


@given(st.data())
def test_beams_are_the_best_continuations_of_all(data):
    numbers = st.integers(-40, 0).map(lambda n: n / 4)  # exact in float32; many are equal
    table = np.array(data.draw(st.lists(numbers, min_size=N * F, max_size=N * F)), np.float32)
    sums = np.array(data.draw(st.lists(numbers | st.just(NEVER), min_size=N, max_size=N)))
    ended = np.array(data.draw(st.lists(st.booleans(), min_size=N, max_size=N)))
    assume((sums > NEVER).any())
    sums = -np.sort(-sums)  # the best first, as the step before gives them
    parents, places, totals = extend_beams(
        table.reshape(1, N, F), sums[None].astype(np.float32), ended[None]
    )
    every = [
        (-(sums[n] + (0 if ended[n] else table[n * F + f])), n, f)
        for n in range(N)
        for f in range(1 if ended[n] else F)
        if sums[n] > NEVER
    ]
    best = sorted(every)[:N]
    got = list(zip(parents[0].tolist(), places[0].tolist(), strict=True))
    assert got[: len(best)] == [(n, f) for _, n, f in best]
    expected = [-score for score, _, _ in best]
    assert totals[0].tolist() == expected + [NEVER] * (N - len(best))
