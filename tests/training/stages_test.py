"""Stages from start to end: where each starts, what it leaves behind, and what is refused."""

import dataclasses
import re
import shutil

import flax
import jax
import numpy as np
import optax
import pytest
from training.small_run import MODEL, curve, metrics, run, stage, trainer

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig
from calrec_jax.model_dir import StageDir
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import manifest, stages
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import make_optimizer, make_schedule
from calrec_jax.training.weights import find_checkpoint, load_params

pytestmark = pytest.mark.usefixtures("one_device")

ONE = MeshConfig()
NEEDS = {"vocabulary": "v1"}
STAGE1 = stage(train_steps=4, validate_period=2)
STAGE2 = stage(name="stage2", train_steps=2, validate_period=2, init_from="stage1:best")


def shapes(of=STAGE1, model=MODEL):
    tx = make_optimizer(of.optimizer, make_schedule(of.optimizer, of.train_steps))
    mesh = make_mesh(ONE, jax.devices()[:1])
    return train_state.state_shapes(Decoder(model), tx, mesh, ONE)


def begun(made, of, tx, checkpoints):
    """What `_start` gives: (state, frozen, batches seen)."""
    mesh = make_mesh(ONE, jax.devices()[:1])
    return made._start(of, Decoder(MODEL), tx, shapes(of), mesh, checkpoints)


def restored(model_dir, stage_name, step, of=STAGE1):
    """(state, position) of a checkpoint."""
    directory = model_dir / stage_name / "checkpoints"
    return Checkpoints(directory, read_only=True).restore(step, shapes(of))


def flat(tree) -> dict[str, np.ndarray]:
    leaves = flax.traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    return {name: np.asarray(value) for name, value in leaves.items()}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, flat(a), flat(b))


