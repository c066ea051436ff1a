"""What is told and kept of a training whose numbers are no longer finite."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax import npz
from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError

Decode = Callable[[Sequence[int]], str]

_SPANS = {"history": HISTORY, "target": TARGET}


def bad(values: Mapping[str, float]) -> dict[str, float]:
    """Those of `values` that are not finite."""
    return {name: value for name, value in values.items() if not math.isfinite(value)}


@jax.jit
def all_finite(tree) -> jax.Array:
    """[] bool: whether all floating-point numbers of a tree of arrays are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


def error(
    stage_dir: pathlib.Path,
    checkpoints: Checkpoints,
    decode: Decode | None,
    step: int,
    found: Mapping[str, float],
    batch: Mapping[str, jax.Array] | None,
) -> CalrecError:
    """What is said of a step, whose batch is kept in the stage's folder.

    Args:
      checkpoints: of the stage; saves that are under way are waited for.
      decode: tokens -> text, to keep the examples as texts, too.
      found: what is not finite.
      batch: that of the step, global; None where no one batch is the cause.
    """
    name = stage_dir.name
    told = ", ".join(f"{what} is {value}" for what, value in found.items())
    kept = "" if batch is None else f"; {_keep(stage_dir, step, batch, decode)}"
    checkpoints.wait()
    before = checkpoints.step_before(step)
    if before is None:
        return CalrecError(
            f"{name} stopped at step {step}: {told}{kept}; nothing was saved before: lower "
            f"OptimizerConfig.learning_rate, or warm up for longer"
        )
    return CalrecError(
        f"{name} stopped at step {step}: {told}{kept}; the last good checkpoint is "
        f"{name}:{before}: train on from there in a MODEL_DIR of its own, with "
        f"Stage.init_from='{stage_dir}:{before}' and a lower OptimizerConfig.learning_rate"
    )


def _keep(
    stage_dir: pathlib.Path, step: int, batch: Mapping[str, jax.Array], decode: Decode | None
) -> str:
    """Writes this process's rows of a batch; returns where, in words."""
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = stage_dir / f"diverged_{step}{process}.npz"
    rows = {name: _rows(array) for name, array in batch.items()}
    try:
        npz.save(path, **rows)
        if decode is None:
            return f"its batch is in {path}"
        with path.with_suffix(".jsonl").open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(json.dumps(line) + "\n" for line in _examples(rows, decode))
    except OSError as failed:
        return f"its batch could not be written to {path} ({failed.strerror})"
    return f"its batch is in {path}, and as texts in {path.stem}.jsonl"


def _rows(array: jax.Array) -> np.ndarray:
    """Those of an array, split by rows, that this process holds."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _examples(rows: Mapping[str, np.ndarray], decode: Decode) -> Iterator[dict]:
    """{"row", "segment" from 1, "target_item_id", "domain_id", "history", "target"} of each."""
    ids = rows["target_item_ids"]
    for row, slot in np.argwhere(ids != 0).tolist():
        here = rows["decoder_segment_ids"][row] == slot + 1
        yield {
            "row": row,
            "segment": slot + 1,
            "target_item_id": int(ids[row, slot]),
            "domain_id": int(rows["domain_ids"][row, slot]),
        } | {
            name: decode(
                rows["decoder_input_tokens"][row][
                    here & (rows["decoder_span_ids"][row] == span)
                ].tolist()
            )
            for name, span in _SPANS.items()
        }
