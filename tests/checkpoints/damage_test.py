"""A checkpoint with a file that is empty, cut or missing: one line, or the right values."""

from __future__ import annotations

import contextlib
import shutil
import threading

import jax
import numpy as np
import pytest
from checkpoints.manager_test import (
    assert_equal_to_the_bit,
    make_state,
    run_script,
    shapes_of,
)

from calrec_jax.checkpoints import damage, streamed
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import MeshConfig

ONE = MeshConfig(8, 1)
# Larger than what TensorStore writes in line.
LARGE = {"large": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
ARRAYS = ("params", "optimizer")
NEEDED = [
    *("_CHECKPOINT_METADATA", "metrics/metrics", "position/metadata"),
    *(f"{item}/{name}" for item in ARRAYS for name in ("_METADATA", "manifest.ocdbt", "d/*")),
]
# What orbax asks for only where it is there, and what one process leaves once all are merged.
OTHER = [
    *("commit_success.txt", "*/commit_success.txt"),
    *(f"{item}/{name}" for item in ARRAYS for name in ("_sharding", "array_metadatas/process_0")),
    *(f"{item}/ocdbt.process_0/{name}" for item in ARRAYS for name in ("manifest.ocdbt", "d/*")),
]
DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "removed": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoints of a stage at its steps 5 and 7, of which 7 is the best."""
    directory = tmp_path_factory.mktemp("whole") / "stage1" / "checkpoints"
    checkpoints = Checkpoints(directory, keep_best=2)
    for step, loss in ((5, 2.0), (7, 1.0)):
        state = make_state(step, ONE, **LARGE)
        checkpoints.save(state, {"batches": step}, {"loss": loss})
    checkpoints.close()
    return directory


@pytest.fixture
def directory(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "stage1" / "checkpoints")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(damage, "_PATIENCE", 0.0)


def files(directory, patterns):
    folder = directory / "checkpoint_7"
    return {path for pattern in patterns for path in folder.glob(pattern)}


def state_of(directory, wanted):
    """Orbax's, as a training goes on with it."""
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        assert checkpoints.resolve("best") == checkpoints.latest_step() == 7
        state, position = checkpoints.restore(7, shapes_of(wanted))
    assert position == {"batches": 7}
    return state


def params_of(directory, wanted):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        params = checkpoints.restore_params(checkpoints.resolve("best"), shapes_of(wanted.params))
    return wanted.replace(params=params)


def streamed_of(directory, wanted):
    """As they are converted."""
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        best = checkpoints.resolve("best")
    stored = streamed.open_params(directory, best)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(
            stored[jax.tree_util.keystr(path, simple=True, separator="/")].read(), leaf.sharding
        ),
        wanted.params,
    )
    return wanted.replace(params=params)


WAYS = {"state": state_of, "params": params_of, "streamed": streamed_of}


def line_of(read, directory, wanted) -> str | None:
    """What is said of the checkpoint; None where it is read, and that rightly."""
    try:
        found = read(directory, wanted)
    except CalrecError as error:
        return str(error)
    assert_equal_to_the_bit(found, wanted)
    return None


def assert_one_line(line, directory):
    assert "\n" not in line
    assert line.startswith(f"checkpoint 7 in {directory} is damaged (")
    assert line.endswith("): copy it whole, or remove checkpoint_7: the one before it is stage1:5")


def test_every_file_of_a_checkpoint_is_damaged_here(whole):
    every = {path for path in (whole / "checkpoint_7").rglob("*") if path.is_file()}
    assert files(whole, NEEDED + OTHER) == every
    for pattern in NEEDED + OTHER:
        assert files(whole, [pattern]), pattern


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("pattern", NEEDED)
def test_what_is_needed_and_damaged_is_one_line(directory, pattern, how):
    for path in files(directory, [pattern]):
        DAMAGES[how](path)
    wanted = make_state(7, ONE, **LARGE)
    line = line_of(state_of, directory, wanted)
    assert_one_line(line, directory)
    # Parameters alone need less: what is read then is right.
    for read in (params_of, streamed_of):
        line = line_of(read, directory, wanted)
        assert line is not None or not pattern.startswith("params")
        if line is not None:
            assert_one_line(line, directory)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("pattern", OTHER)
def test_what_is_not_needed_is_one_line_or_the_right_values(directory, pattern, how):
    for path in files(directory, [pattern]):
        DAMAGES[how](path)
    for read in WAYS.values():
        line = line_of(read, directory, make_state(7, ONE, **LARGE))
        if line is not None:
            assert_one_line(line, directory)


