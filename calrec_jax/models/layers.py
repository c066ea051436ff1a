"""Building blocks of the decoder: projections, RMSNorm, the gated MLP, soft caps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from calrec_jax.models.config import DecoderConfig
from calrec_jax.parallel.partitioning import constrain, gathered

_ACTIVATIONS = {"gelu": lambda x: nn.gelu(x, approximate=True), "silu": nn.silu}


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118, section 2); `x` itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Projection(nn.Module):
    """x W or x W + b, summed over the last axes of x and the first of W; adapters as in `lora`.

    Attributes:
      inputs, outputs: sizes of the axes that are summed over, and of those that replace them.
      axes: logical names of the axes of W, inputs before outputs.
      bias: whether there is a b.
    """

    config: DecoderConfig
    inputs: Sequence[int]
    outputs: Sequence[int]
    axes: Sequence[str]
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Variance 1 / fan-in; explicit, since our kernels have up to three axes.
        normal = nn.initializers.normal(stddev=math.prod(self.inputs) ** -0.5)
        kernel = self._param("kernel", normal, (*self.inputs, *self.outputs), self.axes)
        y = jnp.tensordot(x, kernel, axes=len(self.inputs))
        if self.bias:
            axes = self.axes[len(self.inputs) :]
            bias = self._param("bias", nn.initializers.zeros, self.outputs, axes)
            y = y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))
        c = self.config
        if c.lora is not None and c.lora.adapts("/".join(self.path[-2:])):
            y = y + self._update(x, normal)
        return y

    def _update(self, x: jax.Array, normal: nn.initializers.Initializer) -> jax.Array:
        """The adapters' update of x W: alpha / rank (x A) B. B starts at 0, and so does the update.

        A and B are float32 whatever the kernel's type, because they are what is trained.
        """
        rank, n, zeros = self.config.lora.rank, len(self.inputs), nn.initializers.zeros
        f32 = jnp.float32
        a = self._param("lora_a", normal, (*self.inputs, rank), (*self.axes[:n], "lora"), f32)
        b = self._param("lora_b", zeros, (rank, *self.outputs), ("lora", *self.axes[n:]), f32)
        return self.config.lora.scale * jnp.tensordot(jnp.tensordot(x, a, axes=n), b, axes=1)

    def _param(
        self,
        name: str,
        init: nn.initializers.Initializer,
        shape: Sequence[int],
        axes: Sequence[str],
        dtype: jnp.dtype | None = None,
    ) -> jax.Array:
        """A parameter, gathered and in the compute dtype. `dtype`: held as; None = param_dtype."""
        partitioned = nn.with_logical_partitioning(init, tuple(axes))
        dtype = dtype or jnp.dtype(self.config.param_dtype)
        value = self.param(name, partitioned, tuple(shape), dtype)
        return gathered(value.astype(self.config.dtype), axes)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019).

    Attributes:
      axis: logical name of the axis that is normalised.
    """

    config: DecoderConfig
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        start = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        init = nn.with_logical_partitioning(start, (self.axis,))
        scale = self.param("scale", init, (x.shape[-1],), jnp.dtype(c.param_dtype))
        scale = gathered(scale.astype(jnp.float32), (self.axis,))
        scale = scale + (1.0 if c.norm_plus_one else 0.0)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + c.norm_eps)
        return (normed * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


class GatedMLP(nn.Module):
    """act(x W_gate) * (x W_up), then W_down (Shazeer 2020)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        c = self.config
        d, f, bias = (c.d_model,), (c.d_ff,), c.mlp_bias
        gate_BxSxF = Projection(c, d, f, ("embed", "mlp"), bias, name="gate")(x_BxSxD)
        up_BxSxF = Projection(c, d, f, ("embed", "mlp"), bias, name="up")(x_BxSxD)
        hidden_BxSxF = _ACTIVATIONS[c.activation](gate_BxSxF) * up_BxSxF
        hidden_BxSxF = constrain(hidden_BxSxF, ("batch", "length", "mlp"))
        return Projection(c, f, d, ("mlp", "embed"), bias, name="down")(hidden_BxSxF)
