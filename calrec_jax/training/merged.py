"""Whole weights of any checkpoint, a part at a time: adapters are merged while they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from calrec_jax.checkpoints import streamed
from calrec_jax.checkpoints.streamed import Index, Stored
from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import StageDir
from calrec_jax.models import lora
from calrec_jax.training import weights


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter that is read in parts.

    Attributes:
      shape, dtype: of the whole parameter.
      read: gives the part at an index; of stacked layers one at a time, (3, ...).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]


def open_weights(stage: StageDir, step: int) -> dict[str, Weight]:
    """{"layers/mlp/up/kernel": ...} of a checkpoint: what `weights.load_params` gives merged.

    No more than the adapters is held in memory.

    Raises:
      CalrecError: what its adapters were trained on is gone or was changed, or was never saved.
    """
    stores = streamed.open_params(stage.checkpoints, step)
    config = weights.lora_of(stage)
    if config is None:
        return {name: _from_store(store) for name, store in stores.items()}
    base = weights.base_checkpoint(stage)
    if base is None:
        raise CalrecError(
            f"the adapters in {stage} were trained on fresh weights, which are on no disk: run "
            f"a stage without lora from there, which saves them merged"
        )
    merged = open_weights(*base)
    for name in stores:
        at, _, leaf = name.rpartition("/")
        if leaf == lora.A:
            a, b = (stores[f"{at}/{part}"].read() for part in (lora.A, lora.B))
            kernel = f"{at}/{lora.KERNEL}"
            axes = lora.PROJECTIONS["/".join(at.split("/")[-2:])]
            merged[kernel] = _with_adapters(merged[kernel], a, b, axes, config.scale)
    return merged


def _from_store(store: Stored) -> Weight:
    return Weight(store.shape, store.dtype, store.read)


def _with_adapters(
    kernel: Weight, a: np.ndarray, b: np.ndarray, axes: tuple[int, int], scale: float
) -> Weight:
    """kernel + scale * a b, as `lora.merge` has it: in float32, rounded to the kernel's type.

    Args:
      kernel: [(layers,) *inputs, *outputs].
      a, b: [(layers,) *inputs, R], [(layers,) R, *outputs].
      axes: how many axes are inputs, and outputs.
    """
    num_inputs, num_outputs = axes
    num_layers = len(kernel.shape) - num_inputs - num_outputs  # axes of layers: one, or none
    a, b = a.astype(np.float32), b.astype(np.float32)

    def read(where: Index) -> np.ndarray:
        index = (*where, *[slice(None)] * (len(kernel.shape) - len(where)))
        layer, inputs = index[:num_layers], index[num_layers : num_layers + num_inputs]
        outputs = index[num_layers + num_inputs :]
        update = np.tensordot(a[(*layer, *inputs)], b[(*layer, slice(None), *outputs)], 1)
        part = kernel.read(where)
        return (part.astype(np.float32) + scale * update).astype(part.dtype)

    return dataclasses.replace(kernel, read=read)
