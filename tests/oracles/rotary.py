"""Rotary frequencies and their scalings in float64, one at a time, from the papers.

A scaling is a dict: "kind" and what its formula names.
"""

from __future__ import annotations

import math
from typing import Any


def frequencies(theta: float, width: int, scaling: dict[str, Any] | None = None) -> list[float]:
    """Radians a position of each of the width / 2 pairs: theta^(-2i / width), then scaled."""
    plain = [theta ** (-2 * i / width) for i in range(width // 2)]
    if scaling is None:
        return plain
    if scaling["kind"] == "linear":
        # Position interpolation: m becomes m / s (Chen et al. 2023, equation 4).
        return [frequency / scaling["factor"] for frequency in plain]
    if scaling["kind"] == "llama3":
        return [_llama3(frequency, scaling) for frequency in plain]
    return [_yarn(i, frequency, theta, width, scaling) for i, frequency in enumerate(plain)]


def _llama3(frequency: float, scaling: dict[str, Any]) -> float:
    """As in `apply_scaling` of Meta's llama-models."""
    factor, length = scaling["factor"], scaling["original_length"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _yarn(i: int, frequency: float, theta: float, width: int, scaling: dict[str, Any]) -> float:
    """NTK by parts (Peng et al. 2023, section 3.2), with the ramp over places i of its code.

    Pair i turns r times over the original length L where i = width ln(L / (2 pi r)) / (2 ln theta);
    the ramp is from the place of r = beta_fast, where frequencies stay, to that of r = beta_slow.
    """

    def place(rotations: float) -> float:
        ratio = scaling["original_length"] / (2 * math.pi * rotations)
        return width * math.log(ratio) / (2 * math.log(theta))

    first, last = place(scaling["beta_fast"]), place(scaling["beta_slow"])
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    divided = min(max((i - first) / (last - first), 0), 1)
    return divided * frequency / scaling["factor"] + (1 - divided) * frequency


def amplitude(scaling: dict[str, Any] | None) -> float:
    """What rotated queries and keys are multiplied by: of YaRN sqrt(1/t) = 0.1 ln(s) + 1."""
    if scaling is None or scaling["kind"] != "yarn":
        return 1.0
    if scaling["attention_factor"] is not None:
        return scaling["attention_factor"]
    return 0.1 * math.log(scaling["factor"]) + 1
