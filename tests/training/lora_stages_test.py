"""Stages that train adapters: what moves, what is saved, and what they are put on again."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax.traverse_util import flatten_dict
from training.resume_test import Stopped, batches_until
from training.small_run import MODEL, curve, metrics, run, stage, trainer

from calrec_jax.batch import BatchSpec
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig
from calrec_jax.model_dir import StageDir
from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import manifest, merged, stages, validation, weights
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.state import TrainState
from calrec_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("one_device")

ONE = MeshConfig()
SMALL = LoraConfig(rank=2, alpha=4.0, pattern="attention/(query|out)|mlp/up")
BASE = stage(train_steps=2, validate_period=2)
ADAPTED = stage(
    name="stage2", train_steps=4, validate_period=4, save_period=2, lora=SMALL,
    init_from="stage1:best",
)  # fmt: skip
NEXT = stage(name="stage3", train_steps=1, lora=SMALL, init_from="stage2:latest")


def shapes(adapters: LoraConfig | None, config=ONE, devices=1):
    decoder = Decoder(dataclasses.replace(MODEL, lora=adapters))
    return train_state.param_shapes(decoder, make_mesh(config, jax.devices()[:devices]), config)


def load(model_dir, source, adapters=None):
    """Parameters of a checkpoint; without `adapters` they are merged."""
    return weights.load_params(model_dir, source, shapes(adapters), {"vocabulary": "v1"})


def flat(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def entry(model_dir, name) -> dict:
    return manifest.read(model_dir)["stages"][name]


def begin(model_dir, of):
    """(adapters or all that is trained, what is frozen) with which a stage would begin."""
    made = trainer(model_dir)
    with made.claimed([of]):
        pass
    mesh = make_mesh(ONE, jax.devices()[:1])
    decoder, tx = Decoder(dataclasses.replace(MODEL, lora=of.lora)), optax.sgd(0.1)
    none_yet = Checkpoints(made.stage_dir(of.name).checkpoints)
    state_shapes = train_state.state_shapes(decoder, tx, mesh, ONE)
    state, frozen, start = made._start(of, decoder, tx, state_shapes, mesh, none_yet)
    none_yet.close()
    assert start == 0 and int(state.step) == 0
    return state.params, frozen


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A MODEL_DIR: stage1 trains all, stage2 adapters over it. Leave it as it is."""
    model_dir = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        only = jax.devices()[:1]
        patch.setattr(stages, "make_mesh", lambda config: make_mesh(config, only))
        run(model_dir, BASE, ADAPTED)
    return model_dir


@pytest.fixture
def copied(adapted, tmp_path):
    """The same, to be changed; it has also moved as a whole."""
    shutil.copytree(adapted, tmp_path / "moved")
    return tmp_path / "moved"


# What is trained and saved.


def test_adapters_alone_change(adapted):
    adapters, frozen = lora.split(load(adapted, "stage2:4", SMALL))
    assert_same(frozen, load(adapted, "stage1:best"))
    fresh = train_state.init_params(
        Decoder(dataclasses.replace(MODEL, lora=SMALL)), 0, lora.split(shapes(SMALL))[0]
    )
    for name, leaf in flat(fresh).items():
        moved = flat(adapters)[name] != leaf
        assert moved.reshape(MODEL.num_layers, -1).any(axis=1).all(), name


def test_a_checkpoint_holds_adapters_and_their_optimizer_alone(adapted):
    checkpoints = Checkpoints(adapted / "stage2" / "checkpoints", read_only=True)
    wanted, _ = lora.split(shapes(SMALL))
    assert checkpoints.param_shapes(4).keys() == flatten_dict(wanted, sep="/").keys()
    saved = checkpoints._manager.item_metadata(4)["optimizer"]
    moments = [leaf.shape for leaf in jax.tree.leaves(saved) if leaf.shape]
    assert sorted(moments) == sorted([leaf.shape for leaf in jax.tree.leaves(wanted)] * 2)
    checkpoints.close()


def test_nothing_of_the_base_is_on_the_disk(tmp_path):
    """With a model so large that its weights outweigh the rest of what Orbax writes."""
    decoder = Decoder(dataclasses.replace(MODEL, vocab_size=65_536, lora=SMALL))
    tx, mesh = optax.adam(0.1), make_mesh(ONE, jax.devices()[:1])
    every = train_state.state_shapes(decoder, tx, mesh, ONE)
    trained = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), every)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(trained, {"batches": 0}, None)
    checkpoints.close()
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk < 65_536 * MODEL.d_model * 4 / 10


