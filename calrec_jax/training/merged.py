"""Whole weights of any checkpoint, a part at a time: adapters are merged while they are read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from calrec_jax.checkpoints import streamed
from calrec_jax.checkpoints.streamed import Index, Stored
from calrec_jax.errors import CalrecError
from calrec_jax.models import lora
from calrec_jax.training import weights


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter.

    Attributes:
      read: gives the part at an index; of stacked layers one at a time, (3, ...).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]


def open_weights(stage_dir: pathlib.Path, step: int) -> dict[str, Weight]:
    """{"layers/mlp/up/kernel": ...} of a checkpoint, as `weights.load_params` gives it merged.

    No more than the adapters is held in memory.

    Raises:
      CalrecError: what its adapters were trained on is gone or was changed, or was never saved.
    """
    stores = streamed.open_params(stage_dir / "checkpoints", step)
    config = weights.lora_of(stage_dir)
    if config is None:
        return {name: _of_store(store) for name, store in stores.items()}
    base = weights.base_checkpoint(stage_dir)
    if base is None:
        raise CalrecError(
            f"the adapters in {stage_dir} were trained on fresh weights, which are on no disk: run "
            f"a stage without lora from there, which saves them merged"
        )
    found = open_weights(*base)
    for name in stores:
        at, _, leaf = name.rpartition("/")
        if leaf == lora.A:
            a, b = (stores[f"{at}/{part}"].read() for part in (lora.A, lora.B))
            kernel = f"{at}/{lora.KERNEL}"
            axes = lora.PROJECTIONS["/".join(at.split("/")[-2:])]
            found[kernel] = _with_adapters(found[kernel], a, b, axes, config.scale)
    return found


def _of_store(store: Stored) -> Weight:
    return Weight(store.shape, store.dtype, store.read)


def _with_adapters(kernel: Weight, a, b, axes: tuple[int, int], scale: float) -> Weight:
    """As `lora.merge`: in float32, rounded to the kernel's type."""
    inputs, outputs = axes
    layers = len(kernel.shape) - inputs - outputs  # axes of layers: one, or none
    a, b = a.astype(np.float32), b.astype(np.float32)

    def read(where: Index) -> np.ndarray:
        every = (*where, *[slice(None)] * (len(kernel.shape) - len(where)))
        layer, of_inputs = every[:layers], every[layers : layers + inputs]
        of_outputs = every[layers + inputs :]
        update = np.tensordot(a[(*layer, *of_inputs)], b[(*layer, slice(None), *of_outputs)], 1)
        part = kernel.read(where)
        return (part.astype(np.float32) + scale * update).astype(part.dtype)

    return dataclasses.replace(kernel, read=read)
