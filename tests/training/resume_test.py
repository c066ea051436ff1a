"""A run that stops and goes on ends where one that never stopped does, to the bit."""

import signal

import jax
import numpy as np
import pytest
from training import worker
from training.small_run import curve, make_batches, metrics, run, stage
from training.stages_test import restored

from calrec_jax.training.preemption import Preempted

LONG = stage(train_steps=10, validate_period=4, save_period=3)
# For processes: a stage long enough to be stopped in, and one that starts from it.
STAGES = [
    ("stage1", {"train_steps": 24, "validate_period": 10, "save_period": 4}),
    ("stage2", {"train_steps": 3, "validate_period": 2, "init_from": "stage1:best"}),
]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


class Stopped(Exception):
    """In place of a kill."""


def batches_until(last):
    """The batches up to that of step `last`; asked for more, the process 'dies'."""

    def make(of, split, start):
        for n, batch in enumerate(make_batches(of, split, start), start):
            if split == "train" and n == last:
                raise Stopped
            yield batch

    return make


def state(model_dir, stage_name, step):
    saved, position = restored(model_dir, stage_name, step)
    assert position == {"batches": step}
    return jax.tree.map(np.asarray, saved)


def assert_same_run(a, b, stages):
    """The same lines of metrics and the same last state, to the bit; {stage: its last step}."""
    for name, last in stages.items():
        assert curve(a, name) == curve(b, name)
        x, y = state(a, name, last), state(b, name, last)
        assert all(map(np.array_equal, jax.tree.leaves(x), jax.tree.leaves(y)))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """LONG in one go."""
    model_dir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        from calrec_jax.parallel.mesh import make_mesh
        from calrec_jax.training import stages

        only = jax.devices()[:1]
        patch.setattr(stages, "make_mesh", lambda config: make_mesh(config, only))
        run(model_dir, LONG)
    return model_dir


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("stop", [slow(6), 7, slow(8)])
def test_stopped_and_gone_on_equals_straight_on(straight, tmp_path, stop):
    """Stopped where it had just saved, one step later, and where it had just validated."""
    with pytest.raises(Stopped):
        run(tmp_path, LONG, make_batches=batches_until(stop))
    run(tmp_path, LONG)
    assert_same_run(tmp_path, straight, {"stage1": 10})


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("stop", [slow(5), slow(8), 10])
def test_told_to_stop_and_gone_on_equals_straight_on(straight, tmp_path, monkeypatch, stop):
    """In between, where validation is due, and at the last step."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "calrec_jax.training.loop.PreemptionNotice.received",
            lambda self: asked.append(1) or len(asked) == stop,
        )
        with pytest.raises(Preempted, match=f"stopped after step {stop}, saved"):
            run(tmp_path, LONG)
    run(tmp_path, LONG)
    assert_same_run(tmp_path, straight, {"stage1": 10})
    best = min(metrics(straight, split="validation"), key=lambda line: line["loss"])["step"]
    assert restored(tmp_path, "stage1", best)


@pytest.fixture(scope="module")
def straight_process(tmp_path_factory):
    """STAGES in one go, in a process."""
    model_dir = tmp_path_factory.mktemp("processes") / "straight"
    worker.finish(worker.start(model_dir, stages=STAGES))
    return model_dir


LASTS = {"stage1": 24, "stage2": 3}


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(straight_process):
    model_dir = straight_process.parent / "killed"
    for kill_at in (1, 9, 17, 18):
        killed = worker.start(model_dir, stages=STAGES, kill_at=kill_at)
        worker.finish(killed, -signal.SIGKILL)
    worker.finish(worker.start(model_dir, stages=STAGES))
    assert_same_run(model_dir, straight_process, LASTS)


@pytest.mark.slow
def test_killed_from_outside_at_any_moment(straight_process):
    model_dir = straight_process.parent / "killed_outside"
    for lines in (3, 13):
        process = worker.start(model_dir, stages=STAGES, seconds=0.03)
        worker.wait_for_lines(model_dir, "stage1", lines, process)
        process.kill()
        worker.finish(process, -signal.SIGKILL)
    worker.finish(worker.start(model_dir, stages=STAGES))
    assert_same_run(model_dir, straight_process, LASTS)


@pytest.mark.slow
def test_sigterm_loses_nothing(straight_process):
    model_dir = straight_process.parent / "terminated"
    process = worker.start(model_dir, stages=STAGES, seconds=0.2)
    worker.wait_for_lines(model_dir, "stage1", 5, process)
    process.terminate()
    stderr = worker.finish(process, 42)
    stopped = metrics(model_dir)[-1]["step"]
    assert 5 <= stopped < 24 and f"stopped after step {stopped}, saved" in stderr
    state(model_dir, "stage1", stopped)
    worker.finish(worker.start(model_dir, stages=STAGES))
    assert_same_run(model_dir, straight_process, LASTS)
