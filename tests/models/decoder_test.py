"""The decoder against the oracle, and what packing, padding and remat must not change."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracles import decoder as oracle

from calrec_jax.models.decoder import Decoder
from calrec_jax.models.layers import RMSNorm
from calrec_jax.models.rotary import RopeScaling

# float32 against float64: two layers with some hundred roundings of 6e-8 each, of values near 1.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def hidden(config, params, tokens, positions, segments):
    return Decoder(config).apply({"params": params}, tokens, positions, segments)


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.FAST)
def unembed(config, params, states):
    return Decoder(config).apply({"params": params}, states, method="unembed")


def rows(batch):
    names = ("decoder_input_tokens", "decoder_positions", "decoder_segment_ids")
    return tuple(batch[name] for name in names)


VARIANTS = {
    "gelu, tied, grouped queries": {},
    "silu, untied, plain norm and embedding": {
        "activation": "silu",
        "tie_embeddings": False,
        "norm_plus_one": False,
        "scale_embedding": False,
    },
    "every head its own keys": {"num_kv_heads": 4},
    "one key for all heads": {"num_kv_heads": 1},
    "other constants": {"rope_theta": 50.0, "norm_eps": 0.3},
    "caps and another divisor": {
        "attention_softcap": 1.5, "logit_softcap": 2.0, "query_scalar": 3.0,
    },
    "all layers slide": {"attention_pattern": ("sliding",), "sliding_window": 2},
    "norms everywhere": {"query_key_norm": True, "post_norms": True},
    "plain norms everywhere, untied": {
        "query_key_norm": True, "post_norms": True, "norm_plus_one": False, "tie_embeddings": False,
    },
    "biases of queries, keys and values": {"query_key_value_bias": True},
    "biases elsewhere": {"attention_out_bias": True, "mlp_bias": True},
    "linear": {"rope_scaling": RopeScaling("linear", 4.0), "rope_theta": 50.0},
    "llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 16), "rope_theta": 50.0},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 16, beta_fast=2.0), "rope_theta": 50.0},
    "scaled where it does not slide": {
        "attention_pattern": ("global", "sliding"), "sliding_window": 4, "local_rope_theta": 9.0,
        "rope_scaling": RopeScaling("linear", 4.0),
    },
    "all at once": tiny.FAMILY,
}  # fmt: skip


LOOPS = ("gelu, tied, grouped queries", "all at once")


@pytest.mark.parametrize(
    ("changes", "scan"),
    [*((VARIANTS[name], True) for name in VARIANTS), *((VARIANTS[name], False) for name in LOOPS)],
    ids=[*VARIANTS, *(f"{name}, in a loop" for name in LOOPS)],
)
def test_hidden_states_and_logits_are_the_oracles(changes, scan):
    config = tiny.changed(**changes)
    params, batch = tiny.params(config), tiny.packed()
    expected = tiny.oracle_hidden(params, batch, config)
    expected_logits = oracle.logits(
        tiny.for_oracle(params, config), expected.reshape(-1, 8), tiny.oracle_cfg(config)
    ).reshape(*expected.shape[:2], -1)
    if not scan:
        config = tiny.changed(**changes, scan_layers=False)
        params = tiny.unstacked(params, config.num_layers)
    got = hidden(config, params, *rows(batch))
    real = batch["decoder_segment_ids"] != 0  # hidden states at pads are meaningless
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[real], expected[real], **TOLERANCE)
    logits = unembed(config, params, got)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[real], expected_logits[real], **TOLERANCE)


def test_a_loop_has_the_shapes_of_the_scanned_layers():
    config = tiny.changed(scan_layers=False)
    scanned = jax.tree.map(jnp.shape, tiny.unstacked(tiny.params(), config.num_layers))
    assert jax.tree.map(jnp.shape, tiny.params(config)) == scanned


def test_a_segment_is_read_as_if_it_were_alone():
    params = tiny.params()
    for row, places in enumerate(tiny.ROWS):
        packed = hidden(tiny.CONFIG, params, *rows(tiny.packed()))[row]
        for slot, example in enumerate(places):
            mine = tiny.packed()["decoder_segment_ids"][row] == slot + 1
            unpacked = hidden(tiny.CONFIG, params, *rows(tiny.unpacked()))[example]
            np.testing.assert_allclose(packed[mine], unpacked[: mine.sum()], **TOLERANCE)


def test_a_token_changes_its_own_segment_from_there_on_and_nothing_else():
    params = tiny.params()
    tokens, positions, segments = rows(tiny.packed())
    row, place = 1, 8  # after the BOS of the second of three segments
    assert segments[row, 6:].tolist() == [1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 0, 0]
    other = tokens.copy()
    other[row, place] += 1
    change = np.abs(
        np.asarray(hidden(tiny.CONFIG, params, other, positions, segments))
        - np.asarray(hidden(tiny.CONFIG, params, tokens, positions, segments))
    ).max(axis=-1)
    assert (change[row, 8:12] > 1e-3).all()
    change[row, 8:12] = 0
    assert (change[segments != 0] == 0).all()


def test_padding_influences_nothing():
    params = tiny.params()
    tokens, positions, segments = rows(tiny.packed())
    before = np.asarray(hidden(tiny.CONFIG, params, tokens, positions, segments))
    pads = segments == 0
    other = np.where(pads, 17, tokens)
    after = np.asarray(hidden(tiny.CONFIG, params, other, np.where(pads, 5, positions), segments))
    np.testing.assert_array_equal(after[~pads], before[~pads])
    assert np.isfinite(after).all()
    assert not np.array_equal(after[pads], before[pads])  # the pads were read at all


def test_more_padding_changes_nothing():
    params = tiny.params()
    batch = tiny.unpacked()
    longer = [np.pad(a, [(0, 0), (0, 7)]) for a in rows(batch)]
    real = batch["decoder_segment_ids"] != 0
    np.testing.assert_allclose(
        hidden(tiny.CONFIG, params, *longer)[:, : tiny.ROW_LENGTH][real],
        hidden(tiny.CONFIG, params, *rows(batch))[real],
        **TOLERANCE,
    )


@functools.cache
def value_and_gradient(remat, scan):
    """(a sum over hidden states, its gradient in the tree of layers in a loop)."""
    config = tiny.changed(remat=remat, scan_layers=scan)
    params = tiny.params() if scan else tiny.unstacked(tiny.params(), config.num_layers)

    def total(p):
        states = Decoder(config).apply({"params": p}, *rows(tiny.packed()))
        return jnp.sum(jnp.sin(states))

    value, gradient = jax.jit(jax.value_and_grad(total), compiler_options=tiny.FAST)(params)
    return value, tiny.unstacked(gradient, config.num_layers) if scan else gradient


@pytest.mark.parametrize(
    ("remat", "scan"), [("dots", True), ("full", True), ("full", False)], ids=str
)
def test_neither_remat_nor_the_loop_changes_values_or_gradients(remat, scan):
    value, gradient = value_and_gradient("none", scan=True)
    value_here, gradient_here = value_and_gradient(remat, scan)
    np.testing.assert_allclose(value_here, value, rtol=1e-6)
    # The same sums, perhaps fused differently: float32 rounding only.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        gradient_here,
        gradient,
    )


# A layer has 7 projections and 2 products of attention; each has two more for its gradients.
@pytest.mark.parametrize(
    ("remat", "again"),
    [
        ("none", 0),
        ("dots", 2),  # of attention, which have an axis of the batch
        ("full", 8),  # all but the last, which nothing needs
    ],
)
def test_the_backward_pass_computes_again_what_remat_says(remat, again):
    config = tiny.changed(remat=remat)

    def total(params):
        return jnp.sum(Decoder(config).apply({"params": params}, *rows(tiny.packed())))

    layer = str(jax.make_jaxpr(jax.grad(total))(tiny.params()))
    assert layer.count(" dot_general[") == 3 * 9 + again
    assert layer.count(" exp ") == (1 if remat == "none" else 2)


def test_bfloat16_computes_in_bfloat16_over_float32_parameters():
    config = tiny.changed(dtype="bfloat16")
    params = tiny.params(config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    got = hidden(config, params, *rows(tiny.packed()))
    assert got.dtype == jnp.bfloat16
    assert unembed(config, params, got).dtype == jnp.float32
    exact = tiny.oracle_hidden(params, tiny.packed())
    real = tiny.packed()["decoder_segment_ids"] != 0
    # bfloat16 keeps 8 bits: a few layers of roundings of 2^-9 each, of values up to 3.
    np.testing.assert_allclose(got.astype(jnp.float32)[real], exact[real], atol=0.15)


def test_a_fresh_norm_multiplies_by_one():
    for plus_one, start in ((True, 0.0), (False, 1.0)):
        norm = RMSNorm(tiny.changed(norm_plus_one=plus_one))
        fresh = norm.init(jax.random.key(0), jnp.zeros((1, 8)))
        np.testing.assert_array_equal(jax.tree.leaves(fresh)[0], np.full(8, start))
