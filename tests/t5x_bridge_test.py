"""T5X trains both stages, `calrec eval` reads what comes out, and T5X starts from a calrec run.

Needs t5x, which is on no registry: docs/t5x.md says how it is installed. Without it all is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

REASON = "t5x is not installed (it is on no registry; docs/t5x.md says where it is had)"
pytest.importorskip("t5x", reason=REASON)
pytestmark = pytest.mark.slow

from cli.chain_test import calrec  # noqa: E402
from t5x import partitioning, trainer, utils  # noqa: E402

from calrec_jax import t5x_bridge  # noqa: E402
from calrec_jax.checkpoints.manager import Checkpoints  # noqa: E402
from calrec_jax.configs import gin_config  # noqa: E402
from calrec_jax.data import vocabularies  # noqa: E402
from calrec_jax.data.domains import DataConfig  # noqa: E402
from calrec_jax.data.store.quiet_tensorflow import tf  # noqa: E402
from calrec_jax.errors import CalrecError  # noqa: E402
from calrec_jax.losses import LossConfig, LossSums  # noqa: E402
from calrec_jax.models.config import DecoderConfig  # noqa: E402
from calrec_jax.models.lora import LoraConfig  # noqa: E402
from calrec_jax.parallel.mesh import MeshConfig, make_mesh  # noqa: E402
from calrec_jax.runs.run import Run  # noqa: E402
from calrec_jax.training import optimizer as optimizers  # noqa: E402
from calrec_jax.training import state as train_state  # noqa: E402
from calrec_jax.training import t5x_io, weights  # noqa: E402
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule  # noqa: E402
from calrec_jax.training.stages import Stage  # noqa: E402
from calrec_jax.training.step import make_train_step  # noqa: E402

STEPS, SEED, LENGTHS = 3, 5, {"inputs": 176, "targets": 32}
MODEL = {"num_layers": 2, "d_model": 32, "head_dim": 8, "d_ff": 64}
PACKING = {"row_length": 512, "max_segments": 3}
RATES = {"learning_rate": 1e-2, "warmup_steps": 2}
SMALL = """
from __gin__ import dynamic_registration
from calrec_jax.data import vocabularies
from calrec_jax.models import config
from calrec_jax.training import optimizer
from calrec_jax.training import stages

DATA_DIR = "store"
VOCABULARY = @vocabularies.byte()
""" + "".join(
    f"{what}.{name} = {value}\n"
    for what, values in {
        "config.DecoderConfig": MODEL,
        "stages.Stage": PACKING,
        "optimizer.OptimizerConfig": RATES,
    }.items()
    for name, value in values.items()
)
CALREC = [
    "--gin_file=gin/runs/quickstart.gin",
    "--gin_file=small.gin",
    "--gin.MODEL_DIR='model'",
    "--gin.BATCH_SIZE=8",
    "--gin.stages.Stage.validation_batches=1",
    "--gin.EvaluationConfig.max_users=4",
    "--gin.SamplingConfig.num_samples=2",
    "--gin.SamplingConfig.max_new_tokens=8",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> pathlib.Path:
    """A folder with `store` and `small.gin`, the gin file of all runs here."""
    here = tmp_path_factory.mktemp("here")
    calrec(here, "synthetic", "--data_dir=store", "--users=60", "--target_users=60")
    (here / "small.gin").write_text(SMALL)
    return here


def t5x_train(here: pathlib.Path, model_dir: str, *bindings: str, code: int = 0) -> str:
    """Runs t5x.train in `here` on two devices, which share the model; returns what it tells."""
    files = ["t5x/finetune", "models/tiny", "data/synthetic"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY")}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [
            sys.executable, "-m", "t5x.train",
            *[f"--gin_file=gin/{name}.gin" for name in files], "--gin_file=small.gin",
            f"--gin_search_paths=.,{gin_config.search_root()}",
            f"--gin.MODEL_DIR='{here / model_dir}'", "--gin.BATCH_SIZE=8",
            f"--gin.TRAIN_STEPS={STEPS}",
            f"--gin.RANDOM_SEED={SEED}", f"--gin.train/utils.DatasetConfig.seed={SEED}",
            f"--gin.EVAL_PERIOD={STEPS}", "--gin.EVAL_STEPS=1", "--gin.train.stats_period=1",
            "--gin.utils.SaveCheckpointConfig.period=1",
            *[f"--gin.{binding}" for binding in bindings],
        ],
        cwd=here, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def stage1(here) -> pathlib.Path:
    """T5X's MODEL_DIR of stage I, with a checkpoint of each step."""
    t5x_train(here, "t5x/stage1")
    return here / "t5x" / "stage1"


