"""Checkpoints of one stage: saved atomically and asynchronously, restored exactly or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from calrec_jax import files
from calrec_jax.checkpoints import damage
from calrec_jax.errors import CalrecError, full_disk_named
from calrec_jax.model_dir import CHECKPOINT_PREFIX, checkpoint_folder
from calrec_jax.models.params import Params

State = Any
"""A `training.state.TrainState` of arrays, or of their shapes; this layer does not import it."""

Leaf = tuple[tuple[int, ...], str]
"""The shape and the dtype of an array."""

_METRIC = "loss"
# The unit of storage: reading any part of an array reads whole chunks.
_CHUNK_BYTES = 1 << 26


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname.split(os.sep) and "/orbax/" not in record.getMessage()


# Orbax logs each step of a save; of an error it logs pages of tracebacks from several threads,
# before it raises the same error.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_not_from_orbax)


def _loss(metrics: Mapping[str, float]) -> float:
    """The loss that checkpoints are ranked by; one that is not finite is the worst."""
    return metrics[_METRIC] if math.isfinite(metrics[_METRIC]) else math.inf


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not look for a preemption: the training loop alone does."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints in one directory, each holding parameters, optimizer state and data position.

    The latest one and the best by validation loss are kept; others are removed.

    Args:
      directory: made where it is missing.
      keep_best: how many of the best are kept.
      read_only: nothing is written or removed.

    Raises:
      CalrecError: the losses of a checkpoint are damaged. Other damaged parts are reported when
        they are read.
    """

    def __init__(
        self, directory: str | os.PathLike, keep_best: int = 1, read_only: bool = False
    ) -> None:
        self.directory = pathlib.Path(directory).absolute()
        policy = preserve.AnyPreservationPolicy(
            [
                preserve.LatestN(1),
                # `reverse`: BestN keeps the largest, and the best loss is the smallest.
                preserve.BestN(
                    get_metric_fn=_loss,
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            step_prefix=CHECKPOINT_PREFIX,
            best_fn=_loss,
            best_mode="min",
            preservation_policy=policy,
            # Left behind by a save that was killed; its step will be saved again.
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        # Without handlers a process that has saved nothing yet cannot read what a checkpoint has.
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
        }
        damage.require_losses(self.directory)
        self._manager = _Manager(self.directory, options=options, item_handlers=handlers)

    def save(
        self, state: State, position: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Starts saving `state` at its step; returns before the files are written.

        Args:
          state: a TrainState.
          position: the data position, JSON values.
          metrics: of validation, with "loss"; None where no validation was run.

        Raises:
          CalrecError: the disk is full (also for the save before this one).
        """
        step = int(state.step)
        self._require_space(state)
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, _in_chunks(state.params)),
            optimizer=ocp.args.StandardSave(optimizer, _in_chunks(optimizer)),
            position=ocp.args.JsonSave(dict(position)),
        )
        with full_disk_named(self.directory):
            self._manager.save(step, args=args, metrics=metrics and dict(metrics))

    def _require_space(self, state: State) -> None:
        """Raises CalrecError where this process's share of `state` cannot fit the disk.

        Checked before anything is written: Orbax would leave half a checkpoint, and its threads
        would log pages of errors.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // jax.process_count()
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise CalrecError(
                f"no space left on the disk of {self.directory}: a checkpoint takes "
                f"{needed / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free; free some and "
                f"run the same command again; nothing that was saved before is lost"
            )

    def validated(self, step: int) -> bool:
        """Whether the checkpoint of `step` was saved with validation losses."""
        return self._manager.metrics(step) is not None

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives the checkpoint of `step`, saved without them, its validation losses.

        Raises:
          CalrecError: the disk is full.
        """
        if jax.process_index() == 0:
            # In Orbax's layout.
            item = checkpoint_folder(self.directory, step) / "metrics"
            with full_disk_named(self.directory), files.new_folder(item) as making:
                (making / item.name).write_text(json.dumps(dict(metrics)))
        multihost_utils.sync_global_devices("calrec_jax: metrics added")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when all saves are on disk. Raises as `save` does."""
        with full_disk_named(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and lets go of the directory."""
        with full_disk_named(self.directory):
            self._manager.close()

    def latest_step(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the lowest validation loss, or None."""
        return self._manager.best_step()

    def step_before(self, step: int) -> int | None:
        """The last checkpoint's step before `step`, or None."""
        return max((s for s in self._manager.all_steps() if s < step), default=None)

    def resolve(self, which: str) -> int:
        """The step that "best", "latest" or a number names.

        Raises:
          CalrecError: there is no such checkpoint.
        """
        steps = self._manager.all_steps()
        found = {"best": self.best_step(), "latest": self.latest_step()}.get(which)
        if found is None and which.isdecimal() and int(which) in steps:
            found = int(which)
        if found is None:
            raise CalrecError(
                f"no checkpoint {which!r} in {self.directory}: it holds steps {sorted(steps)}; "
                f"name one of them, 'best' or 'latest'"
            )
        return found

    def fingerprint(self, step: int) -> str:
        """A hash that differs for each save, also of the same step: Orbax records when it was made.

        Raises:
          CalrecError: the checkpoint is damaged.
        """
        path = checkpoint_folder(self.directory, step) / damage.METADATA
        with damage.reading(self.directory, step):
            return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()

    def restore(self, step: int, shapes: State) -> tuple[State, dict[str, Any]]:
        """(state, position) as saved at `step`, in the shardings of `shapes` (a TrainState).

        Raises:
          CalrecError: the checkpoint is damaged, or its tree differs from `shapes`.
        """
        optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(shapes.params),
            optimizer=ocp.args.StandardRestore(optimizer),
            position=ocp.args.JsonRestore(),
        )
        with damage.reading(self.directory, step):
            self._check(step, "params", shapes.params)
            self._check(step, "optimizer", optimizer)
            restored = self._manager.restore(step, args=args)
        state = type(shapes)(params=restored["params"], **restored["optimizer"])
        return state, restored["position"]

    def param_shapes(self, step: int) -> dict[str, Leaf]:
        """{"layers/mlp/up/kernel": (shape, dtype)} of the parameters saved at `step`.

        Raises:
          CalrecError: the checkpoint is damaged.
        """
        with damage.reading(self.directory, step):
            return self._saved(step, "params")

    def restore_params(self, step: int, shapes: Params) -> Params:
        """Parameters alone, in the shardings of `shapes`, whose dtypes may be wider than the saved.

        Raises:
          CalrecError: the checkpoint is damaged, its tree differs from `shapes`, or it would lose
            precision.
        """
        args = ocp.args.Composite(params=ocp.args.StandardRestore(shapes))
        with damage.reading(self.directory, step):
            self._check(step, "params", shapes, may_widen=True)
            return self._manager.restore(step, args=args)["params"]

    def _saved(self, step: int, item: str) -> dict[str, Leaf]:
        """The `_leaves` of an item; none where the checkpoint does not have the item."""
        return _leaves(self._manager.item_metadata(step).get(item) or {})

    def _check(self, step: int, item: str, shapes: Any, may_widen: bool = False) -> None:
        """Raises CalrecError where the saved leaves of an item differ from `shapes`, a pytree."""
        saved = self._saved(step, item)
        wanted = _leaves(shapes)
        for name in sorted(saved.keys() | wanted.keys()):
            there, here = saved.get(name), wanted.get(name)
            if there != here and not (may_widen and _is_wider(here, there)):
                raise CalrecError(
                    f"checkpoint {step} in {self.directory} does not fit this run: {item} {name} "
                    f"is {_describe(there)} there and {_describe(here)} here"
                )


def _leaves(tree: Any) -> dict[str, Leaf]:
    """{path: (shape, dtype)} of a pytree; paths as in the checkpoint, without container types."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves[name] = (tuple(leaf.shape), str(leaf.dtype))
    return leaves


def _in_chunks(tree: Any) -> Any:
    """A pytree like `tree`, of SaveArgs."""
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)


def _is_wider(leaf: Leaf | None, other: Leaf | None) -> bool:
    """Whether `leaf` has the shape of `other` and holds all of its numbers exactly."""
    if leaf is None or other is None or leaf[0] != other[0]:
        return False
    return jax.numpy.promote_types(leaf[1], other[1]) == leaf[1]


def _describe(leaf: Leaf | None) -> str:
    return "absent" if leaf is None else f"{leaf[1]}{list(leaf[0])}"
