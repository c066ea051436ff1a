"""Eight simulated devices compute the same as one, on any mesh.

Tolerances: everything is float32 and only the order of sums differs between meshes. Losses are
means over at most 100 tokens of values near 1, parameters are near 0.1 and move by about as much,
so a few units in the last place (6e-8) of the largest term stay well under 2e-6.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.small_run import MODEL, SPEC, STAGE, curve, random_batch, run, stage

from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.step import make_train_step
from calrec_jax.training.validation import make_validation_step

ONE = MeshConfig(1, 1)
MESHES = [
    MeshConfig(8, 1),
    MeshConfig(4, 2),
    MeshConfig(2, 4),  # key/value heads: two, over a model axis of four
    MeshConfig(8, 1, shard_params_over_data=True),
    MeshConfig(4, 2, shard_params_over_data=True),
    MeshConfig(2, 4, shard_params_over_data=True),
]
LOSSES = dataclasses.replace(STAGE.losses, alpha=0.4, beta=0.3)


def name(config: MeshConfig) -> str:
    return f"{config.data}x{config.model}" + "-fsdp" * config.shard_params_over_data


meshes = pytest.mark.parametrize("config", MESHES, ids=name)


def devices_of(config: MeshConfig):
    return make_mesh(config, jax.devices()[: config.data * config.model])


@dataclasses.dataclass
class Outcome:
    shapes: train_state.TrainState
    before: train_state.TrainState
    after: train_state.TrainState
    metrics: dict


@functools.cache
def one_step(config: MeshConfig) -> Outcome:
    """One step of plain gradient descent, so that parameters show the unchanged gradients."""
    decoder, tx, schedule = Decoder(MODEL), optax.sgd(0.3, momentum=0.9), optax.constant_schedule(0)
    mesh = devices_of(config)
    with partitioning.use_mesh(mesh, config):
        shapes = train_state.state_shapes(decoder, tx, mesh, config)
        params = train_state.init_params(decoder, 0, shapes.params)
        state = train_state.fresh_state(params, tx, shapes)
        step = jax.jit(make_train_step(decoder, tx, schedule, LOSSES, SPEC.max_loss_tokens))
        after, metrics = step(state, {}, partitioning.to_global(dict(random_batch(0)), mesh))
    return Outcome(shapes, state, after, jax.device_get(metrics))


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@meshes
def test_fresh_parameters_are_the_same_to_the_bit(config):
    one, many = leaves(one_step(ONE).before), leaves(one_step(config).before)
    for path in one:
        np.testing.assert_array_equal(one[path], many[path], err_msg=path)


@meshes
def test_losses_and_updated_parameters_are_those_of_one_device(config):
    one, many = one_step(ONE), one_step(config)
    assert one.metrics.keys() == many.metrics.keys()
    for metric, value in one.metrics.items():
        np.testing.assert_allclose(many.metrics[metric], value, rtol=2e-6, err_msg=metric)
    before, a, b = (leaves(state.params) for state in (one.before, one.after, many.after))
    for path in a:
        assert not np.array_equal(a[path], before[path]), path
        np.testing.assert_allclose(b[path], a[path], rtol=0, atol=2e-6, err_msg=path)


@meshes
def test_everything_is_created_and_left_with_its_own_sharding(config):
    """If XLA chose a sharding, a large model might not fit, or compile twice."""
    outcome = one_step(config)
    for path, wanted in leaves(outcome.shapes).items():
        for state in (outcome.before, outcome.after):
            found = leaves(state)[path]
            assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim), path
            share = wanted.sharding.shard_shape(wanted.shape)
            assert {shard.data.shape for shard in found.addressable_shards} == {share}, path


@pytest.mark.parametrize("config", [c for c in MESHES if c.shard_params_over_data], ids=name)
def test_a_device_holds_its_part_of_the_parameters_alone(config):
    """Norms and key/value heads that do not divide may stay whole along the model axis."""
    params = one_step(config).before.params
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    assert held < 1.35 * total / 8


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("config", [MeshConfig(4, 2), MeshConfig(2, 4, True)], ids=name)
def test_a_fresh_optimizer_is_split_like_its_parameters(config, optimizer):
    of = OptimizerConfig(name=optimizer)
    tx, mesh = make_optimizer(of, make_schedule(of, 10)), devices_of(config)
    shapes = train_state.state_shapes(Decoder(MODEL), tx, mesh, config)
    state = train_state.fresh_state(one_step(config).before.params, tx, shapes)
    for moment in ("mu", "nu") if optimizer == "adamw" else ("v",):
        ((_, found),) = optax.tree_utils.tree_get_all_with_path(state.opt_state, moment)
        for (path, param), like in zip(
            leaves(state.params).items(), jax.tree.leaves(found), strict=True
        ):
            assert like.shape == param.shape
            assert like.sharding.is_equivalent_to(param.sharding, param.ndim), path


def test_negatives_are_those_of_the_whole_batch():
    """Each of eight devices has one row. Were negatives taken from it alone, the contrastive losses
    would be those of eight batches of one row, and far lower."""
    decoder, config = Decoder(MODEL), MESHES[0]
    params = jax.device_get(one_step(ONE).before.params)
    batch = random_batch(0)
    step = jax.jit(make_validation_step(decoder, LOSSES, SPEC.max_loss_tokens))
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(8)]
    alone = [step(params, row) for row in rows]
    local = jax.tree.map(lambda *sums: float(sum(sums)), *alone).means(LOSSES)
    found = one_step(config).metrics
    np.testing.assert_allclose(found["nig"], local["nig"], rtol=2e-6)  # no negatives in this one
    assert found["tt"] > local["tt"] + 0.5 and found["ut"] > local["ut"] + 0.5


def test_negatives_on_other_devices_are_in_the_gradient():
    """The first row's loss depends on the items of the last row, which another device holds."""
    decoder, config = Decoder(MODEL), MESHES[0]
    mesh = devices_of(config)
    other = {key: value.copy() for key, value in random_batch(0).items()}
    other["item_tokens"][-1] = np.where(other["item_mask"][-1] != 0, 5, other["item_tokens"][-1])
    with partitioning.use_mesh(mesh, config):
        step = jax.jit(make_validation_step(decoder, LOSSES, SPEC.max_loss_tokens))
        sums = step(one_step(config).before.params, partitioning.to_global(other, mesh))
    before, after = one_step(config).metrics, sums.means(LOSSES)
    assert float(after["nig"]) == pytest.approx(float(before["nig"]), rel=1e-6)
    assert abs(float(after["tt"]) - float(before["tt"])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("config", [MeshConfig(8, 1), MeshConfig(2, 4, True)], ids=name)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_whole_stage_logs_the_losses_of_one_device(tmp_path, monkeypatch, config, optimizer):
    """Through Trainer. Adam divides by the root of squared gradients, which lifts the rounding of
    the smallest ones, by far less than 1e-4 of a loss in four steps."""
    of = stage(optimizer=dataclasses.replace(STAGE.optimizer, name=optimizer))
    run(tmp_path / "many", of, mesh=config)
    only = jax.devices()[:1]
    monkeypatch.setattr(
        "calrec_jax.training.stages.make_mesh", lambda config: make_mesh(config, only)
    )
    run(tmp_path / "one", of)
    many, one = curve(tmp_path / "many"), curve(tmp_path / "one")
    assert len(many) == len(one) == 6
    for a, b in zip(many, one, strict=True):
        assert (a.pop("step"), a.pop("split")) == (b.pop("step"), b.pop("split"))
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_a_stage_goes_on_on_another_mesh(tmp_path):
    """Six of ten steps on 8x1, the rest on 2x4 with split parameters; against 8x1 throughout."""
    of = stage(train_steps=6, validate_period=3)

    class Stopped(Exception):
        pass

    def until_3(stage, split, start):
        from training.small_run import make_batches

        for n, batch in enumerate(make_batches(stage, split, start), start):
            if split == "train" and n == 3:
                raise Stopped
            yield batch

    with pytest.raises(Stopped):
        run(tmp_path / "moved", of, mesh=MeshConfig(8, 1), make_batches=until_3)
    run(tmp_path / "moved", of, mesh=MeshConfig(2, 4, True))
    run(tmp_path / "stayed", of, mesh=MeshConfig(8, 1))
    moved, stayed = curve(tmp_path / "moved"), curve(tmp_path / "stayed")
    assert [line["step"] for line in moved] == [line["step"] for line in stayed]
    found = [line["loss"] for line in moved]
    assert found == pytest.approx([line["loss"] for line in stayed], rel=1e-4)
    assert found[:4] == [line["loss"] for line in stayed][:4]


def test_rows_of_the_batch_lie_on_their_devices_alone():
    batch = partitioning.to_global(dict(random_batch(0)), devices_of(MeshConfig(8, 1)))
    for feature in jax.tree.leaves(batch):
        assert {shard.data.shape[0] for shard in feature.addressable_shards} == {1}
        assert feature.dtype in (jnp.int32, jnp.float32)