@pytest.mark.parametrize("item", ["", *ARRAYS, "position", "metrics"])
def test_a_folder_that_is_missing_or_empty_is_one_line(directory, item):
    folder = directory / "checkpoint_7" / item
    wanted = make_state(7, ONE, **LARGE)
    shutil.rmtree(folder)
    if item:
        assert_one_line(line_of(state_of, directory, wanted), directory)
    folder.mkdir()
    with pytest.raises(CalrecError, match="is damaged"):
        Checkpoints(directory, read_only=True).restore(7, shapes_of(wanted))


@pytest.mark.parametrize(
    ("pattern", "how", "what"),
    [
        ("params/_METADATA", "emptied", "params/_METADATA is empty"),
        ("params/_METADATA", "cut", "params/_METADATA is no JSON"),
        ("params/_METADATA", "removed", "params/_METADATA is missing"),
        ("optimizer/_sharding", "emptied", "optimizer/_sharding is empty"),
        ("optimizer/manifest.ocdbt", "emptied", "optimizer/manifest.ocdbt is empty"),
        ("metrics/metrics", "cut", "metrics/metrics is no JSON"),
        ("_CHECKPOINT_METADATA", "removed", "_CHECKPOINT_METADATA is missing"),
    ],
)
def test_the_file_is_named(directory, pattern, how, what):
    DAMAGES[how](directory / "checkpoint_7" / pattern)
    line = line_of(state_of, directory, make_state(7, ONE, **LARGE))
    assert f"is damaged ({what}): copy it whole" in line


def test_what_to_do_does_help(directory):
    DAMAGES["emptied"](directory / "checkpoint_7" / "metrics" / "metrics")
    shutil.rmtree(directory / "checkpoint_7")
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        assert checkpoints.resolve("best") == checkpoints.latest_step() == 5


def test_a_checkpoint_that_is_just_being_removed_is_none(directory, monkeypatch):
    monkeypatch.setattr(damage, "_PATIENCE", 30.0)
    DAMAGES["removed"](directory / "checkpoint_7" / "metrics" / "metrics")
    threading.Timer(0.2, lambda: shutil.rmtree(directory / "checkpoint_7")).start()
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        assert checkpoints.resolve("best") == 5


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damaged_one(directory):
    """As by a training that goes on while its best is evaluated."""
    line = f"^checkpoint 7 in {directory} was removed while it was read, as by a training that has"
    with pytest.raises(CalrecError, match=line), damage.reading(directory, 7):
        shutil.rmtree(directory / "checkpoint_7")
        (directory / "checkpoint_7" / "params").open()


@pytest.mark.parametrize(
    ("kept", "remedy"),
    [
        ("checkpoint_9", "or remove checkpoint_7: none is before it, and stage1:9 comes after it"),
        (None, "there is no other"),
    ],
)
def test_where_none_is_before_it_that_is_said(directory, kept, remedy):
    if kept is None:
        shutil.rmtree(directory / "checkpoint_5")
    else:
        (directory / "checkpoint_5").rename(directory / kept)
    DAMAGES["emptied"](directory / "checkpoint_7" / "params" / "_METADATA")
    with pytest.raises(CalrecError) as error:
        Checkpoints(directory, read_only=True).param_shapes(7)
    assert str(error.value).endswith(f": copy it whole, {remedy}")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_has_no_fingerprint(directory, how):
    DAMAGES[how](directory / "checkpoint_7" / damage.METADATA)
    with pytest.raises(CalrecError, match="checkpoint 7 in .* is damaged"):
        Checkpoints(directory, read_only=True).fingerprint(7)


def test_what_else_goes_wrong_while_it_is_read_stays_what_it_is(directory):
    for error in (MemoryError(), ValueError("a defect"), KeyError("defect"), Exception("other")):
        with pytest.raises(type(error)) as raised, damage.reading(directory, 7):
            raise error
        assert raised.value is error


@pytest.mark.slow
def test_nothing_but_the_line_is_shown(directory):
    """By a process, whose threads may still be reading when the line is shown."""
    for path in files(directory, ["params/d/*", "optimizer/d/*"]):
        DAMAGES["cut"](path)
    script = """
        import pathlib, sys
        from damage_test import *
        wanted = make_state(7, ONE, **LARGE)
        for read in (state_of, params_of):
            assert line_of(read, pathlib.Path(sys.argv[1]), wanted)
    """
    done = run_script(script, directory)
    assert (done.returncode, done.stderr) == (0, "")
