"""Keys and values kept between decoding steps: one shared prefix, N continuations.

Each layer has arrays of its own: one step writes into them in place, where a stacked array would
be copied to be read layer by layer.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig

KeysAndValues = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Prefix:
    """The prompts' keys and values, held once for all continuations of a prompt.

    Attributes:
      layers: (k, v) of each, [B, G, P, K]: prompts, key/value heads, prompt length, head width.
      mask: [B, P] bool, False on padding.
      lengths: [B] int32, the position at which each continuation starts.
    """

    layers: tuple[KeysAndValues, ...]
    mask: jax.Array
    lengths: jax.Array


@flax.struct.dataclass
class Continuations:
    """Keys and values of the tokens generated so far.

    Attributes:
      layers: (k, v) of each, [B, G, N, T, K]: N continuations of at most T tokens.
      length: [] int32, tokens already written, the same for all (finished ones write padding).
    """

    layers: tuple[KeysAndValues, ...]
    length: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, samples: int, length: int) -> Continuations:
        """Room for `length` tokens of `samples` continuations of `batch` prompts."""
        shape = (batch, config.num_kv_heads, samples, length, config.head_dim)

        def room():
            return jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)

        return cls(tuple(room() for _ in range(config.num_layers)), jnp.zeros((), jnp.int32))

    def reordered(self, parents_BxN: jax.Array) -> Continuations:
        """Continuation n becomes a copy of `parents_BxN[:, n]`, as beam search has it."""
        places = parents_BxN[:, None, :, None, None]
        layers = jax.tree.map(lambda a: jnp.take_along_axis(a, places, axis=2), self.layers)
        return Continuations(layers, self.length)


def write(written: KeysAndValues, new: KeysAndValues, step: jax.Array, after: jax.Array):
    """One layer's cache with one more token of each continuation, at place `step`.

    Args:
      written: (k, v) [B, G, N, T, K] each.
      new: (k, v) [B, N, G, K] each.
      after: [B, N, H, K] finite, what was made of `written`. The compiler must not write before it
        has been read, or would copy all of it at each step to be free to; barriers do not hold it
        from that on a CPU, but data do: 0 times these.
    """
    groups = new[0].shape[2]
    nothing = 0 * after[:, :, :: after.shape[2] // groups]

    def one(cache, token):
        token = jnp.swapaxes(token + nothing, 1, 2)[:, :, :, None]
        return jax.lax.dynamic_update_slice(cache, token, (0, 0, 0, step, 0))

    return one(written[0], new[0]), one(written[1], new[1])
