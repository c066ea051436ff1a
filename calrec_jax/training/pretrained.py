"""Weights that `calrec convert` brought from elsewhere, from which a run starts.

FOLDER/manifest.json                      as a MODEL_DIR's: versions, model, vocabulary
FOLDER/pretrained/checkpoints/            the weights, checkpoint 0
FOLDER/hf/                                config.json and the tokenizer, unchanged
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.rotary import RopeScaling
from calrec_jax.training import manifest

STAGE = "pretrained"
CARRIED = "hf"


def decoder(
    path: str | os.PathLike,
    dtype: str = "bfloat16",
    param_dtype: str = "float32",
    remat: str = "full",
    scan_layers: bool = True,
) -> DecoderConfig:
    """The decoder of the weights in `path`; how it is computed with is given here.

    Args:
      path: FOLDER of `calrec convert`.
      dtype, param_dtype, remat, scan_layers: see `DecoderConfig`.

    Raises:
      CalrecError: `path` holds no such weights, or those of a version that knew other models.
    """
    described = manifest.read(path)
    if described is None or STAGE not in described:
        raise CalrecError(f"{path} holds no weights of `calrec convert`: it has no manifest.json")
    config = decoder_of(described["model"], str(path))
    return dataclasses.replace(
        config, dtype=dtype, param_dtype=param_dtype, remat=remat, scan_layers=scan_layers
    )


def decoder_of(model: Mapping[str, Any], where: str) -> DecoderConfig:
    """The DecoderConfig that a manifest describes.

    Args:
      model: the entry of the manifest.
      where: the manifest's folder, for the error.

    Raises:
      CalrecError: it has other fields than those of today.
    """
    fields = dict(model)
    try:
        if fields.get("rope_scaling"):
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        return DecoderConfig(**fields)
    except TypeError as error:
        raise CalrecError(f"{where} is of another version of calrec_jax: {error}") from error


def checkpoint(path: str | os.PathLike) -> str:
    """The INITIAL_CHECKPOINT_PATH of a run that starts from the weights in `path`."""
    return f"{pathlib.Path(path)}/{STAGE}:latest"


def origin(model_dir: str | os.PathLike) -> pathlib.Path | None:
    """The folder with the config.json and the tokenizer that a MODEL_DIR's weights came with.

    None where the chain of its stages began with fresh weights.

    Raises:
      CalrecError: a MODEL_DIR in the chain is not there.
    """
    described = manifest.read(model_dir)
    if described is None:
        raise CalrecError(
            f"the weights came from {model_dir}, where no manifest.json is: paths are from the "
            f"working directory; run this where the training was run"
        )
    if STAGE in described:
        return pathlib.Path(model_dir) / CARRIED
    for stage in described["stages"].values():
        # "DIR/stage1:best", or "DIR/checkpoint_300" of T5X.
        path = (stage["init_from"] or "").split(":")[0]
        if "/" in path and (folder := origin(pathlib.Path(path).parent)) is not None:
            return folder
    return None