@pytest.fixture(scope="module")
def stage2(here, stage1) -> pathlib.Path:
    """MODEL_DIR of stage II, from the last checkpoint of stage I."""
    start = f"INITIAL_CHECKPOINT_PATH='t5x/stage1/checkpoint_{STEPS}'"
    t5x_train(here, "t5x/stage2", "MIXTURE_OR_TASK_NAME=%TARGET_DOMAIN", start)
    return here / "t5x" / "stage2"


def saved(model_dir: pathlib.Path, step: int):
    """T5X's whole state of a step, NumPy arrays, read by Orbax alone."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = model_dir / f"checkpoint_{step}" / "state"
        tree = checkpointer.metadata(state).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(state, restore_args=whole)


def scalars(folder: pathlib.Path, name: str) -> dict[int, float]:
    """{step: value} of one of T5X's metrics."""
    found = {}
    for file in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def bitwise_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def make_model(here, dropout_rate=0.0, **changes) -> t5x_bridge.CalrecModel:
    """The model of stage I, as the gin files make it, with changes to its stage."""
    config = DecoderConfig(num_heads=4, num_kv_heads=2, **MODEL)
    data = DataConfig(str(here / "store"), vocabularies.byte())
    stage = dict(name="t5x", mixture="synthetic_all", train_steps=STEPS, batch_size=8)
    stage |= dict(task_feature_lengths=LENGTHS, optimizer=OptimizerConfig(**RATES), **PACKING)
    run = Run("", config, data, [Stage(**stage | changes)])
    return t5x_bridge.CalrecModel(run, dropout_rate)


def t5x_batches(model):
    """The training batches that T5X makes."""
    config = utils.DatasetConfig(
        mixture_or_task_name=model.stage.mixture,
        task_feature_lengths=LENGTHS,
        split="train",
        batch_size=model.stage.batch_size,
        shuffle=True,
        seed=SEED,
        pack=True,
        module="calrec_jax.tasks.synthetic",
    )
    return utils.get_dataset(config, 0, 1, model.FEATURE_CONVERTER_CLS).as_numpy_iterator()


def test_batches_are_packed_and_are_those_of_the_spec(here):
    model = make_model(here)
    batch = next(t5x_batches(model))
    model.spec.check(batch)
    assert (batch["decoder_segment_ids"].max(axis=1) > 1).any()


def test_each_update_is_ours(here, stage1):
    """Losses, learning rate, optimizer: our step, on T5X's batches from T5X's first parameters."""
    model = make_model(here)
    names = ("loss", "nig", "tt", "ut")
    logged = {name: scalars(stage1 / "train", name) for name in (*names, "learning_rate/current")}
    assert all(steps.keys() == set(range(1, STEPS + 1)) for steps in logged.values())
    params = saved(stage1, 0)["target"]
    step, state = our_step(model, params)
    for number, batch in zip(range(1, STEPS + 1), t5x_batches(model), strict=False):
        state, ours = step(state, {}, batch)
        for name in names:
            assert logged[name][number] == pytest.approx(float(ours[name]), rel=2e-6)
        rate = logged["learning_rate/current"][number]
        assert rate == pytest.approx(float(ours["learning_rate"]), rel=1e-6)
        all_close(saved(stage1, number)["target"], state.params)


def our_step(model, params, opt_state=None, count=0):
    """(our jitted train step, the state that it begins with)."""
    stage = model.stage
    schedule = make_schedule(stage.optimizer, stage.train_steps)
    tx = make_optimizer(stage.optimizer, schedule)
    step = make_train_step(model.decoder, tx, schedule, stage.losses, model.spec.max_loss_tokens)
    opt_state = tx.init(params) if opt_state is None else opt_state
    return jax.jit(step), train_state.TrainState(np.int32(count), params, opt_state)


def with_empty(param_states, state):
    """T5X leaves out of what it saves states that hold nothing; they are needed to read it."""
    like = flatten_dict(to_state_dict(state.opt_state), keep_empty_nodes=True)
    nothing = {path: empty_node for path, leaf in like.items() if leaf is empty_node}
    return unflatten_dict(nothing | flatten_dict(param_states))


def all_close(actual, expected) -> None:
    """Within a thousandth of an update on average: Adam divides by the root of tiny squares."""

    def close(a, b):
        error = np.abs(np.asarray(a) - np.asarray(b)) / RATES["learning_rate"]
        assert error.mean() < 1e-3 and error.max() < 0.1

    jax.tree.map(close, actual, expected)


