"""Grouped-query attention: over packed rows, and over a shared prefix while decoding."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models import kv_cache, rotary
from calrec_jax.models.config import ATTENTION_KINDS, DecoderConfig
from calrec_jax.models.layers import Projection, RMSNorm, soft_cap
from calrec_jax.parallel.partitioning import constrain

# Finite, so that a row with nothing to attend to (padding) gives numbers and not NaN.
_MASKED = -1e30
_HEADS = ("batch", "length", "heads", "kv")


@flax.struct.dataclass
class PerAttentionKind:
    """What differs between the kinds of attention that a decoder has, e.g. its masks.

    Attributes:
      values: one a kind, in the order of `ATTENTION_KINDS`; kinds that no layer has are left out.
    """

    values: tuple

    @classmethod
    def make(cls, config: DecoderConfig, make) -> PerAttentionKind:
        """`make(kind)` for each kind that a layer has."""
        return cls(tuple(make(kind) for kind in _kinds(config)))

    def of(self, layer_kind):
        """The value of one kind: its place, a number or a scalar array (see `places`)."""
        if len(self.values) == 1:
            return self.values[0]
        if isinstance(layer_kind, int):
            return self.values[layer_kind]
        return jax.tree.map(lambda *kinds: jax.lax.select_n(layer_kind, *kinds), *self.values)

    @staticmethod
    def places(config: DecoderConfig) -> tuple[int, ...]:
        """The place of each layer's kind."""
        return tuple(_kinds(config).index(kind) for kind in config.layer_kinds)


def _kinds(config: DecoderConfig) -> list[str]:
    return [kind for kind in ATTENTION_KINDS if kind in config.layer_kinds]


def rotations(config: DecoderConfig, positions_BxS: jax.Array) -> PerAttentionKind:
    """(sin, cos) [B, S, K/2] of the rotary angles of each kind."""

    def of(kind: str):
        if kind == "sliding" and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        else:
            theta, scaling = config.rope_theta, config.rope_scaling
        frequencies = rotary.frequencies(theta, config.head_dim, scaling)
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return rotary.rotations(positions_BxS, frequencies, amplitude)

    return PerAttentionKind.make(config, of)


def packed_masks(config: DecoderConfig, segment_ids_BxS: jax.Array) -> PerAttentionKind:
    """[B, S, S] bool: query attends to key: same segment, not padding, not later in the row."""
    same = segment_ids_BxS[:, :, None] == segment_ids_BxS[:, None, :]
    places_S = jnp.arange(segment_ids_BxS.shape[1])
    distance_SxS = places_S[:, None] - places_S[None, :]
    visible = same & (segment_ids_BxS != 0)[:, None, :] & (distance_SxS >= 0)[None]
    return PerAttentionKind.make(
        config, lambda kind: visible & _near(config, kind, distance_SxS)[None]
    )


def step_masks(
    config: DecoderConfig, prefix_mask_BxP, lengths_B, room: int, step
) -> PerAttentionKind:
    """(over the prefix [B, P], over the `room` for new tokens [B, room]) bool of one decoding step.

    Args:
      lengths_B: of the prompts.
      step: [] int32, how many new tokens are written.
    """
    new = jnp.arange(room)
    from_prefix_BxP = (lengths_B + step)[:, None] - jnp.arange(prefix_mask_BxP.shape[1])[None]
    from_new_BxT = jnp.broadcast_to((step - new)[None], (lengths_B.shape[0], room))

    def of(kind: str):
        over_prefix = prefix_mask_BxP & _near(config, kind, from_prefix_BxP)
        return over_prefix, (new < step)[None] & _near(config, kind, from_new_BxT)

    return PerAttentionKind.make(config, of)


def _near(config: DecoderConfig, kind: str, distance) -> jax.Array:
    if kind == "global":
        return jnp.ones_like(distance, bool)
    return distance < config.sliding_window


def _scores(equation: str, q, k) -> jax.Array:
    return jnp.einsum(equation, q, k, preferred_element_type=jnp.float32)


