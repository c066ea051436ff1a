"""Keys and values that are kept between decoding steps: one shared prefix, N continuations.

Each layer has arrays of its own, so that a step writes into them in place. One array of all layers
would be copied to be read layer by layer.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig

KeysAndValues = tuple[jax.Array, jax.Array]
"""(k, v) of one layer, equally shaped, in the compute dtype."""


@flax.struct.dataclass
class Prefix:
    """The prompts' keys and values, held once for all continuations of a prompt.

    Attributes:
      layers: (k, v) of each layer, [B, G, P, K]: prompts, key/value heads, prompt length, head
        width.
      mask: [B, P] bool, False on padding.
      lengths: [B] int32, the position at which each continuation starts.
    """

    layers: tuple[KeysAndValues, ...]
    mask: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Continuations:
    """The keys and values of the tokens generated so far.

    Attributes:
      layers: (k, v) of each layer, [B, G, N, T, K]: N continuations of at most T tokens.
      length: [] int32, tokens already written, equally many of all continuations (those that have
        ended write padding).
    """

    layers: tuple[KeysAndValues, ...]
    length: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, samples: int, length: int) -> Continuations:
        """Room for `length` tokens of `samples` continuations of `batch` prompts."""
        shape = (batch, config.num_kv_heads, samples, length, config.head_dim)

        def zeros() -> KeysAndValues:
            return jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)

        return cls(tuple(zeros() for _ in range(config.num_layers)), jnp.zeros((), jnp.int32))

    def reordered(self, parents_BxN: jax.Array) -> Continuations:
        """Continuation n becomes a copy of `parents_BxN[:, n]`, as beam search needs it."""
        parents_Bx1xNx1x1 = parents_BxN[:, None, :, None, None]
        layers = jax.tree.map(
            lambda cache: jnp.take_along_axis(cache, parents_Bx1xNx1x1, axis=2), self.layers
        )
        return Continuations(layers, self.length)


def write(
    written: KeysAndValues, new: KeysAndValues, step: jax.Array, after_BxNxHxK: jax.Array
) -> KeysAndValues:
    """One layer's cache with one more token of each continuation.

    Args:
      written: (k, v) [B, G, N, T, K] each.
      new: (k, v) [B, N, G, K] each.
      step: [] int32, the index in T where the token goes.
      after_BxNxHxK: finite, computed from `written`. The compiler must not write before it has read
        `written` for it, or it would copy the whole cache at each step. On a CPU optimization
        barriers do not keep that order; data do, so 0 times these values is added.
    """
    groups = new[0].shape[2]
    zeros_BxNxGxK = 0 * after_BxNxHxK[:, :, :: after_BxNxHxK.shape[2] // groups]

    def write_token(cache_BxGxNxTxK: jax.Array, token_BxNxGxK: jax.Array) -> jax.Array:
        token_BxGxNx1xK = jnp.swapaxes(token_BxNxGxK + zeros_BxNxGxK, 1, 2)[:, :, :, None]
        return jax.lax.dynamic_update_slice(cache_BxGxNxTxK, token_BxGxNx1xK, (0, 0, 0, step, 0))

    return write_token(written[0], new[0]), write_token(written[1], new[1])