def test_fresh_parameters_are_the_decoders_and_are_split(here, stage1):
    shapes = train_state.param_shapes(
        make_model(here).decoder, make_mesh(MeshConfig()), MeshConfig()
    )
    first = saved(stage1, 0)["target"]
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (first, shapes)]
    assert kinds[0] == kinds[1]
    info = (stage1 / "model-info.txt").read_text()
    for name in ("embedding ", "param_states/1/0/mu/embedding "):
        assert re.search(rf"^Variable {name}.*vocab=384, embed=32.*'model', None", info, re.M)
    whole = r"^Variable layers/attention/key/kernel .*kv_heads=2.*\(None, None, None, None\)$"
    assert re.search(whole, info, re.M)


def test_a_stopped_run_goes_on_with_its_optimizer(here, stage1):
    """Its last update, made again: T5X's data starts anew."""
    last = saved(stage1, STEPS)["target"]
    aside = (stage1 / f"checkpoint_{STEPS}").rename(here / "aside")
    output = t5x_train(here, "t5x/stage1")
    model = make_model(here)
    before = saved(stage1, STEPS - 1)
    step, state = our_step(model, before["target"])
    opt_state = from_state_dict(state.opt_state, with_empty(before["state"]["param_states"], state))
    step, state = our_step(model, before["target"], opt_state, STEPS - 1)
    state, _ = step(state, {}, next(t5x_batches(model)))
    all_close(saved(stage1, STEPS)["target"], state.params)
    assert "from specific T5X checkpoint" in output
    shutil.rmtree(stage1 / f"checkpoint_{STEPS}")
    aside.rename(stage1 / f"checkpoint_{STEPS}")
    bitwise_equal(saved(stage1, STEPS)["target"], last)


def test_stage_two_starts_from_the_parameters_of_stage_one(stage1, stage2):
    first = saved(stage2, 0)
    bitwise_equal(first["target"], saved(stage1, STEPS)["target"])
    assert first["state"]["step"] == 0
    moments = jax.tree.leaves(first["state"]["param_states"])
    assert all((leaf == 0).all() for leaf in moments)
    assert saved(stage2, STEPS)["state"]["step"] == STEPS


def test_calrec_eval_reads_what_t5x_trained(here, stage2):
    source = str(stage2 / f"checkpoint_{STEPS}")
    assert t5x_io.to_stage(source, here / "model" / "stage2") == STEPS
    with contextlib.closing(Checkpoints(here / "model/stage2/checkpoints", read_only=True)) as made:
        mesh = make_mesh(MeshConfig())
        shapes = train_state.param_shapes(make_model(here).decoder, mesh, MeshConfig())
        read = jax.tree.map(np.asarray, made.restore_params(STEPS, shapes))
    bitwise_equal(read, saved(stage2, STEPS)["target"])

    calrec(here, "eval", *CALREC, "--gin.CHECKPOINT='stage2:latest'")
    metrics = json.loads((here / "model" / "eval" / "test" / "metrics.json").read_text())
    assert metrics["n"] == 4
    other = ["--gin.templates.Template.fields=('title',)", "--gin.CHECKPOINT='stage2:latest'"]
    other += ["--gin.EvaluationConfig.name='other'"]  # the predictions would be refused first
    refused = calrec(here, "eval", *CALREC, *other, code=1).stderr.splitlines()[-1]
    assert "was trained with data.template.fields" in refused


def test_t5x_starts_from_a_calrec_checkpoint(here):
    one = ["--gin.STAGES=[@stage1/stages.Stage()]", "--gin.CHECKPOINT='stage1:best'"]
    calrec(here, "train", *CALREC, *one, "--gin.STAGE1_STEPS=1", "--gin.MODEL_DIR='ours'")
    adafactor = "optimizer.OptimizerConfig.name='adafactor'"
    start = "INITIAL_CHECKPOINT_PATH='ours/stage1:best'"
    t5x_train(here, "t5x/from_ours", start, adafactor, "TRAIN_STEPS=1", "EVAL_PERIOD=1")
    mesh = make_mesh(MeshConfig())
    shapes = train_state.param_shapes(make_model(here).decoder, mesh, MeshConfig())
    ours = weights.load_params(here, f"{here}/ours/stage1:best", shapes, {})
    bitwise_equal(saved(here / "t5x/from_ours", 0)["target"], jax.tree.map(np.asarray, ours))
    moved = saved(here / "t5x/from_ours", 1)["target"]
    assert (moved["embedding"] != np.asarray(ours["embedding"])).any()

    refused = t5x_train(here, "t5x/refused", start, "config.DecoderConfig.d_ff=48", code=1)
    assert "'ours/stage1:best' was trained with model.d_ff = 64, this run has 48" in refused
    assert not (here / "t5x/refused/checkpoint_0").exists()