def attend(q_BxSxHxK, k_BxTxGxK, v_BxTxGxK, mask_BxSxT, softcap: float | None = None):
    """softmax(q k) v, heads grouped over key/value heads, softmax in float32; [B, S, H, K]."""
    b, s, h, width = q_BxSxHxK.shape
    groups = k_BxTxGxK.shape[2]
    q_BxSxGxRxK = q_BxSxHxK.reshape(b, s, groups, h // groups, width)
    scores_BxGxRxSxT = soft_cap(_scores("bsgrk,btgk->bgrst", q_BxSxGxRxK, k_BxTxGxK), softcap)
    scores_BxGxRxSxT = jnp.where(mask_BxSxT[:, None, None], scores_BxGxRxSxT, _MASKED)
    weights = jax.nn.softmax(scores_BxGxRxSxT, axis=-1).astype(v_BxTxGxK.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, v_BxTxGxK).reshape(b, s, h, width)


def attend_continuations(q, new, prefix, written, masks, softcap: float | None = None):
    """One new token of N continuations: attention over prefix, earlier tokens and itself.

    The prefix's keys and values are read once for all N continuations: N stands where the
    query axis stands in ordinary attention.

    Args:
      q: [B, N, H, K].
      new: (k, v) of the new token, [B, N, G, K] each.
      prefix: (k, v) of the prompts, [B, G, P, K] each.
      written: (k, v) of the earlier new tokens, [B, G, N, T, K] each.
      masks: over the prefix [B, P] and over the earlier new tokens [B, T], see `step_masks`.

    Returns:
      [B, N, H, K].
    """
    b, n, h, width = q.shape
    groups = new[0].shape[2]
    # Heads before continuations, as the caches have it: no cache is transposed to be multiplied.
    q = jnp.swapaxes(q.reshape(b, n, groups, h // groups, width), 1, 2)
    new_k, new_v = (jnp.swapaxes(a, 1, 2) for a in new)
    over_prefix = soft_cap(_scores("bgnrk,bgpk->bgnrp", q, prefix[0]), softcap)
    over_prefix = jnp.where(masks[0][:, None, None, None, :], over_prefix, _MASKED)
    over_written = soft_cap(_scores("bgnrk,bgntk->bgnrt", q, written[0]), softcap)
    over_written = jnp.where(masks[1][:, None, None, None, :], over_written, _MASKED)
    over_self = soft_cap(_scores("bgnrk,bgnk->bgnr", q, new_k), softcap)[..., None]

    scores = jnp.concatenate([over_prefix, over_written, over_self], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    p, t = over_prefix.shape[-1], over_written.shape[-1]
    out = jnp.einsum("bgnrp,bgpk->bgnrk", weights[..., :p], prefix[1])
    out += jnp.einsum("bgnrt,bgntk->bgnrk", weights[..., p : p + t], written[1])
    out += weights[..., -1:] * new_v[:, :, :, None]
    return jnp.swapaxes(out, 1, 2).reshape(b, n, h, width)


class Attention(nn.Module):
    """Projections around attention; the two methods share their parameters."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        d, h, g, k = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
        bias = c.query_key_value_bias
        self.query = Projection(c, (d,), (h, k), ("embed", "heads", "kv"), bias)
        self.key = Projection(c, (d,), (g, k), ("embed", "kv_heads", "kv"), bias)
        self.value = Projection(c, (d,), (g, k), ("embed", "kv_heads", "kv"), bias)
        self.out = Projection(c, (h, k), (d,), ("heads", "kv", "embed"), c.attention_out_bias)
        if c.query_key_norm:
            self.query_norm, self.key_norm = RMSNorm(c, "kv"), RMSNorm(c, "kv")

    def _project(self, x_BxSxD, rotation):
        c = self.config
        q, k, v = self.query(x_BxSxD), self.key(x_BxSxD), self.value(x_BxSxD)
        if c.query_key_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q = rotary.rotate(q, *rotation) * (c.query_scalar or c.head_dim) ** -0.5
        k = rotary.rotate(k, *rotation)
        k, v = (constrain(a, ("batch", "length", "kv_heads", "kv")) for a in (k, v))
        return constrain(q, _HEADS), k, v

    def __call__(self, x_BxSxD, rotation, mask_BxSxS):
        """Attention within rows. Returns ([B, S, D], (k, v)) with k, v [B, S, G, K]."""
        q, k, v = self._project(x_BxSxD, rotation)
        out = attend(q, k, v, mask_BxSxS, self.config.attention_softcap)
        return self.out(constrain(out, _HEADS)), (k, v)

    def decode(self, x_BxNxD, rotation, masks, prefix, written, step):
        """One token of each continuation, at place `step` of `written`.

        Returns:
          [B, N, D], and `written` with the token's keys and values.
        """
        q, k, v = self._project(x_BxNxD, rotation)
        softcap = self.config.attention_softcap
        out = attend_continuations(q, (k, v), prefix, written, masks, softcap)
        return self.out(constrain(out, _HEADS)), kv_cache.write(written, (k, v), step, after=out)
