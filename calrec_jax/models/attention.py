"""Grouped-query attention: over packed rows, and over a shared prefix while decoding."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.layers import kernel, rope

# Finite, so that a row with nothing to attend to (padding) gives numbers and not NaN.
_MASKED = -1e30


def packed_mask(segment_ids_BxS: jax.Array) -> jax.Array:
    """[B, S, S] bool: query attends to key: same segment, not padding, not later in the row."""
    same = segment_ids_BxS[:, :, None] == segment_ids_BxS[:, None, :]
    length = segment_ids_BxS.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return same & (segment_ids_BxS != 0)[:, None, :] & causal[None]


def _scores(query: str, q, k) -> jax.Array:
    return jnp.einsum(query, q, k, preferred_element_type=jnp.float32)


def attend(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, mask_BxSxT) -> jax.Array:
    """softmax(q k / sqrt(K)) v, heads grouped over key/value heads, softmax in float32."""
    b, s, h, width = q_BxSxHxK.shape
    groups = k_BxTxGxK.shape[2]
    q_BxSxGxRxK = (q_BxSxHxK * width**-0.5).reshape(b, s, groups, h // groups, width)
    scores_BxGxRxSxT = _scores("bsgrk,btgk->bgrst", q_BxSxGxRxK, k_BxTxGxK)
    scores_BxGxRxSxT = jnp.where(mask_BxSxT[:, None, None], scores_BxGxRxSxT, _MASKED)
    weights = jax.nn.softmax(scores_BxGxRxSxT, axis=-1).astype(v_BxTxGxK.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, v_BxTxGxK).reshape(b, s, h, width)


def attend_continuations(q, new, prefix, prefix_mask_BxP, written, length) -> jax.Array:
    """One new token of N continuations: attention over prefix, earlier tokens and itself.

    The prefix's keys and values are read once for all N continuations: N stands where the
    query axis stands in ordinary attention.

    Args:
      q: [B, N, H, K].
      new: (k, v) of the new token, [B, N, G, K] each.
      prefix: (k, v) of the prompts, [B, P, G, K] each.
      prefix_mask_BxP: False on padding.
      written: (k, v) of the earlier new tokens, [B, N, T, G, K] each.
      length: [] int32, how many of the T are written.

    Returns:
      [B, N, H, K].
    """
    b, n, h, width = q.shape
    groups = new[0].shape[2]
    q = (q * width**-0.5).reshape(b, n, groups, h // groups, width)
    over_prefix = _scores("bngrk,bpgk->bngrp", q, prefix[0])
    over_prefix = jnp.where(prefix_mask_BxP[:, None, None, None, :], over_prefix, _MASKED)
    over_written = _scores("bngrk,bntgk->bngrt", q, written[0])
    is_written = jnp.arange(written[0].shape[2]) < length
    over_written = jnp.where(is_written[None, None, None, None, :], over_written, _MASKED)
    over_self = _scores("bngrk,bngk->bngr", q, new[0])[..., None]

    scores = jnp.concatenate([over_prefix, over_written, over_self], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    p, t = over_prefix.shape[-1], over_written.shape[-1]
    out = jnp.einsum("bngrp,bpgk->bngrk", weights[..., :p], prefix[1])
    out += jnp.einsum("bngrt,bntgk->bngrk", weights[..., p : p + t], written[1])
    out += weights[..., -1:] * new[1][:, :, :, None]
    return out.reshape(b, n, h, width)


class Attention(nn.Module):
    """Projections around attention; the two methods share their parameters."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        d, h, g, k = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
        self.query = kernel(self, "query", (d, h, k), ("embed", "heads", "kv"), d)
        self.key = kernel(self, "key", (d, g, k), ("embed", "kv_heads", "kv"), d)
        self.value = kernel(self, "value", (d, g, k), ("embed", "kv_heads", "kv"), d)
        self.out = kernel(self, "out", (h, k, d), ("heads", "kv", "embed"), h * k)

    def _project(self, x_BxSxD, positions_BxS):
        theta = self.config.rope_theta
        q = rope(jnp.einsum("bsd,dhk->bshk", x_BxSxD, self.query), positions_BxS, theta)
        k = rope(jnp.einsum("bsd,dgk->bsgk", x_BxSxD, self.key), positions_BxS, theta)
        v = jnp.einsum("bsd,dgk->bsgk", x_BxSxD, self.value)
        return nn.with_logical_constraint(q, ("batch", "length", "heads", "kv")), k, v

    def __call__(self, x_BxSxD, positions_BxS, mask_BxSxS):
        """Attention within rows. Returns ([B, S, D], (k, v)) with k, v [B, S, G, K]."""
        q, k, v = self._project(x_BxSxD, positions_BxS)
        out = attend(q, k, v, mask_BxSxS)
        return jnp.einsum("bshk,hkd->bsd", out, self.out), (k, v)

    def decode(self, x_BxNxD, positions_BxN, prefix, prefix_mask_BxP, written, length):
        """One token of each continuation. Returns ([B, N, D], (k, v)) with k, v [B, N, G, K]."""
        q, k, v = self._project(x_BxNxD, positions_BxN)
        out = attend_continuations(q, (k, v), prefix, prefix_mask_BxP, written, length)
        return jnp.einsum("bnhk,hkd->bnd", out, self.out), (k, v)
