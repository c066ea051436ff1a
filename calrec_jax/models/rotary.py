"""Rotary position embeddings and the ways in which families stretch them over longer texts.

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
    """How the frequencies of a longer context are made of those that were pretrained.

    Attributes:
      kind: "linear" (all divided by `factor`; Chen et al. 2023, arXiv 2306.15595), "llama3" (low
        ones divided, high ones kept, a ramp between; Llama 3.1) or "yarn" (the same by the number
        of rotations, and attention is scaled; Peng et al. 2023, arXiv 2309.00071).
      factor: how many times longer the context has become.
      original_length: tokens of the pretrained context ("llama3", "yarn").
      low_freq_factor, high_freq_factor: of "llama3": wavelengths above `original_length` /
        low_freq_factor are divided, those below / high_freq_factor kept.
      beta_fast, beta_slow: of "yarn": rotations over `original_length` above which frequencies are
        kept, and below which they are divided.
      attention_factor: of "yarn", on queries and keys; None = 0.1 ln(factor) + 1.
      truncate: of "yarn": the ramp's ends are whole places.

    Raises:
      CalrecError: an unknown kind, or values that are not positive.
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
        """What rotated queries and keys are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def frequencies(theta: float, width: int, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a position, [width / 2] float32: theta^(-2i / width), then scaled."""
    plain = (1.0 / theta ** (np.arange(0, width, 2) / width)).astype(np.float32)
    if scaling is None:
        return plain
    slow = (plain / np.float32(scaling.factor)).astype(np.float32)
    if scaling.kind == "linear":
        return slow
    kept = _llama3_kept if scaling.kind == "llama3" else _yarn_kept
    share = kept(plain, theta, width, scaling)
    return (plain * share + slow * (1 - share)).astype(np.float32)


def _llama3_kept(plain, theta: float, width: int, scaling: RopeScaling) -> np.ndarray:
    """Share of each frequency that stays: 0 below `low`, 1 above `high` rotations, a ramp."""
    rotations = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((rotations - low) / (high - low), 0, 1)


def _yarn_kept(plain, theta: float, width: int, scaling: RopeScaling) -> np.ndarray:
    """Share of each frequency that stays: a ramp between the places of two numbers of rotations."""

    def place(rotations: float) -> float:
        wavelengths = scaling.original_length / (rotations * 2 * math.pi)
        return width * math.log(wavelengths) / (2 * math.log(theta))

    first, last = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001  # as the reference has it: a step instead of a ramp
    return 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)


def rotations(positions, frequencies_F: np.ndarray, amplitude: float = 1.0):
    """(sin, cos) of the angles of all positions, float32 [*positions, F]."""
    angles = positions[..., None].astype(jnp.float32) * _last_axis(frequencies_F, positions.ndim)
    return jnp.sin(angles) * amplitude, jnp.cos(angles) * amplitude


def _last_axis(vector: np.ndarray, before: int) -> np.ndarray:
    return vector.reshape((1,) * before + vector.shape)


def rotate(x_BxSxHxK: jax.Array, sin_BxSxF: jax.Array, cos_BxSxF: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + K/2) of each head, in float32."""
    sin, cos = sin_BxSxF[:, :, None], cos_BxSxF[:, :, None]
    first, second = jnp.split(x_BxSxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxSxHxK.dtype)
