"""Keys and values kept between decoding steps: one shared prefix, N continuations."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig


@flax.struct.dataclass
class Prefix:
    """The prompts' keys and values, held once for all continuations of a prompt.

    Attributes:
      k, v: [L, B, P, G, K], layers, prompts, prompt length, key/value heads, head width.
      mask: [B, P] bool, False on padding.
      lengths: [B] int32, the position at which each continuation starts.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Continuations:
    """Keys and values of the tokens generated so far.

    Attributes:
      k, v: [L, B, N, T, G, K], N continuations of at most T tokens.
      length: [] int32, tokens already written, the same for all (finished ones write padding).
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, samples: int, length: int) -> Continuations:
        """Room for `length` tokens of `samples` continuations of `batch` prompts."""
        shape = (config.num_layers, batch, samples, length, config.num_kv_heads, config.head_dim)
        zeros = jnp.zeros(shape, config.dtype)
        return cls(zeros, zeros, jnp.zeros((), jnp.int32))

    def append(self, k_LxBxNxGxK: jax.Array, v_LxBxNxGxK: jax.Array) -> Continuations:
        """One more token for every continuation."""

        def write(cache, new):
            start = (0, 0, 0, self.length, 0, 0)
            return jax.lax.dynamic_update_slice(cache, new[:, :, :, None], start)

        k, v = write(self.k, k_LxBxNxGxK), write(self.v, v_LxBxNxGxK)
        return Continuations(k, v, self.length + 1)