def test_negatives_are_those_of_the_whole_batch_over_several_devices(here):
    """Rows over four devices, the model over two: T5X's trainer gives what one device does."""
    model = make_model(here)
    rules = partitioning.standard_logical_axis_rules(additional_rules=t5x_bridge.additional_rules())
    partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)
    partitioner.__dict__["mesh"] = make_mesh(MeshConfig(model=2))  # T5X's own on CPU splits no rows
    t5x_bridge.on_mesh(partitioner)
    batch = next(t5x_batches(model))
    initializer = t5x_bridge.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: value.shape for name, value in batch.items()},
        partitioner=partitioner,
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    embedding = state.params["embedding"].sharding
    assert embedding.spec == P("model", None) and embedding.mesh.shape == {"data": 4, "model": 2}
    step, ours = our_step(model, jax.tree.map(np.asarray, flax.core.unfreeze(state.params)))
    ours, metrics = step(ours, {}, batch)
    with trainer.Trainer(
        model=model,
        train_state=state,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: step,
        num_microbatches=None,
    ) as t5x_trainer:
        summary = t5x_trainer.train(iter([batch]), 1).result()
        for name in ("loss", "tt", "ut"):
            assert summary[name].value == pytest.approx(float(metrics[name]), rel=2e-6)
        all_close(flax.core.unfreeze(t5x_trainer.train_state.params), ours.params)


def test_model_dir_is_an_absolute_path_and_stays_one_models(here, tmp_path):
    model = make_model(here)
    for model_dir, line in (("runs/t5x", "relative path: give '/"), ("gs://b/t5x", "mount")):
        with pytest.raises(CalrecError, match=line):
            t5x_bridge.summarize_config(model_dir, None, 0, model)
    t5x_bridge.summarize_config(str(tmp_path), None, 0, model)
    (tmp_path / "checkpoint_0").mkdir()
    t5x_bridge.summarize_config(str(tmp_path), None, 0, model)
    config = dataclasses.replace(model.run.model, d_ff=48)
    other = t5x_bridge.CalrecModel(dataclasses.replace(model.run, model=config))
    with pytest.raises(CalrecError, match="model.d_ff = 64, this run has 48"):
        t5x_bridge.summarize_config(str(tmp_path), None, 0, other)
    assert json.loads((tmp_path / "manifest.json").read_text())["model"]["d_ff"] == 64


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"targets": "random"}, "Stage.targets is 'random': SeqIO's tasks"),
        ({"lora": LoraConfig()}, "Stage.lora is set"),
        ({"dropout_rate": 0.1}, "the decoder has no dropout"),
    ],
)
def test_what_t5x_cannot_do_here_is_refused(here, changes, line):
    with pytest.raises(CalrecError, match=line):
        make_model(here, **changes)


def test_microbatches_and_inference_are_refused(here):
    model = make_model(here)
    batch = {name: value[:4] for name, value in next(t5x_batches(model)).items()}
    with pytest.raises(CalrecError, match="a batch of 4 rows, and BATCH_SIZE is 8"):
        model.loss_fn({}, batch, None)
    for refused in (model.predict_batch, model.score_batch):
        with pytest.raises(CalrecError, match="does not sample from it"):
            refused({}, batch)


def test_losses_of_several_batches_are_exact():
    """Means over all tokens and examples, not of the batches' means."""
    config = LossConfig(alpha=0.5, beta=0.25)
    sums = [LossSums(6.0, 2.0, 8.0, 4.0, 4.0), LossSums(1.0, 8.0, 2.0, 6.0, 1.0)]
    a, b = (t5x_bridge.LossMetric(part, "loss", config) for part in sums)
    assert a.merge(b).compute() == pytest.approx(0.25 * 0.7 + 0.5 * 2.0 + 0.25 * 2.0)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_moments_are_split_as_their_parameters_and_all_else_is_whole(name):
    """The moments of rows and columns of a factored matrix are not split."""
    config = OptimizerConfig(name=name)
    optimizer = t5x_bridge.OptaxOptimizer(make_optimizer(config, make_schedule(config, 3)))
    params = {"block": {"kernel": jnp.zeros((256, 128)), "scale": jnp.zeros(128)}}
    axes = {"block": {"kernel": P("embed", "mlp"), "scale": P("embed")}}
    state = optimizer.create(params)
    derived = flatten_dict(optimizer.derive_logical_axes(state, axes).state_dict())
    shapes = {path: jnp.shape(leaf) for path, leaf in flatten_dict(state.state_dict()).items()}
    split = {path[-2:] for path, found in derived.items() if found and path[0] == "state"}
    assert split == {("block", "scale")} | ({("block", "kernel")} if name == "adamw" else set())
    for path, found in derived.items():
        same = shapes[path] == shapes.get(("target", *path[-2:]))
        assert found == (axes["block"][path[-1]] if same else None)
