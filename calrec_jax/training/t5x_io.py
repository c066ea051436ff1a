"""Checkpoints that T5X wrote: parameters out of them, and stages of a MODEL_DIR made of them.

Needs Orbax alone, and no T5X. The manifest.json that `t5x_bridge` writes beside the checkpoints
says what they hold.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from calrec_jax.checkpoints import damage
from calrec_jax.errors import CalrecError, full_disk_named, local_path
from calrec_jax.model_dir import (
    CHECKPOINT_PREFIX,
    StageDir,
    checkpoint_folder,
    checkpoint_step,
    saved_steps,
)
from calrec_jax.models.params import Params
from calrec_jax.training import manifest

_STATE = "state"  # in the folder of a checkpoint
_PARAMS = "target"  # T5X's name, beside its "state": step and optimizer


def load_params(source: str, shapes: Params, required: Mapping[str, Any]) -> Params:
    """Parameters of a checkpoint of T5X, in the shardings of `shapes`.

    Args:
      source: its folder, "runs/t5x/stage1/checkpoint_300".
      shapes: a dict of ShapeDtypeStructs with shardings, see `state.param_shapes`.
      required: what the manifest beside it must hold, see `manifest.require`.

    Raises:
      CalrecError: there is no such checkpoint, it is damaged, or its tree or manifest differs from
        what is required.
    """
    checkpoint = _find(source)
    manifest.require(checkpoint.parent, required, source)
    with damage.reading_t5x(checkpoint):
        _require_same(source, _saved_shapes(checkpoint), shapes)
        return _read(checkpoint, shapes, ocp.checkpoint_utils.construct_restore_args(shapes))


def to_stage(source: str, stage_dir: str | os.PathLike) -> int:
    """Makes a checkpoint of T5X a stage of a MODEL_DIR, which `calrec eval` reads.

    The stage holds parameters alone: it can be evaluated and started from, and not trained on.

    Args:
      source: the checkpoint's folder, "runs/t5x/stage2/checkpoint_60".
      stage_dir: of the stage, MODEL_DIR/stage2; it must have no checkpoint, and other stages of the
        MODEL_DIR must have the same model, vocabulary and template.

    Returns:
      The checkpoint's step: "stage2:60" names it.

    Raises:
      CalrecError: there is no such checkpoint or it is damaged, the stage is there already or does
        not belong in its MODEL_DIR, another process trains there, or the disk is full. In all cases
        but the last, nothing is written.
    """
    checkpoint = _find(source)
    stage = StageDir(local_path(stage_dir, "the stage").absolute())
    if stage.has_saved():
        raise CalrecError(f"{stage} has checkpoints already: give a stage that is not there")
    manifest.require(checkpoint.parent, {}, source)
    described = manifest.read(checkpoint.parent)
    (trained,) = described["stages"].values()
    with damage.reading_t5x(checkpoint):
        shapes = _saved_shapes(checkpoint)
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        params = _read(checkpoint, shapes, on_host)

    entry = trained | {"name": stage.name, "t5x_checkpoint": str(checkpoint)}
    step = checkpoint_step(checkpoint)
    options = ocp.CheckpointManagerOptions(step_prefix=CHECKPOINT_PREFIX)
    with full_disk_named(stage), manifest.locked(stage.model_dir):
        manifest.claim(stage.model_dir, described | {"stages": {stage.name: entry}})
        with ocp.CheckpointManager(stage.checkpoints, options=options) as manager:
            manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    return step


def _find(source: str) -> pathlib.Path:
    """The folder that `source` names. Raises CalrecError where it is no checkpoint of T5X."""
    path = local_path(source, source).absolute()
    if checkpoint_step(path) is None or not (path / _STATE).is_dir():
        folders = [checkpoint_folder(path.parent, step) for step in saved_steps(path.parent)]
        there = [folder.name for folder in folders if (folder / _STATE).exists()]
        raise CalrecError(
            f"{source!r} is no checkpoint of T5X, which are folders checkpoint_STEP with `state` "
            f"inside; there are, in {path.parent}: {there}"
        )
    return path


def _handler() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True))


def _saved_shapes(checkpoint: pathlib.Path) -> Params:
    """The saved parameters as a dict of ShapeDtypeStructs."""
    with _handler() as handler:
        described = handler.metadata(checkpoint / _STATE).item_metadata
    if described is None:
        raise damage.NotWhole("`state` does not say what it holds")
    saved = described.tree[_PARAMS]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def _read(checkpoint: pathlib.Path, shapes: Params, restore_args: Any) -> Params:
    """Parameters alone: the optimizer's moments, twice their size, are not read.

    Args:
      restore_args: a pytree like `shapes`, of RestoreArgs.
    """
    args = ocp.args.PyTreeRestore(
        item={_PARAMS: shapes}, restore_args={_PARAMS: restore_args}, partial_restore=True
    )
    with _handler() as handler:
        return handler.restore(checkpoint / _STATE, args=args)[_PARAMS]


def _require_same(source: str, saved: Params, wanted: Params) -> None:
    """Raises CalrecError where a parameter has another shape or dtype than is wanted."""
    saved, wanted = _described(saved), _described(wanted)
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = saved.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            raise CalrecError(f"{source!r} does not fit this run: {name} is {there}, here {here}")


def _described(params: Params) -> dict[str, str]:
    """{"layers/mlp/up/kernel": "float32[2, 16, 32]"}."""
    flat = flatten_dict(params, sep="/")
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in flat.items()}
