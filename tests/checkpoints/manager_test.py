"""Checkpoints: saved whole, restored exactly or refused in one line."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training.state import TrainState

TESTS = pathlib.Path(__file__).resolve().parents[1]
TX = optax.adamw(0.1)


def make_state(step: int, config: MeshConfig = MeshConfig(4, 2), **changes) -> TrainState:
    """Random parameters, split over a mesh, and adamw's state after one update."""
    rng = np.random.default_rng(step)
    mesh = make_mesh(config)
    params = {
        "kernel": rng.normal(size=(8, 16)).astype(np.float32),
        "layers": {"half": rng.normal(size=(16, 8)).astype(jnp.bfloat16)},
        "scale": rng.normal(size=(3,)).astype(np.float32),
    }
    params |= changes
    split = {"kernel": P("data", "model"), "half": P(None, "model"), "scale": P()}
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, NamedSharding(mesh, split.get(path[-1].key, P()))),
        params,
    )
    whole = NamedSharding(mesh, P())
    _, opt_state = jax.jit(TX.update)(params, TX.init(params), params)
    return TrainState(
        step=jax.device_put(jnp.int32(step), whole), params=params, opt_state=opt_state
    )


def shapes_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_equal_to_the_bit(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory, losses: dict[int, float | None], **options) -> Checkpoints:
    """Checkpoints of the steps of `losses`, each with its validation loss or none."""
    checkpoints = Checkpoints(directory, **options)
    for step, loss in losses.items():
        metrics = None if loss is None else {"loss": loss}
        checkpoints.save(make_state(step), {"batches": step}, metrics)
    checkpoints.wait()
    return checkpoints


def steps_on_disk(directory) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint_")) for path in directory.iterdir())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A directory with the checkpoint of step 7."""
    directory = tmp_path_factory.mktemp("one")
    saved(directory, {7: 1.0}).close()
    return directory


@pytest.mark.parametrize("config", [MeshConfig(4, 2), MeshConfig(2, 4), MeshConfig(8, 1)], ids=str)
def test_restored_to_the_bit_on_the_same_and_on_another_mesh(one, config):
    shapes = shapes_of(make_state(0, config))
    state, position = Checkpoints(one, read_only=True).restore(7, shapes)
    assert_equal_to_the_bit(state, make_state(7))
    assert position == {"batches": 7}
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


def test_parameters_alone_can_be_restored(one):
    wanted = make_state(7).params
    found = Checkpoints(one, read_only=True).restore_params(7, shapes_of(wanted))
    assert_equal_to_the_bit(found, wanted)


FLOAT = np.zeros((8, 16), np.float32)


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"kernel": FLOAT[:4]}, "params kernel is float32[8, 16] there and float32[4, 16] here"),
        ({"kernel": FLOAT.T}, "params kernel is float32[8, 16] there and float32[16, 8] here"),
        (
            {"kernel": FLOAT.astype(jnp.bfloat16)},
            "params kernel is float32[8, 16] there and bfloat16[8, 16] here",
        ),
        ({"bias": FLOAT}, "params bias is absent there and float32[8, 16] here"),
        ({"layers": {}}, "params layers/half is bfloat16[16, 8] there and absent here"),
    ],
)
def test_a_tensor_that_differs_is_named_with_both_sides(one, changes, line):
    shapes = shapes_of(make_state(0, **changes))
    checkpoints = Checkpoints(one, read_only=True)
    for restore, wanted in ((checkpoints.restore, shapes),
                            (checkpoints.restore_params, shapes.params)):  # fmt: skip
        with pytest.raises(CalrecError) as error:
            restore(7, wanted)
        assert line in str(error.value) and "checkpoint 7 in" in str(error.value)
        assert "\n" not in str(error.value)


def test_another_optimizer_is_named(one):
    state = make_state(0)
    shapes = shapes_of(state.replace(opt_state=optax.sgd(0.1, momentum=0.9).init(state.params)))
    with pytest.raises(CalrecError, match="does not fit this run: optimizer opt_state/0/count is"):
        Checkpoints(one, read_only=True).restore(7, shapes)


def test_the_best_and_the_latest_stay_and_the_others_go(tmp_path):
    checkpoints = saved(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5, 6: None})
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 6)
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [2, 6]
    again = Checkpoints(tmp_path)
    assert (again.best_step(), again.latest_step()) == (2, 6)


def test_several_of_the_best_stay(tmp_path):
    saved(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: None}, keep_best=2).close()
    assert steps_on_disk(tmp_path) == [2, 3, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, bad):
    checkpoints = saved(tmp_path, {1: 2.0, 2: bad, 3: 1.0, 4: bad, 5: 3.0, 6: bad})
    assert checkpoints.best_step() == 3
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [3, 6]


def test_of_equal_losses_the_newest_is_the_best(tmp_path):
    checkpoints = saved(tmp_path, {1: 1.0, 2: 1.0, 3: 2.0})
    assert checkpoints.best_step() == 2
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [2, 3]


def test_names_of_checkpoints(tmp_path):
    checkpoints = saved(tmp_path, {100: 1.0, 200: 2.0, 300: None})
    found = [checkpoints.resolve(which) for which in ("best", "latest", "300", "100")]
    assert found == [100, 300, 300, 100]


@pytest.mark.parametrize("which", ["200", "bets", "-100", "1e2", "²", ""])
def test_an_unknown_checkpoint_is_named_with_those_there(one, which):
    with pytest.raises(CalrecError) as error:
        Checkpoints(one, read_only=True).resolve(which)
    assert str(error.value) == (
        f"no checkpoint {which!r} in {one}: it holds steps [7]; name one of them, 'best' or "
        "'latest'"
    )


