"""Where a stage's parameters come from: checkpoints by their names, and the base under adapters.

A checkpoint of a stage with LoRA holds adapters alone. What they were trained on stands in the
manifest, as "base" of the stage:

    {"checkpoint": "stage1:300", "fingerprint": "1f..."}   the weights of a checkpoint; where it has
                                                           adapters itself, merged with them
    {"seed": 0, "sample": [0.1, ...]}                      fresh weights

A name without a folder is of the same MODEL_DIR, so that the whole can be moved.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.training import manifest, pretrained
from calrec_jax.training import state as train_state

ModelDir = str | os.PathLike


def find_checkpoint(model_dir: ModelDir, source: str) -> tuple[pathlib.Path, int]:
    """The folder of the stage and the step that `source` names now, see `load_params`.

    Raises:
      CalrecError: there is no such stage or checkpoint.
    """
    path, colon, which = source.rpartition(":")
    if not colon or not path:
        raise CalrecError(f"{source!r} names no checkpoint: write 'stage1:best', 'DIR/stage1:best'")
    stage_dir = local_path(path, source) if "/" in path else pathlib.Path(model_dir) / path
    stage_dir = stage_dir.absolute()
    if not (stage_dir / "checkpoints").is_dir():
        there = sorted(p.parent.name for p in stage_dir.parent.glob("*/checkpoints"))
        raise CalrecError(f"{source!r}: no checkpoints in {stage_dir}; stages there: {there}")
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    step = checkpoints.resolve(which)
    checkpoints.close()
    return stage_dir, step


def require_whole(stage_dir: pathlib.Path, step: int) -> None:
    """Raises CalrecError where a checkpoint does not tell what it holds, as half a one may not."""
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    checkpoints.param_shapes(step)
    checkpoints.close()


def lora_of(stage_dir: pathlib.Path) -> LoraConfig | None:
    """The adapters of a stage's checkpoints, or None where they hold whole weights."""
    there = manifest.read(stage_dir.parent) or {"stages": {}}
    adapters = there["stages"].get(stage_dir.name, {}).get("lora")
    return None if adapters is None else LoraConfig(**adapters)


