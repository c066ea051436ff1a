"""Families of open models as data: their config.json as a DecoderConfig, and back.

A config.json may leave out the defaults of its family. The names of transformers 4 and 5 differ:
both are read, and those of transformers 5 are written, which means the same by them as 4 does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from calrec_jax.checkpoints import hf_rope
from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig

Json = Mapping[str, Any]

_GLOBAL, _SLIDING = hf_rope.GLOBAL, hf_rope.SLIDING
_KINDS = {_GLOBAL: "global", _SLIDING: "sliding"}
_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How the files of a family differ from those of other families.

    Attributes:
      model_type: its name in config.json.
      architecture: the class that loads it in transformers.
      defaults: the values of keys that config.json leaves out.
      fixed: fields of DecoderConfig that are the same for the whole family.
      heeds: the keys among `_HEEDED_BY_SOME` that the family's code reads; it ignores the others.
      activation: the key of the activation in config.json.
      pattern: the kinds of attention, repeated, where config.json lists none.
      split_rope: whether each kind of attention has rotary parameters of its own.
    """

    model_type: str
    architecture: str
    defaults: Json
    fixed: Json
    heeds: tuple[str, ...]
    activation: str = "hidden_act"
    pattern: tuple[str, ...] = (_GLOBAL,)
    split_rope: bool = False


_GEMMA = {
    "vocab_size": 256_000,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_LLAMA = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
_NOT_GEMMA = {"norm_plus_one": False, "scale_embedding": False}

_HEEDED_BY_SOME = (
    "attention_bias",
    "mlp_bias",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "layer_types",
    "use_sliding_window",
    "sliding_window_pattern",
)
_GEMMA2_HEEDS = (
    "attention_bias",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "layer_types",
)

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("gemma", "GemmaForCausalLM", _GEMMA, {}, heeds=("attention_bias",)),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            _GEMMA2 | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
            {"post_norms": True},
            heeds=(*_GEMMA2_HEEDS, "attn_logit_softcapping"),
            activation="hidden_activation",
            pattern=(_SLIDING, _GLOBAL),
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _GEMMA2
            | {
                "vocab_size": 262_208,
                "rope_theta": 1_000_000.0,
                "rope_local_base_freq": 10_000.0,
            },
            {"post_norms": True, "query_key_norm": True},
            heeds=(*_GEMMA2_HEEDS, "sliding_window_pattern"),
            activation="hidden_activation",
            pattern=(*[_SLIDING] * 5, _GLOBAL),
            split_rope=True,
        ),
        Family(
            "llama", "LlamaForCausalLM", _LLAMA, _NOT_GEMMA, heeds=("attention_bias", "mlp_bias")
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            _LLAMA,
            _NOT_GEMMA | {"query_key_value_bias": True},
            heeds=("layer_types", "use_sliding_window"),
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            _LLAMA | {"head_dim": 128},
            _NOT_GEMMA | {"query_key_norm": True},
            heeds=("attention_bias", "layer_types", "use_sliding_window"),
        ),
    )
}
_GELU = ("gemma", "gemma2", "gemma3_text")

_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # null = none

# Keys that change the function in ways that are not built, with the value that changes nothing.
_NOT_BUILT = {
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "num_experts": 0,
    "num_local_experts": 0,
    "pretraining_tp": 1,
}


