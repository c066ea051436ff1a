"""Where parameters come from: checkpoints by name, and the base weights under adapters.

`find_checkpoint` says which checkpoint a name such as "stage1:best" means, `load_params` reads it.
`begin_adapters` gives the first parameters of a stage with LoRA; without LoRA they are those of
`load_params`, or fresh ones (`stages.Trainer`).

A checkpoint of a stage with LoRA holds adapters alone. What they were trained on stands in the
manifest, as "base" of the stage:

    {"checkpoint": "stage1:300", "fingerprint": "1f..."}   the weights of a checkpoint; where it has
                                                           adapters itself, merged with them
    {"seed": 0, "sample": [0.1, ...]}                      fresh weights

A name without a folder is that of a stage in the same MODEL_DIR, so that a MODEL_DIR can be moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.model_dir import ModelDir, StageDir
from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.models.params import Params
from calrec_jax.training import manifest, pretrained
from calrec_jax.training import state as train_state


def find_checkpoint(model_dir: str | os.PathLike, source: str) -> tuple[StageDir, int]:
    """The stage and the step that `source` names now, see `load_params`.

    Raises:
      CalrecError: there is no such stage or checkpoint.
    """
    path, colon, which = source.rpartition(":")
    if not colon or not path:
        raise CalrecError(f"{source!r} names no checkpoint: write 'stage1:best', 'DIR/stage1:best'")
    named = StageDir(local_path(path, source)) if "/" in path else ModelDir(model_dir).stage(path)
    stage = StageDir(named.path.absolute())
    if not stage.checkpoints.is_dir():
        there = [other.name for other in stage.model_dir.stages()]
        raise CalrecError(f"{source!r}: no checkpoints in {stage}; stages there: {there}")
    with _opened(stage) as checkpoints:
        return stage, checkpoints.resolve(which)


def require_whole(stage: StageDir, step: int) -> None:
    """Raises CalrecError where a checkpoint is incomplete: it does not say what it holds."""
    with _opened(stage) as checkpoints:
        checkpoints.param_shapes(step)


def lora_of(stage: StageDir) -> LoraConfig | None:
    """The adapters in a stage's checkpoints, or None where they hold whole weights."""
    described = manifest.read(stage.model_dir) or {"stages": {}}
    adapters = described["stages"].get(stage.name, {}).get("lora")
    return None if adapters is None else LoraConfig(**adapters)


