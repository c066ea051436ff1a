"""Two processes of four devices train as one of eight does, and a run may go on with another
number of processes."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest
from training import worker
from training.small_run import curve, metrics, random_batch

from calrec_jax import locks

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
TWO = [str(ROOT / "launch" / "local.sh"), "--processes=2", "--devices=4", "--"]
STAGES = [
    ("stage1", {"train_steps": 12, "validate_period": 5, "save_period": 4}),
    ("stage2", {"train_steps": 3, "validate_period": 2, "init_from": "stage1:best"}),
]
LASTS = {"stage1": 12, "stage2": 3}
WEIGHTS = "decoder_loss_weights"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """STAGES in one process of eight devices."""
    model_dir = tmp_path_factory.mktemp("processes") / "one"
    worker.finish(worker.start(model_dir, stages=STAGES, devices=8))
    return model_dir


def assert_same_curves(found, expected):
    """Up to float32 rounding: two processes may sum in another order than the devices of one."""
    for stage_name, last in LASTS.items():
        lines, expected_lines = curve(found, stage_name), curve(expected, stage_name)
        assert [line["step"] for line in lines] == [line["step"] for line in expected_lines]
        assert lines[-1]["step"] == last
        for a, b in zip(lines, expected_lines, strict=True):
            assert a.pop("split") == b.pop("split")
            assert a == pytest.approx(b, rel=1e-4)


def test_two_processes_have_the_losses_of_one(one):
    model_dir = one.parent / "two"
    worker.finish(worker.start(model_dir, stages=STAGES, launcher=TWO))
    assert_same_curves(model_dir, one)


def test_sigterm_saves_the_same_step_everywhere_and_one_process_may_go_on(one):
    model_dir = one.parent / "fewer"
    two = worker.start(model_dir, stages=STAGES, launcher=TWO, seconds=0.2)
    worker.wait_for_lines(model_dir, "stage1", 4, two)
    two.terminate()
    stderr = worker.finish(two, 42)
    stopped = metrics(model_dir)[-1]["step"]
    assert stopped < LASTS["stage1"]
    assert stderr.count(f"stopped after step {stopped}, saved") == 2
    worker.finish(worker.start(model_dir, stages=STAGES, devices=8))
    assert_same_curves(model_dir, one)


def test_a_killed_process_ends_its_peer_and_both_go_on(one):
    model_dir = one.parent / "killed"
    two = worker.start(model_dir, stages=STAGES, launcher=TWO, kill_at=9)
    worker.finish(two, 137)
    assert metrics(model_dir)[-1]["step"] <= 9
    worker.finish(worker.start(model_dir, stages=STAGES, launcher=TWO))
    assert_same_curves(model_dir, one)


def test_all_processes_report_who_trains_there_already(tmp_path):
    with locks.locked(tmp_path / "lock", str):
        two = worker.start(tmp_path, stages=STAGES, launcher=TWO)
        stderr = worker.finish(two, 1)
    assert stderr.count(f"process {os.getpid()} on host") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_all_processes_stop_at_a_nan_loss_each_with_its_rows(tmp_path):
    two = worker.start(tmp_path, stages=STAGES, launcher=TWO, nan_at=5)
    stderr = worker.finish(two, 1)
    assert stderr.count("stage1 stopped at step 6: ") == 2
    assert stderr.count("the last good checkpoint is stage1:5") == 2
    halves = [np.load(tmp_path / "stage1" / f"diverged_6_process_{n}.npz") for n in (0, 1)]
    for name, whole in random_batch(5).items():
        found = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(np.isnan(found), (found != 0) & (name == WEIGHTS))
        if name != WEIGHTS:
            np.testing.assert_array_equal(found, whole)


def test_all_processes_wait_while_the_lock_of_another_machine_is_watched(tmp_path):
    """For longer than JAX's collective operations do: half a minute."""
    gone = {"host": "taken-away", "pid": 1, "machine": "another", "token": "another"}
    (tmp_path / "lock").write_text(json.dumps(gone))
    short = [("stage1", {"train_steps": 2})]
    stderr = worker.finish(worker.start(tmp_path, stages=short, launcher=TWO, watch=35))
    assert stderr.count("on host taken-away, which may be gone: waiting 35 s") == 1
    assert metrics(tmp_path)[-1]["step"] == 2
