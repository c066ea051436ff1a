"""Weights from checkpoints of transformers, and back: what `calrec convert` writes.

Checkpoints that T5X wrote become stages by `t5x_io.to_stage`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from calrec_jax import files
from calrec_jax.checkpoints import hf_families, hf_io, peft, streamed
from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import ModelDir, StageDir
from calrec_jax.training import manifest, merged, pretrained, weights
from calrec_jax.training.identity import Identity


def write_pretrained(
    source: pathlib.Path, read: hf_io.Weights, vocabulary: str, folder: pathlib.Path
) -> str:
    """Writes weights of transformers as a run starts from them, see `pretrained`.

    Args:
      source: the folder that they were read from; its tokenizer is copied.
      read: the weights.
      vocabulary: the fingerprint of the tokenizer.
      folder: an empty folder.

    Returns:
      What was written, in words.
    """
    hf_io.carry(source, folder / pretrained.CARRIED)
    hf_io.import_weights(read, ModelDir(folder).stage(pretrained.STAGE).checkpoints)
    dtypes = sorted({str(read.dtype_of(entry)) for entry in read.table})
    described = {
        "versions": manifest.versions(),
        **Identity(vocabulary, read.config).described(),
        "stages": {},
        pretrained.STAGE: {
            "family": read.model_type,
            "dtypes": dtypes,
            "source": str(source.absolute()),
        },
    }
    files.write_json(ModelDir(folder).manifest, described)
    count = hf_io.num_parameters(hf_io.parameter_shapes(read.config))
    return f"{read.model_type}, {count:,} parameters in {', '.join(dtypes)}"


def write_transformers(
    source: str,
    folder: pathlib.Path,
    *,
    dtype: str | None,
    family: str | None,
    max_shard_gb: float,
    warn: Callable[[str], None],
) -> str:
    """Writes the weights of a checkpoint as transformers loads them, adapters merged.

    Args:
      source: the checkpoint, "MODEL_DIR/stage2:best".
      folder: an empty folder.
      dtype: the type of the weights that are written; None = as they are saved.
      family: the model_type of weights that came from no checkpoint of transformers; None = the
        first that can express them.
      max_shard_gb: the size of a file, which one larger tensor may exceed.
      warn: called with a line where there is no tokenizer to copy.

    Returns:
      What was written, in words.

    Raises:
      CalrecError: there is no such checkpoint, it is damaged, or no family can express it.
    """
    stage, step, saved = _find(source)
    origin = pretrained.origin(stage.model_dir)
    parts = merged.open_weights(stage, step)
    shapes = {name: part.shape for name, part in parts.items()}
    dtypes = {name: jnp.dtype(dtype or part.dtype) for name, part in parts.items()}
    # transformers loads all weights in one type: that of the embedding.
    main_dtype = str(dtypes["embedding"])
    described = _config(source, saved, origin, family, main_dtype)

    if origin is None:
        warn(
            f"{source} came from no checkpoint of transformers: config.json is made for it, and "
            f"there is no tokenizer; put the one that it was trained with beside it"
        )
    else:
        hf_io.carry(origin, folder)
    hf_io.export_weights(
        folder,
        shapes,
        dtypes,
        lambda name, where: parts[name].read(where),
        int(max_shard_gb * 10**9),
    )
    # Not as `write_json`: what came with weights from elsewhere may hold infinities.
    files.write_text(folder / hf_io.CONFIG, json.dumps(described, indent=2) + "\n")
    count = hf_io.num_parameters(shapes)
    return f"{described['model_type']}, {count:,} parameters in {main_dtype}"


def write_peft(source: str, folder: pathlib.Path) -> str:
    """Writes the adapters of a checkpoint as PEFT loads them.

    Args:
      source: the checkpoint, "MODEL_DIR/stage2:best".
      folder: an empty folder.

    Returns:
      What was written, in words.

    Raises:
      CalrecError: there is no such checkpoint, it is damaged, or it has no adapters.
    """
    stage, step, saved = _find(source)
    config = pretrained.decoder_of(saved["model"], source)
    config = dataclasses.replace(config, lora=weights.lora_of(stage))
    if config.lora is None:
        raise CalrecError(f"{source!r} holds whole weights and no adapters: give --to_hf")
    stores = streamed.open_params(stage.checkpoints, step)
    adapters = {tuple(name.split("/")): store.read() for name, store in stores.items()}
    base = _base(stage)
    peft.write_adapters(folder, unflatten_dict(adapters), config, base)
    return f"adapters of rank {config.lora.rank}, of {base}"


def _find(source: str) -> tuple[StageDir, int, dict[str, Any]]:
    """The stage, the step and the manifest of the checkpoint `source`."""
    stage, step = weights.find_checkpoint(".", source)
    saved = manifest.read(stage.model_dir)
    if saved is None:
        raise CalrecError(f"{source!r}: {stage.model_dir} has no manifest.json")
    return stage, step, saved


def _base(stage: StageDir) -> str:
    """The name of the model that a stage's adapters belong to: a folder of transformers, or ours.

    Raises:
      CalrecError: they were trained on fresh weights.
    """
    checkpoint = weights.base_checkpoint(stage)
    if checkpoint is None:
        raise CalrecError(f"the adapters in {stage} were trained on fresh weights of no name")
    base_stage, step = checkpoint
    if base_stage.name != pretrained.STAGE:
        return f"{base_stage}:{step}"  # `write_transformers` makes a folder of it
    return manifest.read(base_stage.model_dir)[pretrained.STAGE]["source"]


def _config(
    source: str,
    saved: Mapping[str, Any],
    origin: pathlib.Path | None,
    family: str | None,
    dtype: str,
) -> dict[str, Any]:
    """The config.json that the weights came with, or one that is made for them."""
    if origin is not None and family is None:
        path = origin / hf_io.CONFIG
        described = hf_families.text_config(hf_io.read_json(path), str(path))
        described.pop("torch_dtype", None)  # an older name of "dtype"
        return described | {"dtype": dtype}
    config = pretrained.decoder_of(saved["model"], source)
    lengths = [sum(stage["task_feature_lengths"].values()) for stage in saved["stages"].values()]
    return hf_families.write_config(config, family, dtype, max(lengths, default=1024))
