"""Rotary parameters in Hugging Face's config.json, as transformers 4 and 5 write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.rotary import SCALINGS, RopeScaling

Json = Mapping[str, Any]

GLOBAL, SLIDING = "full_attention", "sliding_attention"
_SCALING = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}


def read(hf: Json, split: bool, where: str) -> tuple[float, RopeScaling | None, float | None]:
    """(theta, scaling, theta of the sliding layers where they have their own).

    Args:
      hf: a config.json, with its family's defaults.
      split: whether each kind of attention has parameters of its own.
      where: its path, for errors.

    Raises:
      CalrecError: their kind is not built, or a value is missing.
    """
    given = hf.get("rope_parameters")
    shared = {"rope_theta": hf["rope_theta"], **hf.get("rope_scaling", {})}
    if not split:
        return *_read_kind(given or shared, hf["rope_theta"], hf, where), None
    local = hf["rope_local_base_freq"]
    parts = given or {GLOBAL: shared, SLIDING: {"rope_theta": local}}
    theta, scaling = _read_kind(parts[GLOBAL], hf["rope_theta"], hf, where)
    local, local_scaling = _read_kind(parts[SLIDING], local, hf, where)
    if local_scaling is not None:
        raise CalrecError(f"{where} scales the rotations of layers that slide: not built here")
    return theta, scaling, local


def _read_kind(
    parameters: Json, theta: float, hf: Json, where: str
) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of one kind of attention; `theta` is the default."""
    theta = float(parameters.get("rope_theta", theta))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0 or parameters.get("mscale_all_dim"):
        raise CalrecError(f"{where} has rotary parameters {dict(parameters)}: not built here")
    if kind == "default":
        return theta, None
    if kind not in _SCALING:
        raise CalrecError(f"{where} scales rotations by {kind!r}, which is none of {SCALINGS}")
    fields = {
        field: parameters[key]
        for field, key in _SCALING[kind].items()
        if parameters.get(key) is not None
    }
    if "original_length" in _SCALING[kind]:
        fields.setdefault("original_length", hf.get("max_position_embeddings"))
    if "factor" not in fields:
        raise CalrecError(f"{where} scales rotations by {kind!r} and has no factor")
    return theta, RopeScaling(kind, **fields)


def write(config: DecoderConfig, split: bool) -> dict[str, Any]:
    """The rope_parameters of a config.json; `read` reads them."""
    shared: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        kind = config.rope_scaling.kind
        scaling = config.rope_scaling
        values = {key: getattr(scaling, field) for field, key in _SCALING[kind].items()}
        shared |= {"rope_type": kind} | {k: v for k, v in values.items() if v is not None}
    if not split:
        return shared
    local = {"rope_theta": config.local_rope_theta or config.rope_theta, "rope_type": "default"}
    return {GLOBAL: shared, SLIDING: local}
