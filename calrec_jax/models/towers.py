"""The vectors v_u, v_tu and v_t: means of hidden states (method: Two towers, one decoder)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from calrec_jax.models.decoder import Decoder
from calrec_jax.models.params import Params


def span_vectors(
    hidden_BxSxD: jax.Array,
    segment_ids_BxS: jax.Array,
    span_ids_BxS: jax.Array,
    span: int,
    max_segments: int,
) -> jax.Array:
    """The mean of the hidden states of one span of each joint sequence: v_u or v_tu.

    Args:
      hidden_BxSxD: the decoder's hidden states of packed rows.
      segment_ids_BxS, span_ids_BxS: int32, by input token, as in `batch.BatchSpec`.
      span: `batch.HISTORY` for v_u, or `batch.TARGET` for v_tu.
      max_segments: K, slots of a row.

    Returns:
      [B * K, D] float32, the slots of a row one after another; zeros for empty slots.
    """
    slots_K = jnp.arange(1, max_segments + 1)
    in_slot_BxKxS = segment_ids_BxS[:, None, :] == slots_K[None, :, None]
    vectors_BxKxD = _masked_mean(in_slot_BxKxS & (span_ids_BxS == span)[:, None, :], hidden_BxSxD)
    return vectors_BxKxD.reshape(-1, vectors_BxKxD.shape[-1])


def item_tower(
    decoder: Decoder, item_tokens_BxKxI: jax.Array, item_mask_BxKxI: jax.Array
) -> jax.Array:
    """v_t of every slot: the mean over the target's tokens, which are read as their own sequence.

    Args:
      decoder: bound to its parameters, as inside of an `apply`.
      item_tokens_BxKxI: int32, BOS and the target's tokens.
      item_mask_BxKxI: float32, 1 on the target's tokens, 0 on BOS and padding.

    Returns:
      [B * K, D] float32, in the order of `span_vectors`; zeros for empty slots.
    """
    b, k, i = item_tokens_BxKxI.shape
    tokens_NxI = item_tokens_BxKxI.reshape(b * k, i)
    mask_NxI = item_mask_BxKxI.reshape(b * k, i)
    positions_NxI = jnp.broadcast_to(jnp.arange(i)[None], tokens_NxI.shape)
    # Padding comes last, so that no token of the target attends to it.
    hidden_NxIxD = decoder(tokens_NxI, positions_NxI, jnp.ones_like(tokens_NxI))
    return pool_items(hidden_NxIxD, mask_NxI)


def item_vectors(
    decoder: Decoder, params: Params, item_tokens_BxKxI: jax.Array, item_mask_BxKxI: jax.Array
) -> jax.Array:
    """`item_tower` of a decoder with these parameters. [B * K, D] float32."""
    return decoder.apply({"params": params}, item_tokens_BxKxI, item_mask_BxKxI, method=item_tower)


def pool_items(hidden_NxIxD: jax.Array, mask_NxI: jax.Array) -> jax.Array:
    """The mean over each item sequence's tokens where the mask is not 0. [N, D] float32."""
    return _masked_mean(mask_NxI[:, None, :] != 0, hidden_NxIxD)[:, 0]


def _masked_mean(mask_BxKxS: jax.Array, hidden_BxSxD: jax.Array) -> jax.Array:
    """The mean of the hidden states that each of K masks selects; zeros for an empty mask.

    Args:
      mask_BxKxS: bool.

    Returns:
      [B, K, D] float32.
    """
    total_BxKxD = jnp.einsum(
        "bks,bsd->bkd",
        mask_BxKxS.astype(jnp.float32),
        hidden_BxSxD.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    count_BxKx1 = mask_BxKxS.sum(axis=-1, keepdims=True).astype(jnp.float32)
    return total_BxKxD / jnp.maximum(count_BxKx1, 1.0)
