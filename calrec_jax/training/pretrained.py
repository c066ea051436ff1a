"""Weights that `calrec convert` brought from elsewhere, as what a run starts from.

FOLDER/manifest.json                      as a MODEL_DIR's: versions, model, vocabulary
FOLDER/pretrained/checkpoints/            the weights, checkpoint 0
FOLDER/hf/                                config.json, the tokenizer, as they came
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
    """The decoder that the weights in `path` are of; what they do not say is said here.

    Args:
      path: FOLDER of `calrec convert`.
      dtype, param_dtype, remat, scan_layers: see `DecoderConfig`.

    Raises:
      CalrecError: it is none, or of a version that knew other models.
    """
    there = manifest.read(path)
    if there is None or STAGE not in there:
        raise CalrecError(f"{path} holds no weights of `calrec convert`: it has no manifest.json")
    config = decoder_of(there["model"], str(path))
    return dataclasses.replace(
        config, dtype=dtype, param_dtype=param_dtype, remat=remat, scan_layers=scan_layers
    )


def decoder_of(model: Mapping[str, Any], where: str) -> DecoderConfig:
    """The DecoderConfig that a manifest describes.

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
    """What INITIAL_CHECKPOINT_PATH is to be, to start from the weights in `path`."""
    return f"{pathlib.Path(path)}/{STAGE}:latest"


def origin(model_dir: pathlib.Path) -> pathlib.Path | None:
    """The folder with config.json and tokenizer from which a MODEL_DIR's weights once came.

    None where they came from fresh weights.

    Raises:
      CalrecError: what they came from is not there.
    """
    there = manifest.read(model_dir)
    if there is None:
        raise CalrecError(
            f"the weights came from {model_dir}, where no {manifest.NAME} is: paths are from the "
            f"working directory; run this where the training was run"
        )
    if STAGE in there:
        return model_dir / CARRIED
    for stage in there["stages"].values():
        # "DIR/stage1:best", or "DIR/checkpoint_300" of T5X.
        path = (stage["init_from"] or "").split(":")[0]
        if "/" in path and (found := origin(pathlib.Path(path).parent)) is not None:
            return found
    return None
