"""Grouped-query attention: over packed rows, and over a shared prefix while decoding.

In shapes: B rows, S queries, T keys, H query heads, G key/value heads, R = H / G, K head width.
While decoding: B prompts of P tokens, N continuations of each, T tokens that each can have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models import kv_cache, rotary
from calrec_jax.models.config import ATTENTION_KINDS, DecoderConfig
from calrec_jax.models.kv_cache import KeysAndValues
from calrec_jax.models.layers import Projection, RMSNorm, soft_cap
from calrec_jax.parallel.partitioning import constrain

# Finite, so that a row with nothing to attend to (padding) gives numbers and not NaN.
_MASKED = -1e30
_HEADS = ("batch", "length", "heads", "kv")
_KV_HEADS = ("batch", "length", "kv_heads", "kv")

Rotation = tuple[jax.Array, jax.Array]
"""(sin, cos), float32 [B, S, K / 2] each, of the angles that heads are rotated by."""


@flax.struct.dataclass
class PerAttentionKind:
    """Values that differ between a decoder's kinds of attention, for example masks.

    Attributes:
      values: one a kind, in the order of `ATTENTION_KINDS`; kinds that no layer has are left out.
    """

    values: tuple[Any, ...]

    @classmethod
    def make(cls, config: DecoderConfig, make: Callable[[str], Any]) -> PerAttentionKind:
        """`make(kind)` for each kind that a layer has."""
        return cls(tuple(make(kind) for kind in _kinds(config)))

    def of(self, kind_index: int | jax.Array) -> Any:
        """The value of one kind, by its index (see `layer_indices`) as a number or [] int32."""
        if len(self.values) == 1:
            return self.values[0]
        if isinstance(kind_index, int):
            return self.values[kind_index]
        return jax.tree.map(lambda *values: jax.lax.select_n(kind_index, *values), *self.values)

    @staticmethod
    def layer_indices(config: DecoderConfig) -> tuple[int, ...]:
        """The index in `values` of each layer's kind."""
        return tuple(_kinds(config).index(kind) for kind in config.layer_kinds)


def _kinds(config: DecoderConfig) -> list[str]:
    return [kind for kind in ATTENTION_KINDS if kind in config.layer_kinds]


def rotations(config: DecoderConfig, positions_BxS: jax.Array) -> PerAttentionKind:
    """The `Rotation` of each kind at int32 positions."""

    def rotation(kind: str) -> Rotation:
        if kind == "sliding" and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        else:
            theta, scaling = config.rope_theta, config.rope_scaling
        frequencies_F = rotary.frequencies(theta, config.head_dim, scaling)
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return rotary.rotations(positions_BxS, frequencies_F, amplitude)

    return PerAttentionKind.make(config, rotation)


def packed_masks(config: DecoderConfig, segment_ids_BxS: jax.Array) -> PerAttentionKind:
    """bool [B, S, S] of each kind: which query attends to which key.

    A query attends to the keys of its segment that are not later in the row; none attends to
    padding.
    """
    same_BxSxS = segment_ids_BxS[:, :, None] == segment_ids_BxS[:, None, :]
    index_S = jnp.arange(segment_ids_BxS.shape[1])
    distance_SxS = index_S[:, None] - index_S[None, :]
    visible_BxSxS = same_BxSxS & (segment_ids_BxS != 0)[:, None, :] & (distance_SxS >= 0)[None]
    return PerAttentionKind.make(
        config, lambda kind: visible_BxSxS & _in_window(config, kind, distance_SxS)[None]
    )


def step_masks(
    config: DecoderConfig,
    prefix_mask_BxP: jax.Array,
    lengths_B: jax.Array,
    max_new_tokens: int,
    step: jax.Array,
) -> PerAttentionKind:
    """The masks of one decoding step: (over the prefix [B, P], over new tokens [B, T]) bool.

    Args:
      prefix_mask_BxP: bool, False on padding.
      lengths_B: int32, tokens of the prompts.
      max_new_tokens: T.
      step: [] int32, how many new tokens are written.
    """
    new_T = jnp.arange(max_new_tokens)
    from_prefix_BxP = (lengths_B + step)[:, None] - jnp.arange(prefix_mask_BxP.shape[1])[None]
    from_new_BxT = jnp.broadcast_to((step - new_T)[None], (lengths_B.shape[0], max_new_tokens))

    def masks(kind: str) -> tuple[jax.Array, jax.Array]:
        over_prefix_BxP = prefix_mask_BxP & _in_window(config, kind, from_prefix_BxP)
        over_new_BxT = (new_T < step)[None] & _in_window(config, kind, from_new_BxT)
        return over_prefix_BxP, over_new_BxT

    return PerAttentionKind.make(config, masks)


