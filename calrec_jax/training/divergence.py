"""Divergence: the error that ends a training with numbers that are not finite, and its batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax import files
from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import StageDir
from calrec_jax.training.step import Batch

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text."""

_SPANS = {"history": HISTORY, "target": TARGET}


def not_finite(values: Mapping[str, float]) -> dict[str, float]:
    """The entries of `values` that are infinite or NaN."""
    return {name: value for name, value in values.items() if not math.isfinite(value)}


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """[] bool: whether all floating-point numbers of a tree of arrays are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


def error(
    stage_dir: StageDir,
    checkpoints: Checkpoints,
    decode: Decode | None,
    step: int,
    values: Mapping[str, float],
    batch: Batch | None,
) -> CalrecError:
    """The error that ends a stage at a step. Its batch is written to the stage's folder.

    Args:
      checkpoints: the stage's; saves that are under way are waited for.
      decode: writes the examples of the batch as texts, too; None = as tokens only.
      values: the numbers that are not finite, by name.
      batch: the step's global batch; None where no single batch is the cause.
    """
    name = stage_dir.name
    cause = ", ".join(f"{what} is {value}" for what, value in values.items())
    if batch is not None:
        cause += f"; {_write_batch(stage_dir, step, batch, decode)}"
    checkpoints.wait()
    last_good = checkpoints.step_before(step)
    if last_good is None:
        return CalrecError(
            f"{name} stopped at step {step}: {cause}; nothing was saved before: lower "
            f"OptimizerConfig.learning_rate, or warm up for longer"
        )
    return CalrecError(
        f"{name} stopped at step {step}: {cause}; the last good checkpoint is "
        f"{name}:{last_good}: train on from there in a MODEL_DIR of its own, with "
        f"Stage.init_from='{stage_dir}:{last_good}' and a lower OptimizerConfig.learning_rate"
    )


def _write_batch(stage_dir: StageDir, step: int, batch: Batch, decode: Decode | None) -> str:
    """Writes this process's rows of a batch. Returns the words that say where they are."""
    path = stage_dir.diverged(step, jax.process_index() if jax.process_count() > 1 else None)
    rows = {name: _rows_of_process(array) for name, array in batch.items()}
    try:
        files.save_npz(path, **rows)
        if decode is None:
            return f"its batch is in {path}"
        lines = "".join(json.dumps(line) + "\n" for line in _examples(rows, decode))
        files.write_text(path.with_suffix(".jsonl"), lines, "replace")
    except OSError as failure:
        return f"its batch could not be written to {path} ({failure.strerror})"
    return f"its batch is in {path}, and as texts in {path.stem}.jsonl"


def _rows_of_process(array: jax.Array) -> np.ndarray:
    """The rows of an array that this process holds; it is split along rows alone."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _examples(rows: Mapping[str, np.ndarray], decode: Decode) -> Iterator[dict[str, Any]]:
    """Each joint sequence of a batch: {"row", "segment" from 1, "target_item_id", "domain_id",
    "history", "target"}."""
    item_ids_BxK = rows["target_item_ids"]
    for row, slot in np.argwhere(item_ids_BxK != 0).tolist():
        in_segment_S = rows["decoder_segment_ids"][row] == slot + 1
        tokens_S, spans_S = rows["decoder_input_tokens"][row], rows["decoder_span_ids"][row]
        yield {
            "row": row,
            "segment": slot + 1,
            "target_item_id": int(item_ids_BxK[row, slot]),
            "domain_id": int(rows["domain_ids"][row, slot]),
        } | {
            name: decode(tokens_S[in_segment_S & (spans_S == span)].tolist())
            for name, span in _SPANS.items()
        }