def family_of(hf: Json, where: str) -> tuple[Family, Json]:
    """The family of a config.json, and the part of it that describes the text decoder.

    Args:
      hf: the config.json.
      where: its path, for the error.

    Raises:
      CalrecError: the family is not known.
    """
    model_type = hf.get("model_type")
    if model_type == "gemma3" and isinstance(hf.get("text_config"), Mapping):
        # A model that reads images too; its text decoder is the same as in the files without.
        return FAMILIES["gemma3_text"], hf["text_config"]
    if model_type not in FAMILIES:
        raise CalrecError(
            f"{where} has model_type {model_type!r}, which is none of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type], hf


def text_config(hf: Json, where: str) -> dict[str, Any]:
    """The config.json of the text decoder alone. Raises as `family_of`."""
    family, text = family_of(hf, where)
    return {**text, "model_type": family.model_type, "architectures": [family.architecture]}


def read_config(hf: Json, where: str = "config.json") -> tuple[Family, DecoderConfig]:
    """The family and the decoder that a config.json describes.

    Args:
      hf: the config.json.
      where: its path, for errors.

    Raises:
      CalrecError: the family is not known, a size is missing, or a key asks for what is not built.
    """
    family, hf = family_of(hf, where)
    ignored = {*_HEEDED_BY_SOME} - {*family.heeds}
    given = {k: v for k, v in hf.items() if v is not None or k in _SOFTCAPS}
    hf = {k: v for k, v in {**family.defaults, **given}.items() if k not in ignored}
    for name, harmless in _NOT_BUILT.items():
        if hf.get(name, harmless) != harmless:
            raise CalrecError(f"{where} has {name} = {hf[name]!r}, which is not built here")
    try:
        return family, _decoder_config(family, hf, where)
    except KeyError as error:
        raise CalrecError(f"{where} has no {error.args[0]}") from error


def _decoder_config(family: Family, hf: Json, where: str) -> DecoderConfig:
    heads = hf["num_attention_heads"]
    kinds = _layer_types(family, hf, where)
    sliding = _SLIDING in kinds
    theta, scaling, local_theta = hf_rope.read(hf, family.split_rope, where)
    bias = bool(hf.get("attention_bias", False))
    fields = {
        "vocab_size": hf["vocab_size"],
        "d_model": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": hf.get("num_key_value_heads", heads),
        "head_dim": hf.get("head_dim", hf["hidden_size"] // heads),
        "d_ff": hf["intermediate_size"],
        "activation": _activation(family, hf, where),
        "attention_pattern": _shortest([_KINDS[kind] for kind in kinds]),
        "sliding_window": hf["sliding_window"] if sliding else None,
        "rope_theta": theta,
        "local_rope_theta": local_theta if sliding else None,
        "rope_scaling": scaling,
        "query_scalar": _query_scalar(hf),
        "attention_softcap": hf.get("attn_logit_softcapping"),
        "logit_softcap": hf.get("final_logit_softcapping"),
        "query_key_value_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": bool(hf.get("mlp_bias", False)),
        "norm_eps": hf["rms_norm_eps"],
        "tie_embeddings": hf["tie_word_embeddings"],
    }
    return DecoderConfig(**fields | family.fixed)


def _query_scalar(hf: Json) -> float | None:
    scalar = hf.get("query_pre_attn_scalar")
    return None if scalar in (None, hf.get("head_dim")) else float(scalar)


def _activation(family: Family, hf: Json, where: str) -> str:
    default = "gelu_pytorch_tanh" if family.model_type in _GELU else "silu"
    name = hf.get(family.activation, default)
    if (family.model_type, name) == ("gemma", "gelu"):
        name = default  # the first files mean its approximation, and transformers reads them so
    if name not in _ACTIVATIONS:
        raise CalrecError(
            f"{where} has activation {name!r}, which is none of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _layer_types(family: Family, hf: Json, where: str) -> list[str]:
    """The kind of attention of each layer, by Hugging Face's names."""
    depth = hf["num_hidden_layers"]
    if "layer_types" in hf:
        return _checked_layer_types(hf["layer_types"], depth, where)
    if "use_sliding_window" in hf:  # Qwen's: the layers from `max_window_layers` on
        first = hf["max_window_layers"] if hf["use_sliding_window"] else depth
        return [_SLIDING if layer >= first else _GLOBAL for layer in range(depth)]
    pattern = family.pattern
    if "sliding_window_pattern" in hf:
        pattern = (*[_SLIDING] * (hf["sliding_window_pattern"] - 1), _GLOBAL)
    return [pattern[layer % len(pattern)] for layer in range(depth)]


def _checked_layer_types(kinds: list[str], depth: int, where: str) -> list[str]:
    if len(kinds) != depth:
        raise CalrecError(f"{where} has {len(kinds)} layer_types and {depth} layers")
    for kind in kinds:
        if kind not in _KINDS:
            raise CalrecError(f"{where} has layer_types {kind!r}, which is none of {[*_KINDS]}")
    return list(kinds)


def _shortest(kinds: list[str]) -> tuple[str, ...]:
    """The shortest pattern that, repeated, gives `kinds`."""
    for n in range(1, len(kinds) + 1):
        if all(kind == kinds[i % n] for i, kind in enumerate(kinds)):
            return tuple(kinds[:n])
    return tuple(kinds)


def write_config(
    config: DecoderConfig, model_type: str | None, dtype: str, length: int
) -> dict[str, Any]:
    """A config.json that describes `config`, for a model that came with none.

    Args:
      model_type: the family; None = the first that can express the decoder.
      dtype: of the weights that are written.
      length: the longest sequence it was trained on, in tokens.

    Raises:
      CalrecError: no family, or not that one, can express it; the line names the fields.
    """
    problems = []
    for name in FAMILIES if model_type is None else [model_type]:
        if name not in FAMILIES:
            raise CalrecError(f"no family {name!r}; known: {', '.join(FAMILIES)}")
        hf = _as_family(FAMILIES[name], config, dtype, length)
        _, read = read_config(hf)
        field = _first_difference(_canonical(config).meaning(), _canonical(read).meaning())
        if field is None:
            return hf
        problems.append(f"{name} has another {field}")
    raise CalrecError(f"no family can express this decoder: {'; '.join(problems)}")


def _canonical(c: DecoderConfig) -> DecoderConfig:
    """The config of the same function whose fields that have no effect are at their defaults."""
    changes: dict[str, Any] = {"attention_pattern": _shortest([*c.layer_kinds])}
    if c.query_scalar == c.head_dim:
        changes["query_scalar"] = None
    if "sliding" not in c.layer_kinds:
        changes |= {"sliding_window": None, "local_rope_theta": None}
    elif c.local_rope_theta == c.rope_theta and c.rope_scaling is None:
        changes["local_rope_theta"] = None
    return dataclasses.replace(c, **changes)


def _first_difference(here: Json, there: Json) -> str | None:
    return next((name for name in here if here[name] != there[name]), None)


def _as_family(family: Family, c: DecoderConfig, dtype: str, length: int) -> dict[str, Any]:
    """The config.json that comes closest to `c` in a family."""
    hf_kinds = {kind: hf_kind for hf_kind, kind in _KINDS.items()}
    hf = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        family.activation: "gelu_pytorch_tanh" if c.activation == "gelu" else c.activation,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": length,
        "dtype": dtype,
        "rope_parameters": hf_rope.write(c, family.split_rope),
        "attention_bias": c.query_key_value_bias,
        "mlp_bias": c.mlp_bias,
        "query_pre_attn_scalar": int(c.query_scalar or c.head_dim),
        "attn_logit_softcapping": c.attention_softcap,
        "final_logit_softcapping": c.logit_softcap,
        "layer_types": [hf_kinds[kind] for kind in c.layer_kinds],
        "use_sliding_window": c.sliding_window is not None,
    }
    ignored = {*_HEEDED_BY_SOME} - {*family.heeds}
    hf = {k: v for k, v in hf.items() if k not in ignored}
    if c.sliding_window is not None and "layer_types" in hf:
        hf["sliding_window"] = c.sliding_window
    return hf