def test_best_is_refused_where_nothing_was_validated(tmp_path):
    checkpoints = saved(tmp_path, {5: None})
    with pytest.raises(CalrecError, match=r"no checkpoint 'best' .* holds steps \[5\]"):
        checkpoints.resolve("best")


def test_losses_can_come_after_the_checkpoint(tmp_path):
    """Told to stop where validation was due: saved without, validated by the next run."""
    checkpoints = saved(tmp_path, {1: 3.0, 2: 1.0, 3: None})
    assert checkpoints.validated(2) and not checkpoints.validated(3)
    checkpoints.add_metrics(3, {"loss": 0.5})
    assert checkpoints.validated(3) and checkpoints.best_step() == 3
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.validated(3) and again.best_step() == 3
    state, _ = again.restore(3, shapes_of(make_state(0)))
    assert_equal_to_the_bit(state, make_state(3))
    again.save(make_state(4), {"batches": 4}, {"loss": 2.0})
    again.close()
    assert steps_on_disk(tmp_path) == [3, 4]


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(tmp_path):
    saved(tmp_path, {3: 1.0}).close()
    half = tmp_path / "checkpoint_4.orbax-checkpoint-tmp"
    (half / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    reader = Checkpoints(tmp_path, read_only=True)
    assert (reader.latest_step(), reader.best_step()) == (3, 3)
    assert half.exists()  # a reader changes nothing
    writer = Checkpoints(tmp_path)
    assert writer.latest_step() == 3
    writer.save(make_state(4), {"batches": 4}, None)
    writer.close()
    assert steps_on_disk(tmp_path) == [3, 4]


def no_space(code=errno.ENOSPC):
    """As TensorStore tells of it."""
    return ValueError(
        f'RESOURCE_EXHAUSTED: Error writing "a/0": Failed to write 2375680 bytes to file 4: '
        f"{os.strerror(code)} [os_error_code='{code}']"
    )


def nested(error):
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("the save failed") from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("method", ["save", "wait_until_finished", "close"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        no_space(),
        no_space(errno.EDQUOT),
        nested(no_space()),
    ],
    ids=["ENOSPC", "EDQUOT", "tensorstore", "tensorstore-quota", "nested"],
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, method, error):
    def fails(*_, **__):
        raise error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, method, fails)
    calls = {
        "save": lambda: checkpoints.save(make_state(1), {"batches": 1}, None),
        "wait_until_finished": checkpoints.wait,
        "close": checkpoints.close,
    }
    with pytest.raises(CalrecError, match=f"no space left on the disk of {tmp_path}") as raised:
        calls[method]()
    assert "\n" not in str(raised.value)


def test_the_same_step_saved_again_has_another_fingerprint(tmp_path):
    found = []
    for name in "ab":
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(make_state(1), {"batches": 1}, None)
        checkpoints.close()
        found.append(checkpoints.fingerprint(1))
        assert Checkpoints(tmp_path / name, read_only=True).fingerprint(1) == found[-1]
    assert found[0] != found[1]


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(1), {"batches": 1}, None)
    checkpoints.wait()
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(make_state(2)))
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(
            "calrec_jax.checkpoints.manager.shutil.disk_usage",
            lambda _, free=free: usage._replace(free=free),
        )
        if fits:
            checkpoints.save(make_state(2), {"batches": 2}, None)
            continue
        with pytest.raises(CalrecError, match=f"no space left on the disk of {tmp_path}: a ch"):
            checkpoints.save(make_state(2), {"batches": 2}, None)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]
    checkpoints.close()
    assert checkpoints.latest_step() == 2


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
        OSError(errno.EACCES, "Permission denied"),
    ],
    ids=["memory", "permission"],
)
def test_other_failures_are_not_taken_for_a_full_disk(tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise error

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(ocp.CheckpointManager, "save", fails)
    with pytest.raises(type(error)) as raised:
        checkpoints.save(make_state(1), {"batches": 1}, None)
    assert raised.value is error


def run_script(script: str, *argv, **options):
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS / 'checkpoints'}:{TESTS.parent}"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, argv)],
        env=environment, capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_restored_to_the_bit_in_a_fresh_process(tmp_path):
    saved(tmp_path, {3: 1.0, 5: 2.0}).close()
    script = """
        import sys
        from manager_test import *
        checkpoints = Checkpoints(sys.argv[1], read_only=True)
        assert checkpoints.resolve("best") == 3 and checkpoints.resolve("latest") == 5
        state, position = checkpoints.restore(5, shapes_of(make_state(0, MeshConfig(1, 8))))
        assert_equal_to_the_bit(state, make_state(5))
        assert position == {"batches": 5}
        params = checkpoints.restore_params(3, shapes_of(make_state(0).params))
        assert_equal_to_the_bit(params, make_state(3).params)
        print("the same")
    """
    done = run_script(script, tmp_path)
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.slow
def test_killed_while_it_saves_the_checkpoint_before_is_there(tmp_path):
    """SIGKILL as soon as the folder of the second save appears."""
    script = """
        import glob, os, signal, sys, threading
        from manager_test import *
        checkpoints = saved(sys.argv[1], {1: 1.0})
        def kill():
            while not glob.glob(sys.argv[1] + "/checkpoint_2*"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
        large = make_state(2, more=np.zeros((64, 1 << 20), np.float32))
        checkpoints.save(large, {"batches": 2}, None)
        checkpoints.wait()
    """
    done = run_script(script, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in tmp_path.glob("checkpoint_2*")] == [
        "checkpoint_2.orbax-checkpoint-tmp"
    ]
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == checkpoints.best_step() == 1
    state, _ = checkpoints.restore(1, shapes_of(make_state(0)))
    assert_equal_to_the_bit(state, make_state(1))
