"""Sizes of open models as data: their decoders without their weights.

`calrec convert` imports weights, together with the sizes in their own config.json. A preset gives
fresh weights of the same size, and shows what a size costs before anything is downloaded. Sizes are
those in the base models' config.json (for Gemma 3 from 4B on, those of its text decoder).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.rotary import RopeScaling

_GEMMA = {"vocab_size": 256_000}
_GEMMA2 = _GEMMA | {
    "post_norms": True,
    "attention_pattern": ("sliding", "global"),
    "sliding_window": 4096,
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
}
_GEMMA3 = {
    "vocab_size": 262_144,
    "post_norms": True,
    "query_key_norm": True,
    "attention_pattern": (*["sliding"] * 5, "global"),
    "sliding_window": 512,
    "rope_theta": 1_000_000.0,
    "local_rope_theta": 10_000.0,
}
_GEMMA3_IMAGES = _GEMMA3 | {  # the sizes that also read images, with 64 more tokens to mark them
    "vocab_size": 262_208,
    "sliding_window": 1024,
    "rope_scaling": RopeScaling("linear", 8.0),
}
_LLAMA = {
    "activation": "silu",
    "norm_plus_one": False,
    "scale_embedding": False,
    "tie_embeddings": False,
}
_LLAMA2 = _LLAMA | {"vocab_size": 32_000, "norm_eps": 1e-5}
_LLAMA3 = _LLAMA2 | {"vocab_size": 128_256, "rope_theta": 500_000.0}
_LLAMA31 = _LLAMA3 | {"rope_scaling": RopeScaling("llama3", 8.0, 8192)}
_LLAMA32 = _LLAMA3 | {"rope_scaling": RopeScaling("llama3", 32.0, 8192), "tie_embeddings": True}
_QWEN = _LLAMA | {"rope_theta": 1_000_000.0}
_QWEN25 = _QWEN | {"vocab_size": 152_064, "query_key_value_bias": True}
_QWEN25_SMALL = _QWEN25 | {"vocab_size": 151_936, "tie_embeddings": True}
_QWEN3 = _QWEN | {"vocab_size": 151_936, "query_key_norm": True}
_QWEN3_SMALL = _QWEN3 | {"tie_embeddings": True}


def _decoder(
    family: Mapping[str, Any],
    d_model: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    d_ff: int,
    **differs: Any,
) -> DecoderConfig:
    sizes = (d_model, num_layers, num_heads, num_kv_heads, head_dim, d_ff)
    return DecoderConfig(*sizes, **{**family, **differs})


# d_model, num_layers, num_heads, num_kv_heads, head_dim, d_ff.
PRESETS: Mapping[str, DecoderConfig] = {
    "gemma_2b": _decoder(_GEMMA, 2048, 18, 8, 1, 256, 16_384),
    "gemma_7b": _decoder(_GEMMA, 3072, 28, 16, 16, 256, 24_576),
    "gemma2_2b": _decoder(_GEMMA2, 2304, 26, 8, 4, 256, 9216),
    "gemma2_9b": _decoder(_GEMMA2, 3584, 42, 16, 8, 256, 14_336),
    "gemma2_27b": _decoder(_GEMMA2, 4608, 46, 32, 16, 128, 36_864, query_scalar=144.0),
    "gemma3_270m": _decoder(_GEMMA3, 640, 18, 4, 1, 256, 2048),
    "gemma3_1b": _decoder(_GEMMA3, 1152, 26, 4, 1, 256, 6912),
    "gemma3_4b": _decoder(_GEMMA3_IMAGES, 2560, 34, 8, 4, 256, 10_240),
    "gemma3_12b": _decoder(_GEMMA3_IMAGES, 3840, 48, 16, 8, 256, 15_360),
    "gemma3_27b": _decoder(_GEMMA3_IMAGES, 5376, 62, 32, 16, 128, 21_504, query_scalar=168.0),
    "llama2_7b": _decoder(_LLAMA2, 4096, 32, 32, 32, 128, 11_008),
    "llama2_13b": _decoder(_LLAMA2, 5120, 40, 40, 40, 128, 13_824),
    "llama3_8b": _decoder(_LLAMA3, 4096, 32, 32, 8, 128, 14_336),
    "llama31_8b": _decoder(_LLAMA31, 4096, 32, 32, 8, 128, 14_336),
    "llama31_70b": _decoder(_LLAMA31, 8192, 80, 64, 8, 128, 28_672),
    "llama32_1b": _decoder(_LLAMA32, 2048, 16, 32, 8, 64, 8192),
    "llama32_3b": _decoder(_LLAMA32, 3072, 28, 24, 8, 128, 8192),
    "qwen25_0_5b": _decoder(_QWEN25_SMALL, 896, 24, 14, 2, 64, 4864),
    "qwen25_1_5b": _decoder(_QWEN25_SMALL, 1536, 28, 12, 2, 128, 8960),
    "qwen25_3b": _decoder(_QWEN25_SMALL, 2048, 36, 16, 2, 128, 11_008),
    "qwen25_7b": _decoder(_QWEN25, 3584, 28, 28, 4, 128, 18_944),
    "qwen25_14b": _decoder(_QWEN25, 5120, 48, 40, 8, 128, 13_824, norm_eps=1e-5),
    "qwen25_32b": _decoder(_QWEN25, 5120, 64, 40, 8, 128, 27_648, norm_eps=1e-5),
    "qwen3_0_6b": _decoder(_QWEN3_SMALL, 1024, 28, 16, 8, 128, 3072),
    "qwen3_1_7b": _decoder(_QWEN3_SMALL, 2048, 28, 16, 8, 128, 6144),
    "qwen3_4b": _decoder(_QWEN3_SMALL, 2560, 36, 32, 8, 128, 9728),
    "qwen3_8b": _decoder(_QWEN3, 4096, 36, 32, 8, 128, 12_288),
    "qwen3_14b": _decoder(_QWEN3, 5120, 40, 40, 8, 128, 17_408),
    "qwen3_32b": _decoder(_QWEN3, 5120, 64, 64, 8, 128, 25_600),
}


def preset(
    name: str,
    dtype: str = "bfloat16",
    param_dtype: str = "float32",
    remat: str = "full",
    scan_layers: bool = True,
    vocab_size: int | None = None,
) -> DecoderConfig:
    """The decoder of one of `PRESETS`.

    Args:
      name: the size's, for example "gemma2_2b".
      dtype, param_dtype, remat, scan_layers: see `DecoderConfig`.
      vocab_size: that of another vocabulary than the family's own; None = the published one.

    Raises:
      CalrecError: no size has that name. The message lists the most similar names first.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=5, cutoff=0.5)
        names = [*near, *(known for known in PRESETS if known not in near)]
        raise CalrecError(f"no preset {name!r}; known: {', '.join(names)}")
    config = PRESETS[name]
    return dataclasses.replace(
        config,
        vocab_size=config.vocab_size if vocab_size is None else vocab_size,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        scan_layers=scan_layers,
    )
