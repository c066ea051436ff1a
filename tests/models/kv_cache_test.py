"""Prefill and one-token steps against the full forward pass over the same tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracles import decoder as oracle

from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.models.kv_cache import Continuations

# float32 against float64, as in decoder_test.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
PROMPTS = [[1, 3, 4, 5, 6], [1, 7], [1]]  # of different lengths; BOS alone too
WIDTH, SAMPLES, STEPS = 7, 2, 4
NEW = np.random.default_rng(0).integers(3, 20, size=(len(PROMPTS), SAMPLES, STEPS))


def padded(pad_token=0):
    tokens = np.full((len(PROMPTS), WIDTH), pad_token, np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    return tokens, np.arange(WIDTH)[None] < lengths[:, None]


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def run(config, params, tokens, mask, new):
    """Hidden states after the prompt [B, D] and after each new token [B, N, T, D]."""
    decoder, params = for_generation(Decoder(config), params)
    variables = {"params": params}
    last, prefix = decoder.apply(variables, tokens, mask, method="prefill")
    b, n, t = new.shape
    cache, states = Continuations.empty(config, b, n, t), []
    for step in range(t):
        hidden, cache = decoder.apply(variables, new[:, :, step], prefix, cache, method="decode")
        states.append(hidden)
    return last, jnp.stack(states, axis=2), cache


@functools.cache
def expected(config):
    """The oracle's states, with every continuation read as one text together with its prompt."""
    params, cfg = tiny.for_oracle(tiny.params(config), config), tiny.oracle_cfg(config)
    states = np.zeros((len(PROMPTS), SAMPLES, STEPS + 1, config.d_model))
    for row, prompt in enumerate(PROMPTS):
        for n in range(SAMPLES):
            whole = [*prompt, *NEW[row, n]]
            hidden = oracle.forward(params, whole, range(len(whole)), [1] * len(whole), cfg)
            states[row, n] = hidden[len(prompt) - 1 :]
    return states


def check(config, params):
    last, states, _ = run(config, params, *padded(), NEW)
    whole = expected(tiny.changed())
    np.testing.assert_allclose(last, whole[:, 0, 0], **TOLERANCE)
    np.testing.assert_allclose(states, whole[:, :, 1:], **TOLERANCE)


def test_prefill_and_steps_are_the_full_forward_pass_at_every_place():
    check(tiny.CONFIG, tiny.params())


def test_layers_in_a_loop_too():
    config = tiny.changed(scan_layers=False)
    check(config, tiny.unstacked(tiny.params(), config.num_layers))


def test_remat_does_not_reach_generation():
    check(tiny.changed(remat="full"), tiny.params())


def test_the_product_reads_a_row_as_it_reads_prompt_and_steps():
    row, n = 0, 1
    whole = np.array([[*PROMPTS[row], *NEW[row, n]]], np.int32)
    length = whole.shape[1]
    apply = jax.jit(Decoder(tiny.CONFIG).apply, compiler_options=tiny.FAST)
    full = apply(
        {"params": tiny.params()}, whole, np.arange(length)[None], np.ones((1, length), np.int32)
    )[0, len(PROMPTS[row]) - 1 :]
    last, states, _ = run(tiny.CONFIG, tiny.params(), *padded(), NEW)
    np.testing.assert_allclose(jnp.vstack([last[row], states[row, n]]), full, **TOLERANCE)


def test_padding_of_prompts_influences_nothing():
    (tokens, mask), (other, _) = padded(), padded(pad_token=9)
    assert (tokens != other).any()
    one = run(tiny.CONFIG, tiny.params(), tokens, mask, NEW)
    two = run(tiny.CONFIG, tiny.params(), other, mask, NEW)
    for a, b in zip(one[:2], two[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_continuations_of_a_prompt_do_not_see_each_other():
    other = NEW.copy()
    other[:, 0, 1] = (other[:, 0, 1] + 1) % 20
    one = run(tiny.CONFIG, tiny.params(), *padded(), NEW)[1]
    two = run(tiny.CONFIG, tiny.params(), *padded(), other)[1]
    change = np.abs(np.asarray(one) - np.asarray(two)).max(axis=-1)  # [B, N, T]
    assert (change[:, 0, 1:] > 1e-3).all()
    assert not change[:, 1].any() and not change[:, 0, 0].any()


def test_one_prefix_for_all_is_what_a_copy_for_each_would_be():
    """The tiled alternative: one row for each continuation."""
    tokens, mask = padded()
    last, states, _ = run(tiny.CONFIG, tiny.params(), tokens, mask, NEW)
    each = [np.repeat(a, SAMPLES, axis=0) for a in (tokens, mask)]
    alone = NEW.reshape(-1, 1, STEPS)
    last_of_each, states_of_each, _ = run(tiny.CONFIG, tiny.params(), *each, alone)

    def logits(hidden):
        return hidden @ tiny.params()["embedding"].T

    np.testing.assert_allclose(
        logits(states).reshape(-1, 1, STEPS, 20), logits(states_of_each), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        np.repeat(logits(last), SAMPLES, axis=0), logits(last_of_each), rtol=0, atol=1e-5
    )


def test_a_prompt_is_held_once_however_many_continue_it():
    decoder, params = for_generation(Decoder(tiny.CONFIG), tiny.params())
    _, prefix = decoder.apply({"params": params}, *padded(), method="prefill")
    for k, v in prefix.layers:
        assert k.shape == v.shape == (len(PROMPTS), 2, WIDTH, 4)
    assert len(prefix.layers) == 2


def test_reordered_continuations_are_copies_of_their_parents():
    cache = run(tiny.CONFIG, tiny.params(), *padded(), NEW)[2]
    parents = np.array([[1, 1], [0, 1], [1, 0]])
    for before, after in zip(
        jax.tree.leaves(cache.layers), jax.tree.leaves(cache.reordered(parents).layers), strict=True
    ):
        for row, of in enumerate(parents):
            np.testing.assert_array_equal(after[row], np.asarray(before)[row][:, of])


def test_scanned_layers_do_not_generate():
    with pytest.raises(ValueError, match="see `for_generation`"):
        Decoder(tiny.CONFIG).apply({"params": tiny.params()}, *padded(), method="prefill")


def test_the_cache_counts_what_it_holds():
    cache = run(tiny.CONFIG, tiny.params(), *padded(), NEW)[2]
    assert int(cache.length) == STEPS
    assert len(cache.layers) == tiny.CONFIG.num_layers
    for k, v in cache.layers:
        assert k.shape == v.shape == (len(PROMPTS), 2, SAMPLES, STEPS, 4)
        assert np.abs(k).max(axis=(1, 4)).all()  # every place of every continuation