def count(opt_state) -> int:
    return int(optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1])


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A MODEL_DIR with both stages trained; leave it as it is."""
    model_dir = tmp_path_factory.mktemp("two_stages")
    with pytest.MonkeyPatch.context() as patch:
        only = jax.devices()[:1]
        patch.setattr(stages, "make_mesh", lambda config: make_mesh(config, only))
        run(model_dir, STAGE1, STAGE2)
    return model_dir


def test_a_run_leaves_what_its_layout_says(two_stages):
    assert {path.name for path in two_stages.iterdir()} == {
        *["lock", "manifest.json", "stage1", "stage2"]
    }
    for name in ("stage1", "stage2"):
        files = {path.name.split(".")[0] for path in (two_stages / name).iterdir()}
        assert files == {"checkpoints", "metrics", "events"}


def test_metrics_tell_each_step_and_each_validation(two_stages):
    lines = [(line["step"], line["split"]) for line in metrics(two_stages)]
    train, validation = "train", "validation"
    assert lines == [(1, train), (2, train), (2, validation), (3, train), (4, train),
                     (4, validation)]  # fmt: skip
    for line in metrics(two_stages, split="train"):
        names = {"loss", "nig", "tt", "ut", "tokens", "examples", "grad_norm", "learning_rate"}
        assert names < line.keys()


def test_the_learning_rate_that_is_logged_is_the_one_used(two_stages):
    schedule = make_schedule(STAGE1.optimizer, 4)
    found = [line["learning_rate"] for line in metrics(two_stages, split="train")]
    np.testing.assert_allclose(found, [float(schedule(step)) for step in range(4)], rtol=1e-6)
    assert found[0] > 0


def test_the_position_is_saved_with_the_state(two_stages):
    state, position = restored(two_stages, "stage1", 4)
    assert int(state.step) == 4 and position == {"batches": 4} and count(state.opt_state) == 4


def test_a_later_stage_starts_from_the_best_of_the_one_before_with_a_fresh_optimizer(two_stages):
    _, best = find_checkpoint(two_stages, "stage1:best")
    chosen = load_params(two_stages, "stage1:best", shapes().params, NEEDS)
    made = trainer(two_stages)
    none_yet = Checkpoints(two_stages / "nothing")
    tx = make_optimizer(STAGE2.optimizer, make_schedule(STAGE2.optimizer, 2))
    state, frozen, start = begun(made, STAGE2, tx, none_yet)
    none_yet.close()
    (two_stages / "nothing").rmdir()
    assert start == 0 and frozen == {} and int(state.step) == 0 and count(state.opt_state) == 0
    assert_same(state.params, chosen)
    assert_same(state.params, restored(two_stages, "stage1", best)[0].params)
    fresh = train_state.init_params(Decoder(MODEL), 0, shapes().params)
    assert not np.array_equal(flat(fresh)["embedding"], flat(state.params)["embedding"])


def test_its_own_checkpoint_comes_before_init_from(two_stages):
    """If init_from were looked up first, this name, which does not exist, would be an error."""
    made = trainer(two_stages)
    own = Checkpoints(made.stage_dir("stage2").checkpoints, read_only=True)
    elsewhere = dataclasses.replace(STAGE2, init_from="stage9:best")
    state, frozen, start = begun(made, elsewhere, None, own)
    assert start == 2 and frozen == {} and int(state.step) == 2 and count(state.opt_state) == 2


def test_without_either_the_weights_are_those_of_the_seed(tmp_path):
    made = trainer(tmp_path, seed=3)
    none_yet = Checkpoints(tmp_path / "none")
    tx = make_optimizer(STAGE1.optimizer, make_schedule(STAGE1.optimizer, 4))
    state, frozen, start = begun(made, STAGE1, tx, none_yet)
    assert start == 0 and frozen == {} and count(state.opt_state) == 0
    assert_same(state.params, train_state.init_params(Decoder(MODEL), 3, shapes().params))
    other = train_state.init_params(Decoder(MODEL), 4, shapes().params)
    assert not np.array_equal(other["embedding"], state.params["embedding"])


def test_nothing_of_the_backbone_is_frozen_in_either_stage(two_stages):
    """A public re-implementation trains its heads alone."""
    fresh = train_state.init_params(Decoder(MODEL), 0, shapes().params)
    _, best = find_checkpoint(two_stages, "stage1:best")
    starts = {"stage1": (fresh, 4), "stage2": (restored(two_stages, "stage1", best)[0].params, 2)}
    for name, (start, last) in starts.items():
        of = STAGE1 if name == "stage1" else STAGE2
        before, after = flat(start), flat(restored(two_stages, name, last, of)[0].params)
        for parameter in before:
            # Layers are stacked along the first axis: each of them has to move.
            layers = range(MODEL.num_layers) if parameter.startswith("layers/") else [...]
            for layer in layers:
                moved = before[parameter][layer] != after[parameter][layer]
                assert moved.any(), f"{name}: {parameter} {layer} stands still"


def test_finished_stages_are_left_alone(two_stages):
    def contents():
        files = sorted(path for path in two_stages.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != "manifest.json"}

    def no_batches(*_):
        raise AssertionError("a finished stage asks for no data")

    before = contents()
    run(two_stages, STAGE1, STAGE2, make_batches=no_batches)
    assert contents() == before


def test_a_stage_can_run_alone_and_the_next_one_later(two_stages, tmp_path):
    run(tmp_path, STAGE1)
    run(tmp_path, STAGE2)
    assert curve(tmp_path, "stage2") == curve(two_stages, "stage2")
    assert manifest.read(tmp_path)["stages"].keys() == {"stage1", "stage2"}


def test_without_contrastive_losses_a_run_tells_the_next_item_loss_alone(tmp_path):
    plain = stage(train_steps=1, losses=LossConfig(alpha=0, beta=0))
    run(tmp_path, plain)
    (train, validation) = metrics(tmp_path)
    assert train["loss"] == train["nig"] and "tt" not in train
    assert validation.keys() == {"step", "split", "loss", "nig"}


# Names of checkpoints.


@pytest.mark.parametrize("source, step", [("stage1:latest", 4), ("stage2:2", 2)])
def test_a_bare_stage_name_is_looked_up_in_model_dir(two_stages, monkeypatch, tmp_path, source,
                                                     step):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint(two_stages, source)
    assert found == (StageDir(two_stages / source.split(":")[0]), step)


def test_a_directory_is_a_path_as_any_other(two_stages, monkeypatch, tmp_path):
    absolute = find_checkpoint(tmp_path / "elsewhere", f"{two_stages}/stage2:best")
    assert absolute == (StageDir(two_stages / "stage2"), 2)
    monkeypatch.chdir(two_stages.parent)
    relative = find_checkpoint(tmp_path / "elsewhere", f"{two_stages.name}/stage2:best")
    assert relative == absolute
    monkeypatch.chdir(two_stages)
    assert find_checkpoint(tmp_path / "elsewhere", "./stage2:best") == absolute


def test_a_relative_directory_is_not_looked_up_in_model_dir(two_stages, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = f"no checkpoints in {tmp_path}/{two_stages.name}/stage2; stages there: []"
    with pytest.raises(CalrecError, match=re.escape(line)):
        find_checkpoint(two_stages.parent, f"{two_stages.name}/stage2:best")


@pytest.mark.parametrize(
    "source, line",
    [
        ("stage1", "'stage1' names no checkpoint: write 'stage1:best'"),
        (":best", "':best' names no checkpoint"),
        ("", "'' names no checkpoint"),
        ("stage3:best", "'stage3:best': no checkpoints in .*; stages there: ['stage1', 'stage2']"),
        ("stage1:9", "no checkpoint '9' in .*: it holds steps [4]"),
        ("stage1:bets", "no checkpoint 'bets' in"),
        ("stage1:", "no checkpoint '' in"),
    ],
)
def test_an_unknown_name_is_one_line_that_tells_what_there_is(two_stages, source, line):
    with pytest.raises(CalrecError) as error:
        load_params(two_stages, source, shapes().params, NEEDS)
    pattern = ".*".join(map(re.escape, line.split(".*")))
    assert re.search(pattern, str(error.value)) and "\n" not in str(error.value)


def test_a_start_that_cannot_be_had_is_an_error_and_no_fresh_start(tmp_path):
    wrong = dataclasses.replace(STAGE2, init_from="stage1:best")
    with pytest.raises(CalrecError, match="'stage1:best': no checkpoints in"):
        run(tmp_path, wrong)
    assert not (tmp_path / "stage2" / "metrics.jsonl").exists()
    # Nothing was saved, so the mistake can be mended in place.
    with trainer(tmp_path).claimed([dataclasses.replace(wrong, init_from=None)]):
        pass


def test_weights_of_another_vocabulary_are_refused(two_stages, tmp_path):
    source = f"{two_stages}/stage1:best"
    same = load_params(tmp_path, source, shapes().params, NEEDS)
    assert same["embedding"].shape == (64, 16)
    with pytest.raises(CalrecError) as error:
        load_params(tmp_path, source, shapes().params, NEEDS | {"vocabulary": "v2"})
    assert str(error.value) == (
        f"'{source}' was trained with vocabulary = 'v1', this run has 'v2': give both the same, or "
        "other weights"
    )


@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 500.0}, {"activation": "silu"}, {"norm_plus_one": False}, {"norm_eps": 1e-5}],
    ids=str,
)
def test_weights_that_would_mean_something_else_are_refused(two_stages, change):
    """Their tensors have the same shapes, so that nothing else would show it."""
    other = dataclasses.replace(MODEL, **change)
    needs = {"model": other.meaning()}
    ((name, value),) = change.items()
    line = f"was trained with model.{name} = {getattr(MODEL, name)!r}, this run has {value!r}"
    with pytest.raises(CalrecError, match=line):
        load_params(two_stages, "stage1:best", shapes(model=other).params, needs)


def test_how_weights_are_computed_with_may_differ(two_stages):
    other = dataclasses.replace(MODEL, remat="full", dtype="bfloat16")
    needs = {"model": other.meaning()}
    params = load_params(two_stages, "stage1:best", shapes(model=other).params, needs)
    assert params["embedding"].dtype == np.float32


def test_weights_that_say_nothing_of_themselves_are_refused(two_stages, tmp_path):
    shutil.copytree(two_stages / "stage1", tmp_path / "stage1")
    with pytest.raises(CalrecError, match="has no manifest.json, nothing says what it holds"):
        load_params(tmp_path, "stage1:best", shapes().params, NEEDS)


def test_weights_of_another_model_are_refused_with_the_tensor(two_stages):
    wider = shapes(model=dataclasses.replace(MODEL, d_ff=64)).params
    with pytest.raises(CalrecError, match=r"mlp/down/kernel is float32\[2, 32, 16\] there and"):
        load_params(two_stages, "stage1:best", wider, NEEDS)


# What is refused before anything is written.


@pytest.mark.parametrize(
    "chain, changes, line",
    [
        ([], {}, "stages need different names, and at least one"),
        ([STAGE1, STAGE1], {}, r"stages need different names, .*\['stage1', 'stage1'\]"),
        ([STAGE1, dataclasses.replace(STAGE2, batch_size=12)], {"mesh": MeshConfig(8)},
         "stage2: batch_size 12 does not divide over 1 hosts and the mesh's data axis of 8"),
        ([STAGE1], {"mesh": MeshConfig(3)}, "data 3 x model 1 does not fit 8 devices"),
        ([STAGE1], {"mesh": MeshConfig(2, 4), "model": dataclasses.replace(MODEL, d_ff=30)},
         "'mlp' axis of 30 does not divide"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, chain, changes, line
):
    monkeypatch.setattr(stages, "make_mesh", make_mesh)  # all devices
    with pytest.raises(CalrecError, match=line):
        run(tmp_path / "model", *chain, **changes)
    assert not (tmp_path / "model").exists()


def test_another_configuration_of_a_trained_stage_is_refused(two_stages):
    with pytest.raises(CalrecError, match="stage1.train_steps = 4, this run has 5"):
        run(two_stages, dataclasses.replace(STAGE1, train_steps=5))


def test_a_batch_that_breaks_the_contract_is_refused(tmp_path):
    def wrong(of, split, start):
        for batch in trainer(tmp_path).data.batches(of, split, start):
            yield batch | {"domain_ids": batch["domain_ids"].astype(np.int64)}

    with pytest.raises(CalrecError, match="domain_ids is int64"):
        run(tmp_path, STAGE1, make_batches=wrong)


def test_a_mixture_without_validation_examples_is_reported(tmp_path):
    def without(of, split, start):
        batches = trainer(tmp_path).data.batches(of, split, start)
        return iter([]) if split == "validation" else batches

    with pytest.raises(CalrecError, match="random has no validation example"):
        run(tmp_path, STAGE1, make_batches=without)