def test_the_frozen_weights_stay_the_callers_to_the_bit():
    config = tiny.changed(lora=LoraConfig(2, 4.0, ".*"))
    trained, frozen = lora.split(tiny.params(config))
    copy = functools.partial(jax.tree.map, np.array)  # what a donated buffer would not change
    before, tx = copy(frozen), optax.adamw(0.1)
    one = make_train_step(Decoder(config), tx, lambda _: 0.1, LossConfig(), tiny.MAX_LOSS_TOKENS)
    step = jax.jit(one, donate_argnums=0, compiler_options=tiny.FAST)
    state = TrainState(jnp.int32(0), trained, tx.init(trained))
    first, _ = step(state, frozen, tiny.packed())
    before_second = flat(copy(first.params))
    second, losses = step(first, frozen, tiny.packed())
    assert_same(frozen, before)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))  # these are donated
    assert all((flat(second.params)[name] != old).any() for name, old in before_second.items())
    assert losses["grad_norm"] > 0


def compiled(adapters: LoraConfig | None):
    """(memory of a compiled training step, bytes of all parameters, of the state)."""
    spec = BatchSpec.create(2, {"inputs": 24, "targets": 7}, row_length=32)
    model = dataclasses.replace(MODEL, d_model=128, d_ff=512, head_dim=32, vocab_size=1024)
    decoder, of = Decoder(dataclasses.replace(model, lora=adapters)), OptimizerConfig()
    schedule = make_schedule(of, 10)
    tx, mesh = make_optimizer(of, schedule), make_mesh(ONE, jax.devices()[:1])
    rows = partitioning.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in spec.shapes().items()
    }
    state = train_state.state_shapes(decoder, tx, mesh, ONE)
    params = train_state.param_shapes(decoder, mesh, ONE)
    _, frozen = lora.split(params)
    one = make_train_step(decoder, tx, schedule, LossConfig(), spec.max_loss_tokens)
    program = jax.jit(one, donate_argnums=0).lower(state, frozen, batch).compile(tiny.FAST)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    return program.memory_analysis(), size(params), size(state)


def test_frozen_weights_take_no_memory_for_gradients_or_moments():
    whole, size, _ = compiled(None)
    with_lora, _, state = compiled(LoraConfig(rank=2))
    assert state < size / 20
    # Two moments less among the arguments, and the gradient less besides.
    saved_arguments = whole.argument_size_in_bytes - with_lora.argument_size_in_bytes
    assert saved_arguments > 1.9 * size
    assert whole.temp_size_in_bytes - with_lora.temp_size_in_bytes > 0.5 * size
    # The old state's memory becomes the new one's, and frozen weights are no result.
    assert state <= with_lora.alias_size_in_bytes < 1.2 * state
    assert with_lora.output_size_in_bytes < 1.2 * state


def test_without_adapters_there_is_nothing_frozen():
    assert lora.split(shapes(None))[1] == {}


def test_stopped_and_gone_on_equals_straight_on(adapted, tmp_path):
    shutil.copytree(adapted / "stage1", tmp_path / "stage1")
    shutil.copy(adapted / "manifest.json", tmp_path)
    run(tmp_path, BASE)
    with pytest.raises(Stopped):
        run(tmp_path, ADAPTED, make_batches=batches_until(3))
    run(tmp_path, ADAPTED)
    assert curve(tmp_path, "stage2") == curve(adapted, "stage2")
    tx = make_optimizer(ADAPTED.optimizer, make_schedule(ADAPTED.optimizer, 4))
    mesh = make_mesh(ONE, jax.devices()[:1])
    decoder = Decoder(dataclasses.replace(MODEL, lora=SMALL))
    of = train_state.state_shapes(decoder, tx, mesh, ONE)

    def leaves(model_dir):
        checkpoints = Checkpoints(model_dir / "stage2" / "checkpoints", read_only=True)
        return jax.tree.leaves(checkpoints.restore(4, of)[0])

    assert all(map(np.array_equal, leaves(tmp_path), leaves(adapted)))


# Reading a stage of adapters.


def test_merged_and_apart_are_the_same_weights(adapted):
    apart = load(adapted, "stage2:best", SMALL)
    assert_same(load(adapted, "stage2:best"), jax.jit(lambda p: lora.merge(p, SMALL))(apart))


def test_merged_weights_can_be_read_a_part_at_a_time(adapted):
    whole, parts = (
        flat(load(adapted, "stage2:4")),
        merged.open_weights(StageDir(adapted / "stage2"), 4),
    )
    assert parts.keys() == whole.keys()
    exact = {"rtol": 1e-6, "atol": 1e-7}  # two orders of a sum over the rank
    for name, weight in parts.items():
        assert (weight.shape, weight.dtype) == (whole[name].shape, whole[name].dtype)
        places = range(MODEL.num_layers) if name.startswith("layers/") else [slice(None)]
        for place in places:
            np.testing.assert_allclose(weight.read((place,)), whole[name][place], **exact)
    for name, where in (
        ("layers/attention/query/kernel", (1, slice(None), slice(1, 3))),
        ("layers/attention/out/kernel", (0, slice(2, 4), slice(None), slice(3, 8))),
        ("layers/mlp/up/kernel", (1, slice(4, 5), slice(0, 7))),
    ):
        np.testing.assert_allclose(parts[name].read(where), whole[name][where], **exact)


