"""Means of hidden states: v_u and v_tu by the input token's span, v_t over the item's tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import tiny
from oracles import losses as oracle

from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.models import towers

TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}  # one float32 mean of a few values near 1


def some_hidden(batch, width=8, seed=0):
    shape = (*batch["decoder_segment_ids"].shape, width)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pooled(hidden, batch, span, slots=tiny.MAX_SEGMENTS):
    where = batch["decoder_segment_ids"], batch["decoder_span_ids"]
    vectors = np.asarray(towers.span_vectors(hidden, *where, span, slots))
    return vectors.reshape(len(hidden), slots, -1)


def test_spans_are_the_oracles():
    batch = tiny.packed()
    hidden = some_hidden(batch)
    for span in (HISTORY, TARGET):
        expected = oracle.pool(
            hidden, batch["decoder_segment_ids"], batch["decoder_span_ids"], span, 3
        )
        got = pooled(hidden, batch, span)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, **TOLERANCE)
        empty = batch["target_item_ids"] == 0
        assert empty.any() and not got[empty].any() and got[~empty].any(axis=-1).all()


def test_a_span_is_that_of_the_input_token():
    # The last history token is read at the place that predicts the first target token, and the
    # last target token where EOS is predicted: both belong to what is read, not what is predicted.
    example = tiny.EXAMPLES[0]  # BOS h h h h t t
    places = np.arange(tiny.ROW_LENGTH, dtype=np.float32)[None, :, None]
    batch = {name: value[:1] for name, value in tiny.unpacked().items()}
    n, m = len(example["history"]), len(example["target"])
    assert pooled(places, batch, HISTORY, 1) == np.mean(range(1, n + 1))
    assert pooled(places, batch, TARGET, 1) == np.mean(range(n + 1, n + m + 1))


def test_bos_and_padding_enter_no_mean():
    # Known defect elsewhere: pads are pooled.
    batch = tiny.packed()
    hidden = some_hidden(batch)
    spoilt = np.where((batch["decoder_span_ids"] == 0)[..., None], np.float32(1e6), hidden)
    assert (spoilt != hidden).any()
    for span in (HISTORY, TARGET):
        np.testing.assert_array_equal(pooled(spoilt, batch, span), pooled(hidden, batch, span))


def test_items_are_the_oracles_and_leave_out_bos_and_padding():
    batch = tiny.packed()
    mask = batch["item_mask"]
    hidden = np.random.default_rng(1).normal(size=(*mask.shape, 8)).astype(np.float32)
    flat = hidden.reshape(-1, *hidden.shape[2:])

    def items(states):
        return np.asarray(towers.pool_items(states, mask.reshape(-1, mask.shape[-1])))

    np.testing.assert_allclose(
        items(flat).reshape(*mask.shape[:2], 8), oracle.pool_items(hidden, mask), **TOLERANCE
    )
    spoilt = np.where(mask.reshape(-1, mask.shape[-1])[..., None] == 0, np.float32(1e6), flat)
    np.testing.assert_array_equal(items(spoilt), items(flat))


def test_means_are_taken_in_float32_whatever_the_compute_dtype():
    batch = {name: value[:1] for name, value in tiny.unpacked().items()}
    hidden = np.zeros((1, tiny.ROW_LENGTH, 1), np.float32)
    hidden[0, 1:5, 0] = [1.0, 1.0078125, 1.0, 1.0]  # the next bfloat16 after 1
    got = pooled(jnp.asarray(hidden, jnp.bfloat16), batch, HISTORY, 1)
    assert got == 1 + 0.0078125 / 4
