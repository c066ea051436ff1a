"""Tiny random models of Hugging Face's families, made and saved by transformers itself."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

WINDOW = 5
VOCAB = 96

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # and not 24 / 4
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NO_HEAD_DIM = {name: size for name, size in _SIZES.items() if name != "head_dim"}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_IN_FULL = YARN | {
    "beta_fast": 8.0,
    "beta_slow": 0.5,
    "attention_factor": 1.3,
    "truncate": False,
}
_SLIDING = {"sliding_window": WINDOW, "query_pre_attn_scalar": 12}
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_GEMMA3 = _SIZES | _SLIDING | {"num_hidden_layers": 7}  # no multiple of its pattern of 6
_TWO_ROPES = {
    "full_attention": LINEAR | {"factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
      family: as in "LlamaConfig", "LlamaForCausalLM".
      fields: of its config.
      old: config.json is written as transformers 4 did.
    """

    family: str
    fields: Mapping[str, Any]
    old: bool = False


CASES = {
    "gemma": Case("Gemma", _SIZES),
    "gemma, one key for all heads": Case("Gemma", _SIZES | {"num_key_value_heads": 1}),
    "gemma, biases, linear, untied": Case(
        "Gemma",
        _SIZES | {"attention_bias": True, "rope_parameters": LINEAR, "tie_word_embeddings": False},
    ),
    "gemma, old": Case("Gemma", _SIZES, old=True),
    "gemma 2": Case("Gemma2", _SIZES | _SLIDING | _CAPS),
    "gemma 2, no caps, biases": Case(
        "Gemma2",
        _SIZES | _SLIDING | {"attention_bias": True} | dict.fromkeys(_CAPS),
    ),
    "gemma 2, old": Case("Gemma2", _SIZES | _SLIDING | _CAPS, old=True),
    "gemma 3": Case("Gemma3", _GEMMA3 | {"rope_parameters": _TWO_ROPES}),
    "gemma 3, yarn, a final cap": Case(
        "Gemma3",
        _GEMMA3 | _CAPS | {"rope_parameters": _TWO_ROPES | {"full_attention": YARN}},
    ),
    "gemma 3, old": Case("Gemma3", _GEMMA3 | {"rope_parameters": _TWO_ROPES}, old=True),
    "llama": Case("Llama", _SIZES | {"tie_word_embeddings": False}),
    "llama, heads of d_model / heads": Case("Llama", _NO_HEAD_DIM | {"tie_word_embeddings": True}),
    "llama 3, biases, tied": Case(
        "Llama",
        _SIZES
        | {
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama 3, old": Case("Llama", _SIZES | {"rope_parameters": LLAMA3}, old=True),
    "llama, linear": Case("Llama", _SIZES | {"rope_parameters": LINEAR}),
    "llama, yarn": Case("Llama", _SIZES | {"rope_parameters": YARN_IN_FULL}),
    "qwen 2": Case("Qwen2", _NO_HEAD_DIM),
    "qwen 2, yarn, slides from layer 1": Case(
        "Qwen2",
        _NO_HEAD_DIM
        | {
            "rope_parameters": YARN,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen 2, old": Case(
        "Qwen2", _NO_HEAD_DIM | {"rope_parameters": YARN, "tie_word_embeddings": True}, old=True
    ),
    "qwen 3": Case("Qwen3", _SIZES),
    "qwen 3, biases, yarn, tied": Case(
        "Qwen3",
        _SIZES | {"rope_parameters": YARN, "attention_bias": True, "tie_word_embeddings": True},
    ),
}
FAMILIES = ("gemma", "gemma 2", "gemma 3", "llama 3, biases, tied", "qwen 2", "qwen 3")
"""One case of each family."""


def make(case: str, dtype: str = "float32", **fields):
    """A model of random weights, norms' and biases' too: at their start those hide mistakes."""
    import torch
    import transformers

    made = CASES[case]
    name = "Gemma3TextConfig" if made.family == "Gemma3" else f"{made.family}Config"
    # The default configurations of transformers are of billions of parameters.
    config = getattr(transformers, name)(**made.fields | fields, dtype=dtype)
    config._attn_implementation = "eager"
    torch.manual_seed(len(case))
    with torch.no_grad():
        model = getattr(transformers, f"{made.family}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        return model.to(getattr(torch, dtype))


def save(case: str, folder: pathlib.Path, dtype: str = "float32", **fields) -> pathlib.Path:
    """Writes `make(...)` as `folder`."""
    model = make(case, dtype, **fields)
    model.save_pretrained(folder)
    if CASES[case].old:
        path = folder / "config.json"
        path.write_text(json.dumps(as_transformers_4(json.loads(path.read_text()))))
    return folder


def load(folder: pathlib.Path):
    """What transformers makes of a folder, in float32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def as_transformers_4(described: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the words of transformers 4."""
    old = dict(described)
    old["torch_dtype"] = old.pop("dtype")
    old.pop("layer_types", None)
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:  # Gemma 3
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern", 6)
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    return old


def tensors(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """{name: (dtype, shape, bytes)} of all safetensors files, as the library safetensors reads."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                assert name not in found
                found[name] = _plain(tensor)
    return found


def _plain(tensor) -> tuple[str, tuple[int, ...], bytes]:
    import torch

    content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content