def test_validation_was_that_of_the_merged_weights(adapted):
    config, rows = LossConfig(), trainer(adapted).data.batches(ADAPTED, "validation", 0)
    sums = jax.jit(
        functools.partial(
            validation.make_validation_step(Decoder(MODEL), config, ADAPTED.spec().max_loss_tokens),
            load(adapted, "stage2:4"),
        )
    )
    found = validation.mean_losses(map(sums, rows), lambda total: total.means(config))
    logged = metrics(adapted, "stage2", "validation")[-1]
    assert {name: logged[name] for name in found} == pytest.approx(found, rel=1e-5)


def test_samples_are_those_of_the_merged_weights(adapted):
    mesh = make_mesh(ONE, jax.devices()[:1])

    def sample(adapters):
        sampler = Sampler(
            Decoder(dataclasses.replace(MODEL, lora=adapters)),
            load(adapted, "stage2:best", adapters),
            SamplingConfig(num_samples=2, max_new_tokens=5),
            eos_id=1, bos_id=2, max_prompt_tokens=6, mesh=mesh, mesh_config=ONE,
        )  # fmt: skip
        return sampler([np.array([3, 4, 5]), np.array([7])], [1, 2])

    apart, together = sample(SMALL), sample(None)
    np.testing.assert_array_equal(apart.tokens, together.tokens)
    np.testing.assert_allclose(apart.log_probs, together.log_probs, rtol=1e-5)


@pytest.mark.parametrize("config", [MeshConfig(4, 2, True), MeshConfig(2, 4)], ids=str)
def test_both_lie_on_any_mesh_as_they_are_asked_for(adapted, config):
    for adapters in (None, SMALL):
        wanted = shapes(adapters, config, devices=8)
        found = weights.load_params(adapted, "stage2:best", wanted, {})
        on_one = flat(load(adapted, "stage2:best", adapters))
        for name, leaf in flatten_dict(found, sep="/").items():
            sharding = flatten_dict(wanted, sep="/")[name].sharding
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name
            np.testing.assert_allclose(leaf, on_one[name], rtol=1e-6, atol=1e-7, err_msg=name)


# Where a stage of adapters begins.


def test_fresh_weights_of_the_seed_are_a_base_too(tmp_path):
    of = dataclasses.replace(ADAPTED, init_from=None, train_steps=1)
    run(tmp_path, of)
    fresh = train_state.init_params(Decoder(MODEL), 0, shapes(None))
    assert_same(lora.split(load(tmp_path, "stage2:best", SMALL))[1], fresh)
    assert entry(tmp_path, "stage2")["base"]["seed"] == 0

    with pytest.raises(CalrecError, match="trained on fresh weights, which are on no disk"):
        merged.open_weights(StageDir(tmp_path / "stage2"), 1)
    there = manifest.read(tmp_path)
    there["stages"]["stage2"]["base"]["sample"][0] += 0.01  # as if they were drawn otherwise
    (tmp_path / "manifest.json").write_text(json.dumps(there))
    with pytest.raises(CalrecError, match="trained on fresh weights of seed 0, and this JAX draws"):
        load(tmp_path, "stage2:best")


def test_over_a_stage_that_trained_everything_adapters_are_fresh(adapted, tmp_path):
    of = dataclasses.replace(ADAPTED, init_from=f"{adapted}/stage1:best")
    adapters, frozen = begin(tmp_path, of)
    assert_same(frozen, load(adapted, "stage1:best"))
    assert all(leaf.any() == name.endswith("lora_a") for name, leaf in flat(adapters).items())
    assert entry(tmp_path, "stage2")["base"] == {
        "checkpoint": f"{adapted}/stage1:2",
        "fingerprint": Checkpoints(adapted / "stage1" / "checkpoints").fingerprint(2),
    }


def test_the_same_adapters_go_on_over_the_same_base(copied):
    adapters, frozen = begin(copied, NEXT)
    before, base = lora.split(load(copied, "stage2:latest", SMALL))
    assert_same(adapters, before)
    assert_same(frozen, base)
    assert entry(copied, "stage3")["base"] == entry(copied, "stage2")["base"]


