"""Checkpoints of parameters that are larger than memory: written and read a piece at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from calrec_jax.checkpoints import damage
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.model_dir import CHECKPOINT_PREFIX, checkpoint_folder
from calrec_jax.models.params import Params

_CACHE_BYTES = 1 << 27  # of chunks that are read again

Index = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A parameter that is made while it is written.

    Attributes:
      shape, dtype: of the whole parameter.
      chunk: the shape of a unit of storage; every piece must consist of whole chunks.
      pieces: gives (index, content) of all its parts, in any order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    pieces: Callable[[], Iterator[tuple[Index, np.ndarray]]]

    @property
    def ndim(self) -> int:
        """The number of axes. Orbax reads it, and `size` and `nbytes`."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers the parameter has."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """The size of the parameter in bytes."""
        return self.size * self.dtype.itemsize


class _Handler(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of whole arrays, with another way of writing their content."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._one_at_a_time = asyncio.Semaphore(1)
        self._failed = False

    def typestr(self) -> str:
        return "np.ndarray"

    async def _open_and_write(
        self, value: Streamed, tspec: dict[str, Any], ts_context: ts.Context
    ) -> None:
        tspec["metadata"]["chunks"] = list(value.chunk)
        async with self._one_at_a_time:
            if self._failed:
                return
            try:
                store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
                for where, part in value.pieces():
                    await store[where].write(part)
            except BaseException:
                # For example on a full disk. Orbax closes the event loop now: a write that another
                # parameter began would return to it, and log pages of errors.
                self._failed = True
                raise


def write_params(directory: pathlib.Path, params: Params) -> None:
    """Writes checkpoint 0 of a stage, with parameters alone; `Checkpoints` reads it.

    Args:
      directory: the stage's checkpoints.
      params: a tree of `Streamed`.
    """
    registry = ocp.type_handlers.create_type_handler_registry((Streamed, _Handler()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    options = ocp.CheckpointManagerOptions(
        step_prefix=CHECKPOINT_PREFIX, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(
        directory.absolute(), options=options, item_handlers={"params": handler}
    ) as manager:
        manager.save(0, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params)))


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter of a checkpoint, read in parts.

    Attributes:
      store: the array, opened.
      directory, step: the checkpoint.
    """

    store: ts.TensorStore
    directory: pathlib.Path
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype that was saved."""
        return self.store.dtype.numpy_dtype

    def read(self, where: Index = ()) -> np.ndarray:
        """The part at an index. Raises CalrecError where the checkpoint is damaged."""
        with damage.reading(self.directory, self.step):
            return self.store[where].read().result()


def open_params(directory: str | os.PathLike, step: int) -> Mapping[str, Stored]:
    """The parameters of a checkpoint, {"layers/mlp/up/kernel": ...}; nothing is read yet.

    Raises:
      CalrecError: the checkpoint is damaged.
    """
    directory = pathlib.Path(directory).absolute()
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        names = checkpoints.param_shapes(step)
    finally:
        checkpoints.close()
    item = checkpoint_folder(directory, step) / "params"
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    with damage.reading(directory, step):
        return {name: Stored(_open(item, name, context), directory, step) for name in names}


def _open(item: pathlib.Path, name: str, context: ts.Context) -> ts.TensorStore:
    kvstore = {"driver": "ocdbt", "base": f"file://{item}", "path": name.replace("/", ".")}
    return ts.open({"driver": "zarr", "kvstore": kvstore}, context=context, read=True).result()