def load_params(model_dir: ModelDir, source: str, shapes, needs: Mapping[str, Any]):
    """Parameters that `source` names, in the shardings of `shapes`.

    Args:
      model_dir: where a bare stage name is looked up.
      source: "stage1:best", "stage1:latest" or "stage1:300" of `model_dir`, or with a MODEL_DIR
        before it, "DIR/stage1:best": a path as any other, from the working directory.
      shapes: see `state.param_shapes`. Those of a decoder with the stage's adapters (`lora_of`)
        give them beside their base; those of a decoder without any give both merged.
      needs: what the source's manifest must share, see `manifest.require`.

    Raises:
      CalrecError: there is no such stage or checkpoint, its tree or what it needs differs, or what
        its adapters were trained on is gone or was changed.
    """
    stage_dir, step = find_checkpoint(model_dir, source)
    manifest.require(stage_dir.parent, needs, source)
    config = lora_of(stage_dir)
    if config is None:
        return _restore(stage_dir, step, shapes)
    adapters, base = lora.split(shapes)
    if base:
        return lora.join(_restore(stage_dir, step, adapters), load_base(stage_dir, base))

    adapters = _restore(stage_dir, step, lora.adapter_shapes(shapes, config))
    merge = jax.jit(
        lambda base, adapters: lora.merge(lora.join(adapters, base), config),
        donate_argnums=0,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    return merge(load_base(stage_dir, shapes), adapters)


def _restore(stage_dir: pathlib.Path, step: int, shapes):
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    params = checkpoints.restore_params(step, shapes)
    checkpoints.close()
    return params


def load_base(stage_dir: pathlib.Path, shapes):
    """What a stage's adapters were trained on, in the shardings of `shapes`.

    Raises:
      CalrecError: it is gone, or is no longer what it was.
    """
    found = base_checkpoint(stage_dir)
    if found is None:
        return _fresh_again(stage_dir, _base_of(stage_dir), shapes)
    base_dir, step = found
    return load_params(stage_dir.parent, f"{base_dir}:{step}", shapes, {})


def base_checkpoint(stage_dir: pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """The stage and step that a stage's adapters were trained on; None = fresh weights.

    Raises:
      CalrecError: it is gone, or is no longer what it was.
    """
    base = _base_of(stage_dir)
    if "seed" in base:
        return None
    try:
        base_dir, step = find_checkpoint(stage_dir.parent, base["checkpoint"])
    except CalrecError as error:
        raise CalrecError(
            f"what the adapters in {stage_dir} were trained on is gone: {error}; put it back, or "
            f"write where it is now into {manifest.NAME}"
        ) from error
    if _fingerprint(base_dir, step) != base["fingerprint"]:
        raise CalrecError(
            f"the adapters in {stage_dir} were trained on another {base['checkpoint']} than is "
            f"there now: bring that one back, or train them anew in a MODEL_DIR of their own"
        )
    return base_dir, step


def begin_adapters(
    model_dir: ModelDir,
    init_from: str | None,
    decoder: Decoder,
    seed: int,
    shapes,
    needs: Mapping[str, Any],
) -> tuple[dict, dict[str, Any]]:
    """(parameters, what stands in the manifest as their base) of a stage with LoRA at its step 0.

    1. No `init_from`: fresh adapters, over fresh weights.
    2. `init_from` has the same adapters (rank, alpha and pattern): they go on, over their base.
    3. `init_from` has others, or none: fresh ones, over its weights, merged with its adapters.

    Args:
      decoder: with the stage's adapters.
      shapes: of its parameters, see `state.param_shapes`.

    Raises:
      CalrecError: as `load_params`.
    """
    adapters, under = lora.split(shapes)
    if init_from is None:
        # Without adapters, which would draw from the numbers that the weights are made of.
        plain = Decoder(dataclasses.replace(decoder.config, lora=None))
        weights = train_state.init_params(plain, seed, under)
        params = lora.join(train_state.init_params(decoder, seed, adapters), weights)
        return params, {"seed": seed, "sample": _sample(weights)}

    stage_dir, step = find_checkpoint(model_dir, init_from)
    source = f"{stage_dir}:{step}"  # "best" may come to mean another
    if lora_of(stage_dir) == decoder.config.lora:
        params = load_params(model_dir, source, shapes, needs)
        base, found = _base_of(stage_dir), base_checkpoint(stage_dir)
        return params, base if found is None else base | {"checkpoint": _name(model_dir, *found)}

    weights = load_params(model_dir, source, under, needs)
    params = lora.join(train_state.init_params(decoder, seed, adapters), weights)
    base = {
        "checkpoint": _name(model_dir, stage_dir, step),
        "fingerprint": _fingerprint(stage_dir, step),
    }
    return params, base


def _base_of(stage_dir: pathlib.Path) -> dict[str, Any]:
    there = manifest.read(stage_dir.parent)
    base = there["stages"][stage_dir.name].get("base")
    if base is None:
        raise CalrecError(
            f"{stage_dir.parent / manifest.NAME} does not say what the adapters of "
            f"{stage_dir.name} were trained on: it is damaged"
        )
    return base


def _name(model_dir: ModelDir, stage_dir: pathlib.Path, step: int) -> str:
    inside = stage_dir.parent == pathlib.Path(model_dir).absolute()
    return f"{stage_dir.name if inside else stage_dir}:{step}"


def _fingerprint(stage_dir: pathlib.Path, step: int) -> str:
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    fingerprint = checkpoints.fingerprint(step)
    checkpoints.close()
    return fingerprint


def _fresh_again(stage_dir: pathlib.Path, base: Mapping[str, Any], shapes):
    model = manifest.read(stage_dir.parent)["model"]
    decoder = Decoder(pretrained.decoder_of(model, str(stage_dir.parent)))
    params = train_state.init_params(decoder, base["seed"], shapes)
    # Another machine may round otherwise; another version of JAX may draw others altogether.
    if not np.allclose(_sample(params), base["sample"], rtol=1e-3, atol=1e-6):
        raise CalrecError(
            f"the adapters in {stage_dir} were trained on fresh weights of seed {base['seed']}, "
            f"and this JAX draws others: use the version of {manifest.NAME}"
        )
    return params


def _sample(params) -> list[float]:
    """The first number of each of `params`."""
    leaves = jax.tree.leaves(params)
    whole = NamedSharding(leaves[0].sharding.mesh, P())
    firsts = jax.jit(
        lambda leaves: jnp.stack([leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in leaves]),
        out_shardings=whole,
    )
    return np.asarray(firsts(leaves)).tolist()
