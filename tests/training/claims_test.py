"""A MODEL_DIR is trained in by one run at a time, and by another once that has ended, however."""

from __future__ import annotations

import json
import signal
import socket

import pytest
from training import worker
from training.small_run import metrics, run, stage, trainer

from calrec_jax import locks
from calrec_jax.errors import CalrecError
from calrec_jax.training import manifest

FIRST = stage(train_steps=2)
OTHER = stage(train_steps=3)


def test_a_second_run_is_refused_before_it_writes_anything(tmp_path):
    with trainer(tmp_path).claimed([FIRST]):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(CalrecError) as error:
            run(tmp_path, OTHER)
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    holder = f"on host {socket.gethostname()} trains in MODEL_DIR {tmp_path}: wait for its end, or"
    assert holder in str(error.value) and "\n" not in str(error.value)
    with trainer(tmp_path).claimed([OTHER]):
        assert manifest.read(tmp_path)["stages"]["stage1"]["train_steps"] == 3


def test_a_run_under_another_host_name_is_followed(tmp_path, monkeypatch, capsys):
    """As a virtual machine that was taken away, and came back as another one."""
    monkeypatch.setattr(locks, "_WATCH_SECONDS", 1.0)
    with trainer(tmp_path).claimed([FIRST]):
        left = (tmp_path / "lock").read_text()
    holder = json.loads(left) | {"host": "taken-away", "machine": "another"}
    (tmp_path / "lock").write_text(json.dumps(holder))
    with trainer(tmp_path).claimed([FIRST]):
        pass
    assert "on host taken-away, which may be gone" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "/proc"])
def test_a_model_dir_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    model_dir = tmp_path / place / "model"
    with pytest.raises(CalrecError, match=f"cannot write MODEL_DIR {model_dir}: "):
        run(model_dir, FIRST)


@pytest.mark.slow
def test_two_processes_at_once_and_one_that_was_killed(tmp_path):
    """The second is refused and leaves no trace; the first one, killed, goes on."""
    model_dir, long = tmp_path / "model", [("stage1", {"train_steps": 8})]
    first = worker.start(model_dir, stages=long, seconds=0.5)
    worker.wait_for_lines(model_dir, "stage1", 2, first)
    second = worker.start(model_dir, stages=[("stage1", {"train_steps": 5})])
    assert f"process {first.pid} on host {socket.gethostname()} trains in" in worker.finish(
        second, 1
    )
    first.send_signal(signal.SIGKILL)
    worker.finish(first, -signal.SIGKILL)
    worker.finish(worker.start(model_dir, stages=long))
    steps = [line["step"] for line in metrics(model_dir, split="train")]
    assert steps == list(range(1, 9))
    assert manifest.read(model_dir)["stages"]["stage1"]["train_steps"] == 8