def _in_window(config: DecoderConfig, kind: str, distance: jax.Array) -> jax.Array:
    """bool, like `distance`: whether a key so many tokens back is near enough to attend to."""
    if kind == "global":
        return jnp.ones_like(distance, bool)
    return distance < config.sliding_window


def _scores(equation: str, q: jax.Array, k: jax.Array) -> jax.Array:
    """einsum of queries and keys, float32."""
    return jnp.einsum(equation, q, k, preferred_element_type=jnp.float32)


def attend(
    q_BxSxHxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxK: jax.Array,
    mask_BxSxT: jax.Array,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(q k) v, with R query heads for each key/value head and the softmax in float32.

    Args:
      mask_BxSxT: bool, which query attends to which key.
      softcap: see `layers.soft_cap`; of the scores.

    Returns:
      [B, S, H, K] in the dtype of v.
    """
    b, s, h, width = q_BxSxHxK.shape
    groups = k_BxTxGxK.shape[2]
    q_BxSxGxRxK = q_BxSxHxK.reshape(b, s, groups, h // groups, width)
    scores_BxGxRxSxT = soft_cap(_scores("bsgrk,btgk->bgrst", q_BxSxGxRxK, k_BxTxGxK), softcap)
    scores_BxGxRxSxT = jnp.where(mask_BxSxT[:, None, None], scores_BxGxRxSxT, _MASKED)
    weights_BxGxRxSxT = jax.nn.softmax(scores_BxGxRxSxT, axis=-1).astype(v_BxTxGxK.dtype)
    out_BxSxGxRxK = jnp.einsum("bgrst,btgk->bsgrk", weights_BxGxRxSxT, v_BxTxGxK)
    return out_BxSxGxRxK.reshape(b, s, h, width)


def attend_continuations(
    q_BxNxHxK: jax.Array,
    new: KeysAndValues,
    prefix: KeysAndValues,
    written: KeysAndValues,
    masks: tuple[jax.Array, jax.Array],
    softcap: float | None = None,
) -> jax.Array:
    """One new token of N continuations: attention over prefix, earlier tokens and itself.

    The prefix's keys and values are read once for all N continuations: N stands where the
    query axis stands in ordinary attention.

    Args:
      new: (k, v) of the new token, [B, N, G, K] each.
      prefix: (k, v) of the prompts, [B, G, P, K] each.
      written: (k, v) of the earlier new tokens, [B, G, N, T, K] each.
      masks: over the prefix [B, P] and over the earlier new tokens [B, T], see `step_masks`.
      softcap: see `layers.soft_cap`; of the scores.

    Returns:
      [B, N, H, K] in the dtype of q.
    """
    b, n, h, width = q_BxNxHxK.shape
    groups = new[0].shape[2]
    over_prefix_BxP, over_written_BxT = masks
    prefix_k_BxGxPxK, prefix_v_BxGxPxK = prefix
    written_k_BxGxNxTxK, written_v_BxGxNxTxK = written
    # Heads before continuations, as the caches have it: no cache is transposed to be multiplied.
    q_BxGxNxRxK = jnp.swapaxes(q_BxNxHxK.reshape(b, n, groups, h // groups, width), 1, 2)
    new_k_BxGxNxK, new_v_BxGxNxK = (jnp.swapaxes(a_BxNxGxK, 1, 2) for a_BxNxGxK in new)

    to_prefix_BxGxNxRxP = soft_cap(
        _scores("bgnrk,bgpk->bgnrp", q_BxGxNxRxK, prefix_k_BxGxPxK), softcap
    )
    to_prefix_BxGxNxRxP = jnp.where(
        over_prefix_BxP[:, None, None, None, :], to_prefix_BxGxNxRxP, _MASKED
    )
    to_written_BxGxNxRxT = soft_cap(
        _scores("bgnrk,bgntk->bgnrt", q_BxGxNxRxK, written_k_BxGxNxTxK), softcap
    )
    to_written_BxGxNxRxT = jnp.where(
        over_written_BxT[:, None, None, None, :], to_written_BxGxNxRxT, _MASKED
    )
    to_self_BxGxNxR = soft_cap(_scores("bgnrk,bgnk->bgnr", q_BxGxNxRxK, new_k_BxGxNxK), softcap)

    scores = jnp.concatenate(
        [to_prefix_BxGxNxRxP, to_written_BxGxNxRxT, to_self_BxGxNxR[..., None]], axis=-1
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BxNxHxK.dtype)  # [B, G, N, R, P + T + 1]
    p, t = over_prefix_BxP.shape[1], over_written_BxT.shape[1]
    out_BxGxNxRxK = jnp.einsum("bgnrp,bgpk->bgnrk", weights[..., :p], prefix_v_BxGxPxK)
    out_BxGxNxRxK += jnp.einsum("bgnrt,bgntk->bgnrk", weights[..., p : p + t], written_v_BxGxNxTxK)
    out_BxGxNxRxK += weights[..., -1:] * new_v_BxGxNxK[:, :, :, None]
    return jnp.swapaxes(out_BxGxNxRxK, 1, 2).reshape(b, n, h, width)


class Attention(nn.Module):
    """Attention with its projections. `__call__` and `decode` share the parameters."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        d, h, g, k = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
        bias = c.query_key_value_bias
        self.query = Projection(c, (d,), (h, k), ("embed", "heads", "kv"), bias)
        self.key = Projection(c, (d,), (g, k), ("embed", "kv_heads", "kv"), bias)
        self.value = Projection(c, (d,), (g, k), ("embed", "kv_heads", "kv"), bias)
        self.out = Projection(c, (h, k), (d,), ("heads", "kv", "embed"), c.attention_out_bias)
        if c.query_key_norm:
            self.query_norm, self.key_norm = RMSNorm(c, "kv"), RMSNorm(c, "kv")

    def _project(
        self, x_BxSxD: jax.Array, rotation: Rotation
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, S, H, K], scaled as well, rotated keys and values [B, S, G, K]."""
        c = self.config
        q_BxSxHxK = self.query(x_BxSxD)
        k_BxSxGxK, v_BxSxGxK = self.key(x_BxSxD), self.value(x_BxSxD)
        if c.query_key_norm:
            q_BxSxHxK, k_BxSxGxK = self.query_norm(q_BxSxHxK), self.key_norm(k_BxSxGxK)
        q_BxSxHxK = rotary.rotate(q_BxSxHxK, *rotation) * (c.query_scalar or c.head_dim) ** -0.5
        k_BxSxGxK = rotary.rotate(k_BxSxGxK, *rotation)
        k_BxSxGxK, v_BxSxGxK = constrain(k_BxSxGxK, _KV_HEADS), constrain(v_BxSxGxK, _KV_HEADS)
        return constrain(q_BxSxHxK, _HEADS), k_BxSxGxK, v_BxSxGxK

    def __call__(
        self, x_BxSxD: jax.Array, rotation: Rotation, mask_BxSxS: jax.Array
    ) -> tuple[jax.Array, KeysAndValues]:
        """Attention within rows. Returns ([B, S, D], (k, v)) with k, v [B, S, G, K]."""
        q_BxSxHxK, k_BxSxGxK, v_BxSxGxK = self._project(x_BxSxD, rotation)
        softcap = self.config.attention_softcap
        out_BxSxHxK = attend(q_BxSxHxK, k_BxSxGxK, v_BxSxGxK, mask_BxSxS, softcap)
        return self.out(constrain(out_BxSxHxK, _HEADS)), (k_BxSxGxK, v_BxSxGxK)

    def decode(
        self,
        x_BxNxD: jax.Array,
        rotation: Rotation,
        masks: tuple[jax.Array, jax.Array],
        prefix: KeysAndValues,
        written: KeysAndValues,
        step: jax.Array,
    ) -> tuple[jax.Array, KeysAndValues]:
        """Attention of one new token of each continuation, see `attend_continuations`.

        Args:
          step: [] int32, the index in `written` where the token's keys and values go.

        Returns:
          [B, N, D], and `written` with the token's keys and values.
        """
        q_BxNxHxK, k_BxNxGxK, v_BxNxGxK = self._project(x_BxNxD, rotation)
        new, softcap = (k_BxNxGxK, v_BxNxGxK), self.config.attention_softcap
        attended_BxNxHxK = attend_continuations(q_BxNxHxK, new, prefix, written, masks, softcap)
        out_BxNxD = self.out(constrain(attended_BxNxHxK, _HEADS))
        return out_BxNxD, kv_cache.write(written, new, step, after_BxNxHxK=attended_BxNxHxK)
