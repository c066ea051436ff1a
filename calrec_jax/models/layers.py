"""Building blocks of the decoder: RMSNorm, rotary embeddings, the gated MLP, projections."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig

_ACTIVATIONS = {"gelu": lambda x: nn.gelu(x, approximate=True), "silu": nn.silu}


def fan_in_init(fan_in: int):
    """Normal with variance 1 / fan_in; explicit, since our kernels have up to three axes."""
    return nn.initializers.normal(stddev=fan_in**-0.5)


def kernel(module: nn.Module, name: str, shape, axes, fan_in: int) -> jax.Array:
    """A parameter of `module` with logical `axes`, cast to the compute dtype."""
    config: DecoderConfig = module.config
    init = nn.with_logical_partitioning(fan_in_init(fan_in), axes)
    value = module.param(name, init, shape, jnp.dtype(config.param_dtype))
    return value.astype(config.dtype)


def rope(x_BxSxHxK: jax.Array, positions_BxS: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, pairs (i, i + K/2), angles in float32.

    Source: Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Gemma and Llama.
    """
    half = x_BxSxHxK.shape[-1] // 2
    wavelengths = theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BxS[:, :, None, None].astype(jnp.float32) / wavelengths[None, None, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxSxHxK.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        start = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        init = nn.with_logical_partitioning(start, ("embed",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(c.param_dtype))
        scale = scale.astype(jnp.float32) + (1.0 if c.norm_plus_one else 0.0)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + c.norm_eps)
        return (normed * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class GatedMLP(nn.Module):
    """act(x W_gate) * (x W_up), then W_down (Shazeer 2020)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        c = self.config
        gate = kernel(self, "gate", (c.d_model, c.d_ff), ("embed", "mlp"), c.d_model)
        up = kernel(self, "up", (c.d_model, c.d_ff), ("embed", "mlp"), c.d_model)
        down = kernel(self, "down", (c.d_ff, c.d_model), ("mlp", "embed"), c.d_ff)
        hidden_BxSxF = _ACTIVATIONS[c.activation](x_BxSxD @ gate) * (x_BxSxD @ up)
        hidden_BxSxF = nn.with_logical_constraint(hidden_BxSxF, ("batch", "length", "mlp"))
        return hidden_BxSxF @ down
