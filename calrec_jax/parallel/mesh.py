"""The device mesh: data parallel x model parallel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from calrec_jax.errors import CalrecError

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the mesh, and whether parameters are split along all of it.

    Attributes:
      data: devices along the batch; -1 = all devices / `model`.
      model: devices along heads, MLP and vocabulary.
      shard_params_over_data: also split parameters and optimizer state along `data` (FSDP).
    """

    data: int = -1
    model: int = 1
    shard_params_over_data: bool = False


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes ("data", "model") over `devices` (default: all devices).

    Raises:
      CalrecError: the sizes do not multiply to the number of devices, or one copy of the model
        would span hosts.
    """
    devices = jax.devices() if devices is None else devices
    data, model = config.data, config.model
    if data == -1 and model > 0:
        data = len(devices) // model
    if min(data, model) < 1 or data * model != len(devices):
        raise CalrecError(
            f"a mesh of data {config.data} x model {model} does not fit {len(devices)} "
            f"devices: set MeshConfig.data and MeshConfig.model"
        )
    grid = np.asarray(devices).reshape(data, model)
    # Each host reads its own rows, and all devices along `model` need the same rows.
    if any(len({device.process_index for device in row}) > 1 for row in grid):
        raise CalrecError(
            f"MeshConfig.model {model} would spread one copy of the model over several hosts: "
            f"it must divide the devices of a host"
        )
    return Mesh(grid, (DATA, MODEL))
