"""Adapters in PEFT's format, which puts them on a model of transformers.

`peft.PeftModel.from_pretrained(model, folder)` loads them, and so do servers such as vLLM.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from calrec_jax import files
from calrec_jax.checkpoints.hf_maps import MODULES
from calrec_jax.errors import CalrecError, full_disk_named
from calrec_jax.models import lora
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.params import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.model.layers"


def write_adapters(
    folder: str | os.PathLike, adapters: Params, config: DecoderConfig, base_name: str
) -> None:
    """Writes `adapters` into `folder`, which is made where it is missing.

    Args:
      adapters: the subtree of parameters that `lora.split` gives, layers stacked or not. Written in
        float32, which holds them exactly.
      config: their decoder, with `lora`.
      base_name: the model that they belong to, by a name that transformers can load; loaders may
        ignore it.

    Raises:
      CalrecError: there are none, or the disk is full.
    """
    if config.lora is None:
        raise CalrecError("no adapters to write: the stage was trained without LoRA, all of it")
    import safetensors.numpy

    folder = pathlib.Path(folder)
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(_tensors(adapters), folder / WEIGHTS, {"format": "pt"})
        files.write_json(folder / CONFIG, _described(config, base_name))


def _tensors(adapters: Params) -> dict[str, np.ndarray]:
    """{PEFT's name: float32 A [R, inputs] or B [outputs, R]} of every layer."""
    tensors = {}
    for (top, *at, name), leaf in flatten_dict(jax.device_get(adapters)).items():
        projection = "/".join(at)
        stacked = top == "layers"
        layers = enumerate(leaf) if stacked else [(int(top.removeprefix("layers_")), leaf)]
        for layer, weights in layers:
            path = f"{_PREFIX}.{layer}.{MODULES[projection]}"
            weights = np.asarray(weights, np.float32)
            if name == lora.A:
                tensors[f"{path}.lora_A.weight"] = weights.reshape(-1, weights.shape[-1]).T.copy()
            else:
                tensors[f"{path}.lora_B.weight"] = weights.reshape(weights.shape[0], -1).T.copy()
    return tensors


def _described(config: DecoderConfig, base_name: str) -> dict[str, Any]:
    """What adapter_config.json holds."""
    adapted = (module for name, module in MODULES.items() if config.lora.adapts(name))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(module.rpartition(".")[2] for module in adapted),
    }
