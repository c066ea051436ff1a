"""Meshes that fit the devices, and one line for those that do not."""

import types

import jax
import pytest

from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    "config, shape",
    [
        (MeshConfig(), (8, 1)),
        (MeshConfig(model=4), (2, 4)),
        (MeshConfig(data=1, model=8), (1, 8)),
        (MeshConfig(data=4, model=2), (4, 2)),
    ],
)
def test_all_devices_are_laid_out(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "model") and mesh.devices.shape == shape
    assert mesh.devices.ravel().tolist() == jax.devices()


def test_a_mesh_of_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).devices.shape == (2, 1)


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=3),
        MeshConfig(data=4, model=4),
        MeshConfig(model=3),
        MeshConfig(model=16),
        MeshConfig(model=0),
        MeshConfig(data=0),
        MeshConfig(data=-8, model=-1),
        MeshConfig(data=-1, model=-8),
    ],
)
def test_sizes_that_do_not_fit_are_named(config):
    line = f"data {config.data} x model {config.model} does not fit 8 devices: set MeshConfig"
    with pytest.raises(CalrecError, match=line):
        make_mesh(config)


def test_one_copy_of_the_model_stays_on_one_host():
    """Each host reads rows of its own; a copy over two hosts would mix the rows of both."""
    devices = [types.SimpleNamespace(process_index=i // 4) for i in range(8)]
    with pytest.raises(CalrecError, match="MeshConfig.model 8 would spread .* several hosts"):
        make_mesh(MeshConfig(model=8), devices)