def test_also_from_another_model_dir(adapted, tmp_path):
    of = dataclasses.replace(NEXT, init_from=f"{adapted}/stage2:best")
    adapters, frozen = begin(tmp_path, of)
    before, base = lora.split(load(adapted, "stage2:best", SMALL))
    assert_same(adapters, before)
    assert_same(frozen, base)
    assert entry(tmp_path, "stage3")["base"]["checkpoint"] == f"{adapted}/stage1:2"


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 8.0}, {"pattern": "mlp/up"}], ids=str)
def test_other_adapters_are_fresh_over_the_merged_weights(copied, change):
    other = dataclasses.replace(SMALL, **change)
    adapters, frozen = begin(copied, dataclasses.replace(NEXT, lora=other))
    assert_same(frozen, load(copied, "stage2:latest"))
    assert not any(leaf.any() for name, leaf in flat(adapters).items() if name.endswith("lora_b"))
    assert entry(copied, "stage3")["base"]["checkpoint"] == "stage2:4"


def test_a_stage_without_adapters_starts_from_the_merged_weights(copied):
    trained, frozen = begin(copied, dataclasses.replace(NEXT, lora=None))
    assert frozen == {}
    assert_same(trained, load(copied, "stage2:latest"))


@pytest.mark.slow
def test_a_chain_of_all_kinds(copied):
    """Adapters gone on with, others over the merged weights, and all weights from there."""
    other = dataclasses.replace(SMALL, rank=3)
    chain = [
        NEXT,
        stage(name="stage4", train_steps=1, lora=other, init_from="stage3:best"),
        stage(name="stage5", train_steps=1, init_from="stage4:best"),
    ]
    run(copied, BASE, ADAPTED, *chain)
    under = lora.split(load(copied, "stage4:best", other))[1]
    assert_same(under, load(copied, "stage3:best"))
    parts = merged.open_weights(StageDir(copied / "stage4"), 1)  # through two stages of adapters
    for name, leaf in flat(load(copied, "stage4:best")).items():
        np.testing.assert_allclose(parts[name].read((1,)), leaf[1], rtol=1e-5, atol=1e-7)
    assert_same(lora.split(load(copied, "stage3:best", SMALL))[1], load(copied, "stage1:best"))
    run(copied, BASE, ADAPTED, *chain)  # finished stages stay, and so does what they stand on
    assert entry(copied, "stage4")["base"]["checkpoint"] == "stage3:1"
    shutil.rmtree(copied / "stage1")
    with pytest.raises(CalrecError, match=f"the adapters in {copied}/stage3 were trained on is go"):
        load(copied, "stage4:best")


# What is refused.


def readers(model_dir):
    """What puts adapters on their base: evaluation, a later stage, and the stage gone on with."""
    yield lambda: load(model_dir, "stage2:best", SMALL)
    yield lambda: load(model_dir, "stage2:best")
    yield lambda: begin(model_dir, NEXT)
    yield lambda: begin(model_dir, dataclasses.replace(NEXT, lora=None))
    # As it is saved where validation is left to the next run.
    checkpoint = model_dir / "stage2" / "checkpoints" / "checkpoint_4"
    shutil.rmtree(checkpoint / "metrics")
    described = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    del described["item_handlers"]["metrics"]
    (checkpoint / "_CHECKPOINT_METADATA").write_text(json.dumps(described))
    yield lambda: run(model_dir, ADAPTED)


def test_a_base_that_was_trained_again_is_refused(copied):
    saved = copied / "stage1" / "checkpoints" / "checkpoint_2" / "_CHECKPOINT_METADATA"
    saved.write_text(saved.read_text() + "\n")
    line = re.escape(
        f"the adapters in {copied}/stage2 were trained on another stage1:2 than is there now"
    )
    for read in readers(copied):
        with pytest.raises(CalrecError, match=line) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_base_that_is_gone_is_refused(copied):
    shutil.rmtree(copied / "stage1")
    line = re.escape(
        f"what the adapters in {copied}/stage2 were trained on is gone: 'stage1:2': no checkpoints "
        f"in {copied}/stage1"
    )
    for read in readers(copied):
        with pytest.raises(CalrecError, match=line) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_manifest_that_does_not_say_is_refused(copied):
    there = manifest.read(copied)
    del there["stages"]["stage2"]["base"]
    (copied / "manifest.json").write_text(json.dumps(there))
    with pytest.raises(CalrecError, match="does not say what the adapters of stage2 were trained"):
        load(copied, "stage2:best")


def test_other_adapters_than_those_trained_are_refused(copied):
    with pytest.raises(CalrecError, match="stage2.lora.rank = 2, this run has 3"):
        run(copied, dataclasses.replace(ADAPTED, lora=dataclasses.replace(SMALL, rank=3)))
    with pytest.raises(CalrecError, match="stage2.lora = "):
        run(copied, dataclasses.replace(ADAPTED, lora=None))
