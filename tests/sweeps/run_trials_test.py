"""Trials of a sweep: what is run, and what is left after a failure, a stop or a kill."""

from __future__ import annotations

import fcntl
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from sweeps.fake_calrec import GRID, Calrec, run, write

from calrec_jax.errors import CalrecError
from calrec_jax.sweeps import results, sweep_file
from calrec_jax.sweeps.run_trials import commands, run_trials


def states(sweep, tmp_path) -> dict[str, str]:
    return {r.trial.id: r.state for r in results.read_results(sweep, tmp_path / "sweep")}


def test_every_trial_is_trained_and_evaluated_in_turn(grid, ids, tmp_path):
    calrec = Calrec()
    assert run(grid, tmp_path / "sweep", calrec) == 0
    assert calrec.calls == [(command, i) for i in ids for command in ("train", "eval")]
    assert set(states(grid, tmp_path).values()) == {"finished"}
    assert (tmp_path / "sweep" / ids[0] / "log.txt").read_text() == "train speaks\neval speaks\n"


def test_arguments_of_a_trial(grid, tmp_path):
    assert commands(grid, grid.trials[0], tmp_path / "x") == {
        "train": [
            "--gin_file=a.gin",
            "--gin.BATCH_SIZE=4",
            "--gin.losses.LossConfig.alpha=0",
            "--gin.TRAIN_STEPS=10",
            f"--gin.MODEL_DIR='{tmp_path}/x'",
        ],
        "eval": [
            f"--model_dir={tmp_path}/x",
            "--gin.EvaluationConfig.split='validation'",
            "--gin.EvaluationConfig.name=None",
        ],
    }


def test_finished_trials_are_left_as_they_are(grid, tmp_path):
    run(grid, tmp_path / "sweep", Calrec())
    again = Calrec()
    assert run(grid, tmp_path / "sweep", again) == 0
    assert again.calls == []


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_failing_trial_is_recorded_and_the_others_go_on(grid, ids, tmp_path, command):
    lines = []
    calrec = Calrec(codes={(command, ids[1]): 3})
    code = run_trials(grid, tmp_path / "sweep", calrec, on_event=lines.append)
    assert code == 1
    assert states(grid, tmp_path) == {i: "failed" if i == ids[1] else "finished" for i in ids}
    (failed,) = [line for line in lines if line.startswith("failed")]
    assert ids[1] in failed and f"{command} speaks" in failed and "exit_code 3" in failed
    again = Calrec()
    assert run(grid, tmp_path / "sweep", again) == 0
    assert again.calls == [("train", ids[1]), ("eval", ids[1])]


def test_a_stopped_trial_ends_the_sweep(grid, ids, tmp_path):
    calrec = Calrec(codes={("train", ids[1]): 42})
    assert run(grid, tmp_path / "sweep", calrec) == 42
    assert calrec.calls[-1] == ("train", ids[1])
    assert [states(grid, tmp_path)[i] for i in ids] == ["finished", "stopped", "waiting", "waiting"]
    assert run(grid, tmp_path / "sweep", Calrec()) == 0


def test_a_killed_sweep_goes_on(grid, ids, tmp_path):
    with pytest.raises(SystemExit):
        run(grid, tmp_path / "sweep", Calrec(codes={("eval", ids[1]): SystemExit(9)}))
    with (tmp_path / "sweep" / "trials.jsonl").open("a") as file:
        file.write('{"event": "fini')  # torn by the kill
    assert states(grid, tmp_path)[ids[1]] == "begun"
    again = Calrec()
    assert run(grid, tmp_path / "sweep", again) == 0
    assert again.calls == [(command, i) for i in ids[1:] for command in ("train", "eval")]
    assert set(states(grid, tmp_path).values()) == {"finished"}


KILLED = """
import pathlib, sys, time
from calrec_jax.sweeps import sweep_file
sys.path.insert(0, {tests!r})
from sweeps.fake_calrec import Calrec, run
class Slow(Calrec):
    def __call__(self, argv, log):
        if len(self.calls) == 3:
            print("evaluating", flush=True)
            time.sleep(100)
        return super().__call__(argv, log)
run(sweep_file.read({file!r}), pathlib.Path({directory!r}), Slow())
"""


def test_kill_9_loses_the_running_trial_alone(grid, ids, tmp_path):
    code = KILLED.format(
        tests=str(pathlib.Path(__file__).parents[1]),
        file=str(tmp_path / "sweep.yaml"),
        directory=str(tmp_path / "sweep"),
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"evaluating\n"
        with pytest.raises(CalrecError, match=f"{ids[1]} .* is still run by another process"):
            run(grid, tmp_path / "sweep", Calrec())
        process.send_signal(signal.SIGKILL)
    again = Calrec()
    assert run(grid, tmp_path / "sweep", again) == 0
    assert again.calls[0] == ("train", ids[1])
    assert ids[0] not in {i for _, i in again.calls}


def test_what_is_left_of_a_killed_sweep_is_not_disturbed(grid, ids, tmp_path):
    (tmp_path / "sweep" / ids[0]).mkdir(parents=True)
    with (tmp_path / "sweep" / ids[0] / "log.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(CalrecError, match="still run by another process"):
            run(grid, tmp_path / "sweep", Calrec())
    assert run(grid, tmp_path / "sweep", Calrec()) == 0


def test_a_changed_file_only_adds_trials(grid, ids, tmp_path):
    run(grid, tmp_path / "sweep", Calrec())
    more = sweep_file.read(write(tmp_path, GRID.replace("[10, 20]", "[20, 30]")))
    calrec = Calrec()
    assert run(more, tmp_path / "sweep", calrec) == 0
    assert len({i for _, i in calrec.calls}) == 2
    assert len(states(more, tmp_path)) == 6


@pytest.mark.parametrize(
    "change", [("BATCH_SIZE=4", "BATCH_SIZE=8"), ("max}", "max, split: test}")]
)
def test_other_settings_need_another_directory(grid, tmp_path, change):
    run(grid, tmp_path / "sweep", Calrec())
    other = sweep_file.read(write(tmp_path, GRID.replace(*change)))
    with pytest.raises(CalrecError, match="give it a --sweep_dir of its own"):
        run(other, tmp_path / "sweep", Calrec())


def test_several_at_once(grid, ids, tmp_path):
    together, quick = threading.Barrier(4), Calrec()

    def calrec(argv, log):
        together.wait(timeout=60)
        return quick(argv, log)

    assert run(grid, tmp_path / "sweep", calrec, parallel=4) == 0
    assert set(states(grid, tmp_path).values()) == {"finished"}
