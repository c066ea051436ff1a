"""Rotary position embeddings, and how model families scale them for longer contexts.

Source: Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Gemma, Llama and Qwen.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax.errors import CalrecError

SCALINGS = ("linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the pretrained frequencies are changed for a longer context.

    Attributes:
      kind: "linear" (all are divided by `factor`; Chen et al. 2023, arXiv 2306.15595), "llama3"
        (low ones are divided, high ones kept, with a ramp between; Llama 3.1) or "yarn" (likewise
        by the number of rotations, and attention is scaled; Peng et al. 2023, arXiv 2309.00071).
      factor: how many times longer the context is.
      original_length: tokens of the pretrained context ("llama3", "yarn").
      low_freq_factor, high_freq_factor: for "llama3". Frequencies are divided whose wavelengths are
        above `original_length` / low_freq_factor, and kept where these are below
        `original_length` / high_freq_factor.
      beta_fast, beta_slow: for "yarn". The rotations over `original_length` above which frequencies
        are kept, and below which they are divided.
      attention_factor: for "yarn". Multiplies queries and keys; None = 0.1 ln(factor) + 1.
      truncate: for "yarn". The ramp's ends are rounded to whole indices of frequencies.

    Raises:
      CalrecError: the kind is unknown, or values are impossible.
    """

    kind: str
    factor: float
    original_length: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if self.kind not in SCALINGS:
            raise CalrecError(f"RopeScaling.kind {self.kind!r} is none of {SCALINGS}")
        if self.factor <= 0:
            raise CalrecError(f"RopeScaling.factor {self.factor} is not positive")
        if self.kind != "linear" and not (self.original_length and self.original_length > 0):
            raise CalrecError(f"RopeScaling {self.kind!r} needs original_length, in tokens")
        if self.low_freq_factor >= self.high_freq_factor:
            raise CalrecError("RopeScaling.low_freq_factor must be below high_freq_factor")

    @property
    def amplitude(self) -> float:
        """The factor by which rotated queries and keys are multiplied."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def frequencies(theta: float, width: int, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position, [width / 2] float32: theta^(-2i / width), then scaled."""
    plain_F = (1.0 / theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
    if scaling is None:
        return plain_F
    divided_F = (plain_F / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "linear":
        return divided_F
    if scaling.kind == "llama3":
        kept_F = _llama3_kept(plain_F, scaling)
    else:
        kept_F = _yarn_kept(theta, width, scaling)
    return (plain_F * kept_F + divided_F * (1 - kept_F)).astype(np.float32)


def _llama3_kept(plain_F: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """The share of each frequency that is kept [F]: 0 below `low`, 1 above `high` rotations over
    the original length, and a ramp between."""
    rotations_F = scaling.original_length * plain_F / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((rotations_F - low) / (high - low), 0, 1)


def _yarn_kept(theta: float, width: int, scaling: RopeScaling) -> np.ndarray:
    """The share of each frequency that is kept [F]: a ramp from `beta_fast` to `beta_slow`."""

    def index(rotations: float) -> float:
        """The index, not rounded, of the frequency with so many rotations."""
        inverse_frequency = scaling.original_length / (rotations * 2 * math.pi)
        return width * math.log(inverse_frequency) / (2 * math.log(theta))

    first, last = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001  # as in the reference implementation: a step instead of a ramp
    return 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)


def rotations(
    positions: jax.Array, frequencies_F: np.ndarray, amplitude: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) of the angles of all positions, float32 [*positions, F] each."""
    frequencies = frequencies_F.reshape((1,) * positions.ndim + frequencies_F.shape)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.sin(angles) * amplitude, jnp.cos(angles) * amplitude


def rotate(x_BxSxHxK: jax.Array, sin_BxSxF: jax.Array, cos_BxSxF: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of each head, in float32. [B, S, H, K] in the dtype of x."""
    sin, cos = sin_BxSxF[:, :, None], cos_BxSxF[:, :, None]
    first, second = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxSxHxK.dtype)
