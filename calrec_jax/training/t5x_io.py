"""Checkpoints that T5X wrote: parameters out of them, and stages of a MODEL_DIR made of them.

Needs Orbax alone, and no T5X. What a checkpoint holds is told by the manifest.json that
`t5x_bridge` writes beside it.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from calrec_jax.checkpoints import damage
from calrec_jax.checkpoints.damage import PREFIX
from calrec_jax.errors import CalrecError, full_disk_named, local_path
from calrec_jax.training import manifest

_STEP = re.compile(rf"{PREFIX}_(\d+)")  # theirs is ours
_PARAMS = "target"  # as T5X calls them, beside "state": step and optimizer


def load_params(source: str, shapes, needs: Mapping[str, Any]):
    """Parameters of one of T5X's checkpoints, in the shardings of `shapes`.

    Args:
      source: its folder, "runs/t5x/stage1/checkpoint_300".
      shapes: a dict of ShapeDtypeStructs with shardings, see `state.param_shapes`.
      needs: what the manifest beside it must share, see `manifest.require`.

    Raises:
      CalrecError: there is no such checkpoint, it is damaged, or its tree or what it needs differs.
    """
    checkpoint = _found(source)
    manifest.require(checkpoint.parent, needs, source)
    with damage.reading_t5xs(checkpoint):
        _require_same(source, _saved_shapes(checkpoint), shapes)
        return _read(checkpoint, shapes, ocp.checkpoint_utils.construct_restore_args(shapes))


def to_stage(source: str, stage_dir: str | os.PathLike) -> int:
    """Makes one of T5X's checkpoints a stage of a MODEL_DIR, which `calrec eval` reads.

    The stage holds parameters alone: it can be evaluated and started from, and not trained on.

    Args:
      source: the checkpoint's folder, "runs/t5x/stage2/checkpoint_60".
      stage_dir: of the stage, MODEL_DIR/stage2; it must have no checkpoint, and other stages of the
        MODEL_DIR must have the same model, vocabulary and template.

    Returns:
      The checkpoint's step: "stage2:60" names it.

    Raises:
      CalrecError: there is no such checkpoint or it is damaged, the stage is there already or does
        not belong in its MODEL_DIR, another process trains there, or the disk is full. Nothing is
        written but where it is full.
    """
    checkpoint, stage_dir = _found(source), local_path(stage_dir, "the stage").absolute()
    if manifest.has_saved(stage_dir):
        raise CalrecError(f"{stage_dir} has checkpoints already: give a stage that is not there")
    manifest.require(checkpoint.parent, {}, source)
    described = manifest.read(checkpoint.parent)
    (stage,) = described["stages"].values()
    with damage.reading_t5xs(checkpoint):
        shapes = _saved_shapes(checkpoint)
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        params = _read(checkpoint, shapes, whole)

    of_stage = stage | {"name": stage_dir.name, "t5x_checkpoint": str(checkpoint)}
    step = int(_STEP.fullmatch(checkpoint.name)[1])
    options = ocp.CheckpointManagerOptions(step_prefix=PREFIX)
    with full_disk_named(stage_dir), manifest.locked(stage_dir.parent):
        manifest.claim(stage_dir.parent, described | {"stages": {stage_dir.name: of_stage}})
        with ocp.CheckpointManager(stage_dir / "checkpoints", options=options) as manager:
            manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    return step


def _found(source: str) -> pathlib.Path:
    """The folder that `source` names. Raises CalrecError where it is none of T5X's checkpoints."""
    path = local_path(source, source).absolute()
    if not _STEP.fullmatch(path.name) or not (path / "state").is_dir():
        there = sorted(p.parent.name for p in (path.parent.glob("checkpoint_*[0-9]/state")))
        raise CalrecError(
            f"{source!r} is no checkpoint of T5X, which are folders checkpoint_STEP with `state` "
            f"inside; there are, in {path.parent}: {there}"
        )
    return path


def _handler() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True))


def _saved_shapes(checkpoint: pathlib.Path):
    """The saved parameters as a dict of ShapeDtypeStructs."""
    with _handler() as handler:
        described = handler.metadata(checkpoint / "state").item_metadata
    if described is None:
        raise damage.NotWhole("what is in `state` cannot be told")
    saved = described.tree[_PARAMS]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def _read(checkpoint: pathlib.Path, shapes, restore_args):
    """Parameters alone: the optimizer's moments, twice their size, are not read."""
    args = ocp.args.PyTreeRestore(
        item={_PARAMS: shapes}, restore_args={_PARAMS: restore_args}, partial_restore=True
    )
    with _handler() as handler:
        return handler.restore(checkpoint / "state", args=args)[_PARAMS]


def _require_same(source: str, saved, wanted) -> None:
    saved, wanted = (_described(tree) for tree in (saved, wanted))
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = saved.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            raise CalrecError(f"{source!r} does not fit this run: {name} is {there}, here {here}")


def _described(tree) -> dict[str, str]:
    flat = flatten_dict(tree, sep="/")
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in flat.items()}
