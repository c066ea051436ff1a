"""T5X's checkpoints without T5X: laid out here by hand, as T5X lays them out."""

from __future__ import annotations

import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.training import manifest, stages, t5x_io

MADE = {
    "versions": {"jax": "1"},
    "model": {"d_model": 4},
    "vocabulary": "byte-01",
    "data": {"template": {"fields": ["title"]}},
    "stages": {"t5x": {"name": "t5x", "train_steps": 7}},
}
PARAMS = {
    "embedding": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layers": {"norm": {"scale": np.full(4, 0.1, np.float32)}},
}


def write(directory, step: int, params=PARAMS):
    """Writes checkpoint_<step>, with one moment of each parameter; returns its path."""
    moments = {"mu": jax.tree.map(np.zeros_like, params)}
    state = {"target": params, "state": {"step": np.int32(step), "param_states": {"0": moments}}}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    with ocp.CheckpointManager(directory, options=options) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
    return str(directory / f"checkpoint_{step}")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    """A checkpoint with its manifest. To be read only."""
    directory = tmp_path_factory.mktemp("t5x")
    manifest.claim(directory, MADE)
    return write(directory, 7)


def shapes(params=PARAMS):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P(*[None] * (x.ndim - 1), "model"))
        ),
        params,
    )


def same(read, params=PARAMS):
    jax.tree.map(np.testing.assert_array_equal, dict(read), params)
    assert jax.tree.structure(read) == jax.tree.structure(params)
    return True


def test_parameters_alone_in_their_shardings(written):
    read = t5x_io.load_params(written, shapes(), {"vocabulary": "byte-01"})
    assert same(read)
    assert jax.tree.map(lambda x: x.sharding, read) == jax.tree.map(lambda x: x.sharding, shapes())


def renamed():
    return {"embedding": PARAMS["embedding"], "layers": {"scale": PARAMS["embedding"]}}


@pytest.mark.parametrize(
    ("params", "needs", "line"),
    [
        (PARAMS, {"vocabulary": "other"}, "vocabulary = 'byte-01', this run has 'other'"),
        (PARAMS, {"model": {"d_model": 8}}, "model.d_model = 4, this run has 8"),
        ({"embedding": PARAMS["embedding"]}, {}, r"layers/norm/scale is float32\[4\], here absent"),
        (renamed(), {}, r"layers/norm/scale is float32\[4\], here absent"),
        (
            PARAMS | {"embedding": np.zeros((3, 2), np.float32)},
            {},
            r"embedding is float32\[3, 4\], here float32\[3, 2\]",
        ),
        (
            PARAMS | {"embedding": np.zeros((3, 4), np.float16)},
            {},
            r"embedding is float32\[3, 4\], here float16\[3, 4\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, params, needs, line):
    with pytest.raises(CalrecError, match=line) as error:
        t5x_io.load_params(written, shapes(params), needs)
    assert "\n" not in str(error.value)


def test_no_such_checkpoint_names_those_that_there_are(written):
    with pytest.raises(CalrecError, match=r"is no checkpoint of T5X.*: \['checkpoint_7'\]"):
        t5x_io.load_params(written.replace("_7", "_8"), shapes(), {})
    with pytest.raises(CalrecError, match="is no checkpoint of T5X"):
        t5x_io.load_params("nowhere", shapes(), {})
    with pytest.raises(CalrecError, match="mount the bucket"):
        t5x_io.load_params("gs://bucket/checkpoint_7", shapes(), {})


def test_without_a_manifest_nothing_says_what_it_holds(tmp_path):
    checkpoint = write(tmp_path / "t5x", 7)
    for read in (
        lambda: t5x_io.load_params(checkpoint, shapes(), {}),
        lambda: t5x_io.to_stage(checkpoint, tmp_path / "model" / "stage2"),
    ):
        with pytest.raises(CalrecError, match="has no manifest.json"):
            read()
    assert not (tmp_path / "model").exists()


def test_a_stage_made_of_it_is_read_as_any_other(written, tmp_path):
    assert t5x_io.to_stage(written, tmp_path / "model" / "stage2") == 7
    needs = {"vocabulary": "byte-01", "model": {"d_model": 4}, "data": MADE["data"]}
    for which in ("stage2:latest", "stage2:7"):
        assert same(stages.load_params(tmp_path / "model", which, shapes(), needs))
    made = manifest.read(tmp_path / "model")
    assert made == MADE | {
        "stages": {"stage2": {"name": "stage2", "train_steps": 7, "t5x_checkpoint": written}}
    }
    assert Checkpoints(tmp_path / "model/stage2/checkpoints", read_only=True).fingerprint(7)


def test_both_stages_go_into_one_model_dir_and_another_model_does_not(written, tmp_path):
    model_dir = tmp_path / "model"
    t5x_io.to_stage(written, model_dir / "stage1")
    t5x_io.to_stage(written, model_dir / "stage2")
    assert manifest.read(model_dir)["stages"].keys() == {"stage1", "stage2"}
    with pytest.raises(CalrecError, match="stage2 has checkpoints already"):
        t5x_io.to_stage(written, model_dir / "stage2")
    manifest.claim(tmp_path / "other", MADE | {"vocabulary": "other"})
    other = write(tmp_path / "other", 3)
    with pytest.raises(CalrecError, match="made with vocabulary = 'byte-01'"):
        t5x_io.to_stage(other, model_dir / "stage3")
    assert not (model_dir / "stage3").exists()


def test_a_stage_made_of_it_has_no_best(written, tmp_path):
    t5x_io.to_stage(written, tmp_path / "model" / "stage2")
    checkpoints = Checkpoints(tmp_path / "model" / "stage2" / "checkpoints", read_only=True)
    assert checkpoints.latest_step() == 7 and not checkpoints.validated(7)
    with pytest.raises(CalrecError, match=r"no checkpoint 'best' .* it holds steps \[7\]"):
        checkpoints.resolve("best")


@pytest.mark.parametrize("file", ["_METADATA", "_sharding", "manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("how", ["emptied", "cut", "removed"])
def test_one_that_is_not_whole_is_one_line_or_read_rightly(written, tmp_path, file, how):
    checkpoint = shutil.copytree(written, tmp_path / "t5x" / "checkpoint_7")
    shutil.copy(pathlib.Path(written).with_name("manifest.json"), checkpoint.parent)
    for path in (checkpoint / "state").glob(file):
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 * (how == "cut")])
    try:
        assert same(t5x_io.load_params(str(checkpoint), shapes(), {}))
        assert file == "_sharding"
    except CalrecError as error:
        assert str(error).startswith(f"{checkpoint} is damaged (") and "\n" not in str(error)
        with pytest.raises(CalrecError, match=f"^{checkpoint} is damaged"):
            t5x_io.to_stage(str(checkpoint), tmp_path / "model" / "stage2")
        assert not (tmp_path / "model").exists()
