"""Means of hidden states: the vectors v_u, v_tu and v_t (method: two towers, one decoder)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _masked_mean(mask_BxKxS, hidden_BxSxD) -> jax.Array:
    """Mean of the hidden states that each of K masks selects, float32; zeros where it is empty."""
    total = jnp.einsum(
        "bks,bsd->bkd",
        mask_BxKxS.astype(jnp.float32),
        hidden_BxSxD.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    count = mask_BxKxS.sum(axis=-1, keepdims=True).astype(jnp.float32)
    return total / jnp.maximum(count, 1.0)


def pool_span(hidden_BxSxD, segment_ids_BxS, span_ids_BxS, span: int, max_segments: int):
    """Mean over the positions of each segment whose input token belongs to `span`.

    Returns:
      [B, K, D] float32; zeros for empty slots. Padding and BOS have span 0 and enter no mean.
    """
    slots_K = jnp.arange(1, max_segments + 1)
    in_slot_BxKxS = segment_ids_BxS[:, None, :] == slots_K[None, :, None]
    return _masked_mean(in_slot_BxKxS & (span_ids_BxS == span)[:, None, :], hidden_BxSxD)


def pool_items(hidden_NxIxD, mask_NxI) -> jax.Array:
    """Mean over each item sequence's own tokens. Returns [N, D] float32."""
    return _masked_mean(mask_NxI[:, None, :] != 0, hidden_NxIxD)[:, 0]