def load_params(
    model_dir: str | os.PathLike, source: str, shapes: Params, required: Mapping[str, Any]
) -> Params:
    """The parameters that `source` names, in the shardings of `shapes`.

    Args:
      model_dir: where a bare stage name is looked up.
      source: "stage1:best", "stage1:latest" or "stage1:300" of `model_dir`, or with a MODEL_DIR
        before it, "DIR/stage1:best": a path as any other, from the working directory.
      shapes: see `state.param_shapes`. With the shapes of a decoder that has the stage's adapters
        (`lora_of`), they are returned beside their base; with those of a decoder without adapters,
        merged into it.
      required: what the source's manifest must hold, see `manifest.require`.

    Raises:
      CalrecError: there is no such stage or checkpoint, its tree or manifest differs from what is
        required, or what its adapters were trained on is gone or was changed.
    """
    stage, step = find_checkpoint(model_dir, source)
    manifest.require(stage.model_dir, required, source)
    config = lora_of(stage)
    if config is None:
        return _restore(stage, step, shapes)
    adapters, base = lora.split(shapes)
    if base:
        return lora.join(_restore(stage, step, adapters), load_base(stage, base))

    adapters = _restore(stage, step, lora.adapter_shapes(shapes, config))
    merge = jax.jit(
        lambda base, adapters: lora.merge(lora.join(adapters, base), config),
        donate_argnums=0,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return merge(load_base(stage, shapes), adapters)


def _restore(stage: StageDir, step: int, shapes: Params) -> Params:
    with _opened(stage) as checkpoints:
        return checkpoints.restore_params(step, shapes)


def _opened(stage: StageDir) -> contextlib.AbstractContextManager[Checkpoints]:
    """The checkpoints of a stage, to be read; closed at the end."""
    return contextlib.closing(Checkpoints(stage.checkpoints, read_only=True))


def load_base(stage: StageDir, shapes: Params) -> Params:
    """What a stage's adapters were trained on, in the shardings of `shapes`.

    Raises:
      CalrecError: it is gone, or is no longer what it was.
    """
    found = base_checkpoint(stage)
    if found is None:
        return _fresh_again(stage, _described_base(stage), shapes)
    base_stage, step = found
    return load_params(stage.model_dir, f"{base_stage}:{step}", shapes, {})


def base_checkpoint(stage: StageDir) -> tuple[StageDir, int] | None:
    """The stage and step that a stage's adapters were trained on; None = fresh weights.

    Raises:
      CalrecError: it is gone, or is no longer what it was.
    """
    base = _described_base(stage)
    if "seed" in base:
        return None
    try:
        base_stage, step = find_checkpoint(stage.model_dir, base["checkpoint"])
    except CalrecError as error:
        raise CalrecError(
            f"what the adapters in {stage} were trained on is gone: {error}; put it back, or "
            f"write where it is now into manifest.json"
        ) from error
    if _fingerprint(base_stage, step) != base["fingerprint"]:
        raise CalrecError(
            f"the adapters in {stage} were trained on another {base['checkpoint']} than is "
            f"there now: bring that one back, or train them anew in a MODEL_DIR of their own"
        )
    return base_stage, step


def begin_adapters(
    model_dir: str | os.PathLike,
    init_from: str | None,
    decoder: Decoder,
    seed: int,
    shapes: Params,
    required: Mapping[str, Any],
) -> tuple[Params, dict[str, Any]]:
    """(parameters, their base's entry in the manifest) of a stage with LoRA at its step 0.

    1. No `init_from`: fresh adapters, over fresh weights.
    2. `init_from` has the same adapters (rank, alpha and pattern): they go on, over their base.
    3. `init_from` has others, or none: fresh ones, over its weights, merged with its adapters.

    Args:
      decoder: with the stage's adapters.
      seed: of fresh parameters.
      shapes: those of its parameters, see `state.param_shapes`.
      required: see `load_params`.

    Raises:
      CalrecError: as `load_params`.
    """
    adapters, under = lora.split(shapes)
    if init_from is None:
        # By a decoder without adapters: the weights that a run without LoRA draws from this seed.
        plain = Decoder(dataclasses.replace(decoder.config, lora=None))
        weights = train_state.init_params(plain, seed, under)
        params = lora.join(train_state.init_params(decoder, seed, adapters), weights)
        return params, {"seed": seed, "sample": _sample(weights)}

    stage, step = find_checkpoint(model_dir, init_from)
    source = f"{stage}:{step}"  # "best" may come to mean another
    if lora_of(stage) == decoder.config.lora:
        params = load_params(model_dir, source, shapes, required)
        base, checkpoint = _described_base(stage), base_checkpoint(stage)
        if checkpoint is not None:
            base |= {"checkpoint": _name(model_dir, *checkpoint)}
        return params, base

    weights = load_params(model_dir, source, under, required)
    params = lora.join(train_state.init_params(decoder, seed, adapters), weights)
    base = {"checkpoint": _name(model_dir, stage, step), "fingerprint": _fingerprint(stage, step)}
    return params, base


def _described_base(stage: StageDir) -> dict[str, Any]:
    """The manifest's entry of what a stage's adapters were trained on."""
    base = manifest.read(stage.model_dir)["stages"][stage.name].get("base")
    if base is None:
        raise CalrecError(
            f"{stage.model_dir.manifest} does not say what the adapters of {stage.name} were "
            f"trained on: it is damaged"
        )
    return base


def _name(model_dir: str | os.PathLike, stage: StageDir, step: int) -> str:
    """The name of a checkpoint, as seen from `model_dir`."""
    inside = stage.path.parent == ModelDir(model_dir).path.absolute()
    return f"{stage.name if inside else stage}:{step}"


def _fingerprint(stage: StageDir, step: int) -> str:
    with _opened(stage) as checkpoints:
        return checkpoints.fingerprint(step)


def _fresh_again(stage: StageDir, base: Mapping[str, Any], shapes: Params) -> Params:
    """The fresh weights that a stage's adapters were trained on, drawn anew."""
    model = manifest.read(stage.model_dir)["model"]
    decoder = Decoder(pretrained.decoder_of(model, str(stage.model_dir)))
    params = train_state.init_params(decoder, base["seed"], shapes)
    # Another machine may round otherwise; another version of JAX may draw others altogether.
    if not np.allclose(_sample(params), base["sample"], rtol=1e-3, atol=1e-6):
        raise CalrecError(
            f"the adapters in {stage} were trained on fresh weights of seed {base['seed']}, "
            f"and this JAX draws others: use the version that manifest.json names"
        )
    return params


def _sample(params: Params) -> list[float]:
    """The first number of each array of `params`."""
    leaves = jax.tree.leaves(params)
    whole = NamedSharding(leaves[0].sharding.mesh, P())
    firsts = jax.jit(
        lambda leaves: jnp.stack([leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in leaves]),
        out_shardings=whole,
    )
    return np.asarray(firsts(leaves)).tolist()
