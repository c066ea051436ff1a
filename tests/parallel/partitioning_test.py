"""Which axis of which parameter lies along which axis of the mesh."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from training.small_run import MODEL

from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def specs(config: MeshConfig, model=MODEL) -> dict[str, tuple]:
    """{parameter: its axes along the mesh}."""
    shapes = train_state.param_shapes(Decoder(model), make_mesh(config), config)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def test_heads_mlp_and_vocabulary_lie_along_the_model_axis():
    found = specs(MeshConfig(4, 2), dataclasses.replace(MODEL, tie_embeddings=False))
    m = "model"
    assert found == {
        "embedding": (m, None),
        "unembedding": (m, None),
        "final_norm/scale": (None,),
        "layers/attention_norm/scale": (None, None),
        "layers/mlp_norm/scale": (None, None),
        "layers/attention/query/kernel": (None, None, m, None),
        "layers/attention/key/kernel": (None, None, m, None),
        "layers/attention/value/kernel": (None, None, m, None),
        "layers/attention/out/kernel": (None, m, None, None),
        "layers/mlp/gate/kernel": (None, None, m),
        "layers/mlp/up/kernel": (None, None, m),
        "layers/mlp/down/kernel": (None, m, None),
    }


def test_over_data_the_model_width_is_split_too():
    found = specs(MeshConfig(4, 2, shard_params_over_data=True))
    assert found["embedding"] == ("model", "data")
    assert found["layers/attention/query/kernel"] == (None, "data", "model", None)
    assert found["layers/mlp/down/kernel"] == (None, "model", "data")


def test_key_value_heads_that_do_not_divide_are_whole_on_each_device():
    found = specs(MeshConfig(2, 4))  # two of them over four
    for name in ("key", "value"):
        assert found[f"layers/attention/{name}/kernel"] == (None,) * 4
    assert found["layers/attention/query/kernel"] == (None, None, "model", None)


@pytest.mark.parametrize(
    "changes, config, line",
    [
        ({"vocab_size": 66}, MeshConfig(2, 4), "'vocab' axis of 66 .* 'model' axis of 4"),
        ({"d_ff": 30}, MeshConfig(2, 4), "'mlp' axis of 30 .* 'model' axis of 4"),
        ({"num_heads": 6}, MeshConfig(2, 4), "'heads' axis of 6 .* 'model' axis of 4"),
        ({"d_model": 20}, MeshConfig(8, 1, True), "'embed' axis of 20 .* 'data' axis of 8"),
    ],
)
def test_axes_that_do_not_divide_are_named(changes, config, line):
    with pytest.raises(CalrecError, match=line) as error:
        specs(config, dataclasses.replace(MODEL, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [MeshConfig(4, 2), MeshConfig(4, 2, True)], ids=str)
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_optimizer_is_split_like_its_parameters(name, config):
    optimizer = OptimizerConfig(name=name)
    tx = make_optimizer(optimizer, make_schedule(optimizer, 10))
    shapes = train_state.state_shapes(Decoder(MODEL), tx, make_mesh(config), config)
    params = jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), shapes.params)
    moments = ("mu", "nu") if name == "adamw" else ("v",)
    for moment in moments:
        ((_, found),) = optax.tree_utils.tree_get_all_with_path(shapes.opt_state, moment)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), found) == params


def test_factored_moments_are_small_and_whole():
    """adafactor keeps a row and a column of large matrices in place of their squares."""
    wide = dataclasses.replace(MODEL, d_model=128, d_ff=256)
    tx = optax.adafactor(1e-3)
    config = MeshConfig(4, 2)
    shapes = train_state.state_shapes(Decoder(wide), tx, make_mesh(config), config)
    ((_, rows),) = optax.tree_utils.tree_get_all_with_path(shapes.opt_state, "v_row")
    gate = rows["layers"]["mlp"]["gate"]["kernel"]
    assert gate.shape == (2, 128) and gate.sharding.spec == P()


def test_to_global_splits_rows_over_data_and_repeats_them_over_model():
    mesh = make_mesh(MeshConfig(4, 2))
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    array = partitioning.to_global({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(array, rows)
    place = {device: i for i, device in enumerate(mesh.devices.ravel())}
    for shard in array.addressable_shards:
        block = place[shard.device] // 2
        np.testing.assert_array_equal(shard.data, rows[2 * block : 2 * block + 2])
