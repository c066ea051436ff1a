"""Sweeps: what a file describes, what is run, what is left after a failure, a stop or a kill."""

import csv
import fcntl
import json
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from calrec_jax.cli import sweep as sweep_command
from calrec_jax.configs.gin_config import search_root
from calrec_jax.errors import CalrecError
from calrec_jax.metrics import METRICS
from calrec_jax.sweeps import sweep_file, trials

HEAD = "base_args: [--gin_file=a.gin, --gin.BATCH_SIZE=4]\nmetric: {name: ndcg@10, mode: max}\n"
GRID = HEAD + "grid: {losses.LossConfig.alpha: [0, 0.125], TRAIN_STEPS: [10, 20]}\n"


def write(tmp_path, text) -> pathlib.Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def points(tmp_path, text) -> dict[str, dict[str, str]]:
    return {
        trial.name: dict(trial.overrides) for trial in sweep_file.read(write(tmp_path, text)).trials
    }


def test_grid_is_all_combinations(tmp_path):
    alpha = "losses.LossConfig.alpha"
    assert points(tmp_path, GRID) == {
        "alpha=0, TRAIN_STEPS=10": {alpha: "0", "TRAIN_STEPS": "10"},
        "alpha=0, TRAIN_STEPS=20": {alpha: "0", "TRAIN_STEPS": "20"},
        "alpha=0.125, TRAIN_STEPS=10": {alpha: "0.125", "TRAIN_STEPS": "10"},
        "alpha=0.125, TRAIN_STEPS=20": {alpha: "0.125", "TRAIN_STEPS": "20"},
    }


def test_named_points_of_an_axis(tmp_path):
    text = HEAD + "grid: {loss: {none: {A.a: 0, A.b: 0}, full: {}}, B: [1]}"
    assert points(tmp_path, text) == {
        "none, B=1": {"A.a": "0", "A.b": "0", "B": "1"},
        "full, B=1": {"B": "1"},
    }


def test_zip_and_list(tmp_path):
    zipped = points(tmp_path, HEAD + "zip: {A: [1, 2], B: [x.y, null]}")
    assert list(zipped.values()) == [{"A": "1", "B": "x.y"}, {"A": "2", "B": "None"}]
    listed = points(tmp_path, HEAD + "list: [{name: one, overrides: {s1/A.b: 1}}]")
    assert listed == {"one": {"s1/A.b": "1"}}


def test_values_are_gin_literals(tmp_path):
    text = (
        HEAD
        + """list:
  - name: x
    overrides: {A: '"items"', B: "[@s/S()]", C: 1e-3, D: true, E: {a: 1}, F: [a, 2], G: 2, H: 0.5}
"""
    )
    assert points(tmp_path, text)["x"] == {
        "A": '"items"', "B": "[@s/S()]", "C": "1e-3", "D": "True", "E": "{'a': 1}", "F": "['a', 2]",
        "G": "2", "H": "0.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "not a mapping"),
        ("a: [", "is not YAML in line 1"),
        (GRID + "grids: {}", "unknown key grids: did you mean grid?"),
        (HEAD, "one of grid, zip and list, not none"),
        (GRID + "zip: {A: [1]}", "not grid, zip"),
        (HEAD + "zip: {A: [1, 2], B: [1]}", "different lengths: [1, 2]"),
        (HEAD + "grid: {A: 5}", "the axis A of grid needs a list of values, not 5"),
        (HEAD + "grid: {A: []}", "the axis A of grid needs a list"),
        (HEAD + "grid: [1]", "grid must be a mapping"),
        (HEAD + "list: []", "list describes no trial"),
        (HEAD + "list: [{name: x}]", "an entry of list must be {name, overrides}"),
        (HEAD + "list: [{name: x, overrides: 5}]", "overrides must map"),
        (HEAD + "grid: {A: [1, 1]}", "have the same overrides"),
        (HEAD + "grid: {A: [1], x: {y: {A: 2}}}", "two axes set A"),
        (HEAD + "grid: {A b: [1]}", "'A b' is no gin name"),
        (HEAD + "grid: {A: [2020-01-01]}", "is no gin literal"),
        (HEAD + "grid: {MODEL_DIR: [a]}", "overrides set MODEL_DIR"),
        (GRID.replace("BATCH_SIZE=4", "MODEL_DIR=4"), "base_args set MODEL_DIR"),
        (GRID.replace("[--gin_file=a.gin, --gin.BATCH_SIZE=4]", "x"), "base_args must be a list"),
        (GRID.replace("ndcg@10", "ndgc@10"), "unknown name ndgc@10: did you mean ndcg@10?"),
        (GRID.replace("max}", "most}"), "unknown mode most"),
        (GRID.replace("max}", "max, split: tset}"), "unknown split tset: did you mean test?"),
        (GRID.replace("metric", "metrics"), "unknown key metrics: did you mean metric?"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, line):
    with pytest.raises(CalrecError) as error:
        sweep_file.read(write(tmp_path, text))
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sweep.yaml"))


def test_a_missing_file(tmp_path):
    with pytest.raises(CalrecError, match="cannot read .*none.yaml: No such file"):
        sweep_file.read(tmp_path / "none.yaml")


@hypothesis.given(st.dictionaries(st.text(), st.text(), max_size=5), st.randoms())
def test_an_id_does_not_depend_on_the_order(overrides, random):
    items = list(overrides.items())
    random.shuffle(items)
    assert sweep_file.Trial("a", overrides).id == sweep_file.Trial("b", dict(items)).id


def test_ids_stay_the_same_for_ever():
    assert sweep_file.Trial("x", {"B": "2", "A": "1"}).id == "a192ac763b"


def test_the_ablation_is_the_papers():
    sweep = sweep_file.read(search_root() / "gin/sweeps/ablation.yaml")
    assert len(sweep.trials) == 12
    names = {tuple(trial.name.split(", ")) for trial in sweep.trials}
    stages = ("stage I only", "stage II only", "both stages")
    assert names == {(a, b) for a in stages for b in ("NIG", "+TT", "+UT", "+TT+UT")}


class Calrec:
    """Stands for `calrec`: notes its arguments, and writes what eval writes."""

    def __init__(self, values=None, codes=None):
        self.calls, self.values, self.codes = [], values or {}, codes or {}

    def __call__(self, argv, log) -> int:
        command, *rest = argv
        if command == "train":
            model_dir = pathlib.Path(rest[-1].removeprefix("--gin.MODEL_DIR='").removesuffix("'"))
        else:
            model_dir = pathlib.Path(rest[0].removeprefix("--model_dir="))
        self.calls.append((command, model_dir.name))
        log.write(f"{command} speaks\n".encode())
        code = self.codes.get((command, model_dir.name), 0)
        if isinstance(code, BaseException):
            raise code
        if command == "eval" and code == 0:
            value = self.values.get(model_dir.name, 0.5)
            metrics = {
                name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name in METRICS
            }
            path = model_dir / "eval" / "validation" / "metrics.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"metrics": metrics}))
        return code


@pytest.fixture
def grid(tmp_path):
    return sweep_file.read(write(tmp_path, GRID))


@pytest.fixture
def ids(grid):
    return [trial.id for trial in grid.trials]


def run(sweep, tmp_path, calrec, **more) -> int:
    return trials.run(sweep, tmp_path / "sweep", calrec, told=lambda line: None, **more)


def states(sweep, tmp_path) -> dict[str, str]:
    return {r.trial.id: r.state for r in trials.results(sweep, tmp_path / "sweep")}


def test_every_trial_is_trained_and_evaluated_in_turn(grid, ids, tmp_path):
    calrec = Calrec()
    assert run(grid, tmp_path, calrec) == 0
    assert calrec.calls == [(command, i) for i in ids for command in ("train", "eval")]
    assert set(states(grid, tmp_path).values()) == {"finished"}
    assert (tmp_path / "sweep" / ids[0] / "log.txt").read_text() == "train speaks\neval speaks\n"


def test_arguments_of_a_trial(grid, tmp_path):
    commands = trials.commands(grid, grid.trials[0], tmp_path / "x")
    assert commands == {
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
    run(grid, tmp_path, Calrec())
    again = Calrec()
    assert run(grid, tmp_path, again) == 0
    assert again.calls == []


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_failing_trial_is_recorded_and_the_others_go_on(grid, ids, tmp_path, command):
    lines = []
    code = trials.run(
        grid, tmp_path / "sweep", Calrec(codes={(command, ids[1]): 3}), told=lines.append
    )
    assert code == 1
    assert states(grid, tmp_path) == {i: "failed" if i == ids[1] else "finished" for i in ids}
    (failed,) = [line for line in lines if line.startswith("failed")]
    assert ids[1] in failed and f"{command} speaks" in failed and "exit_code 3" in failed
    again = Calrec()
    assert run(grid, tmp_path, again) == 0
    assert again.calls == [("train", ids[1]), ("eval", ids[1])]


def test_a_stopped_trial_ends_the_sweep(grid, ids, tmp_path):
    calrec = Calrec(codes={("train", ids[1]): 42})
    assert run(grid, tmp_path, calrec) == 42
    assert calrec.calls[-1] == ("train", ids[1])
    assert [states(grid, tmp_path)[i] for i in ids] == ["finished", "stopped", "waiting", "waiting"]
    assert run(grid, tmp_path, Calrec()) == 0


def test_a_killed_sweep_goes_on(grid, ids, tmp_path):
    with pytest.raises(SystemExit):
        run(grid, tmp_path, Calrec(codes={("eval", ids[1]): SystemExit(9)}))
    with (tmp_path / "sweep" / "trials.jsonl").open("a") as file:
        file.write('{"event": "fini')  # torn by the kill
    assert states(grid, tmp_path)[ids[1]] == "begun"
    again = Calrec()
    assert run(grid, tmp_path, again) == 0
    assert again.calls == [(command, i) for i in ids[1:] for command in ("train", "eval")]
    assert set(states(grid, tmp_path).values()) == {"finished"}


KILLED = """
import pathlib, sys, time
from calrec_jax.sweeps import sweep_file, trials
sys.path.insert(0, {tests!r})
from sweep_test import Calrec
class Slow(Calrec):
    def __call__(self, argv, log):
        if len(self.calls) == 3:
            print("evaluating", flush=True)
            time.sleep(100)
        return super().__call__(argv, log)
trials.run(sweep_file.read({file!r}), pathlib.Path({directory!r}), Slow(), told=lambda line: None)
"""


def test_kill_9_loses_the_running_trial_alone(grid, ids, tmp_path):
    code = KILLED.format(
        tests=str(pathlib.Path(__file__).parent),
        file=str(tmp_path / "sweep.yaml"),
        directory=str(tmp_path / "sweep"),
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"evaluating\n"
        with pytest.raises(CalrecError, match=f"{ids[1]} .* is still run by another process"):
            run(grid, tmp_path, Calrec())
        process.send_signal(signal.SIGKILL)
    again = Calrec()
    assert run(grid, tmp_path, again) == 0
    assert again.calls[0] == ("train", ids[1])
    assert ids[0] not in {i for _, i in again.calls}


def test_what_is_left_of_a_killed_sweep_is_not_disturbed(grid, ids, tmp_path):
    (tmp_path / "sweep" / ids[0]).mkdir(parents=True)
    with (tmp_path / "sweep" / ids[0] / "log.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(CalrecError, match="still run by another process"):
            run(grid, tmp_path, Calrec())
    assert run(grid, tmp_path, Calrec()) == 0


def test_a_changed_file_only_adds_trials(grid, ids, tmp_path):
    run(grid, tmp_path, Calrec())
    more = sweep_file.read(write(tmp_path, GRID.replace("[10, 20]", "[20, 30]")))
    calrec = Calrec()
    assert run(more, tmp_path, calrec) == 0
    assert len({i for _, i in calrec.calls}) == 2
    assert len(states(more, tmp_path)) == 6


@pytest.mark.parametrize(
    "change", [("BATCH_SIZE=4", "BATCH_SIZE=8"), ("max}", "max, split: test}")]
)
def test_other_settings_need_another_directory(grid, tmp_path, change):
    run(grid, tmp_path, Calrec())
    other = sweep_file.read(write(tmp_path, GRID.replace(*change)))
    with pytest.raises(CalrecError, match="give it a --sweep_dir of its own"):
        run(other, tmp_path, Calrec())


def test_several_at_once(grid, ids, tmp_path):
    together, quick = threading.Barrier(4), Calrec()

    def calrec(argv, log):
        together.wait(timeout=60)
        return quick(argv, log)

    assert run(grid, tmp_path, calrec, parallel=4) == 0
    assert set(states(grid, tmp_path).values()) == {"finished"}


@pytest.mark.parametrize(("mode", "order"), [("max", [2, 0, 1, 3]), ("min", [1, 0, 2, 3])])
def test_results_the_best_first(tmp_path, mode, order):
    sweep = sweep_file.read(write(tmp_path, GRID.replace("max}", f"{mode}}}")))
    ids = [trial.id for trial in sweep.trials]
    values = dict(zip(ids, [0.2, 0.1, 0.3, 0.9], strict=True))
    run(sweep, tmp_path, Calrec(values, {("train", ids[3]): 1}))
    found = trials.results(sweep, tmp_path / "sweep")
    assert [r.trial.id for r in found] == [ids[i] for i in order]
    trials.write_csv(found, tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["id"] for row in rows] == [ids[i] for i in order]
    assert rows[1]["name"] == "alpha=0, TRAIN_STEPS=10"
    assert rows[1]["losses.LossConfig.alpha"] == "0" and rows[1]["TRAIN_STEPS"] == "10"
    assert float(rows[1]["ndcg@10"]) == 0.2
    assert float(rows[1]["ndcg@10 low"]) == pytest.approx(0.1)
    assert float(rows[1]["mrr high"]) == pytest.approx(0.3)
    assert rows[3]["state"] == "failed" and rows[3]["ndcg@10"] == ""


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"metrics": 3}', "[" * 9999], ids=lambda text: text[:3]
)
def test_a_finished_trial_without_metrics_is_told(grid, ids, tmp_path, text):
    run(grid, tmp_path, Calrec())
    path = tmp_path / "sweep" / ids[0] / "eval" / "validation" / "metrics.json"
    path.write_text(text)
    with pytest.raises(CalrecError, match="metrics.json of a finished trial is missing or damaged"):
        trials.results(grid, tmp_path / "sweep")


@hypothesis.given(st.integers(0, 200))
def test_a_torn_journal_gives_all_whole_lines(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("journal")
    journal = trials.Journal(folder)
    for number in range(5):
        journal.append({"id": f"t{number}", "event": "begun"})
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:cut])
    assert len(trials.Journal(folder).last()) == data[:cut].count(b"\n")
    trials.Journal(folder).append({"id": "new", "event": "begun"})
    assert "new" in trials.Journal(folder).last()


@pytest.mark.parametrize("line", ["[]", "3", "{}", "[" * 9999], ids=lambda line: line[:3])
def test_a_damaged_journal_is_told(grid, tmp_path, line):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "trials.jsonl").write_text(f"{line}\n")
    with pytest.raises(CalrecError, match="trials.jsonl is damaged in line 1"):
        run(grid, tmp_path, Calrec())


def test_processes_run_calrec(tmp_path):
    with (tmp_path / "log").open("ab") as log:
        assert sweep_command.Processes()(["--version"], log) == 0
        assert sweep_command.Processes()(["nothing"], log) == 2
    assert (tmp_path / "log").read_text().startswith("calrec 0")


def test_processes_are_told_to_stop(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho running\nexec sleep 100\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    processes = sweep_command.Processes()
    codes = []
    with (tmp_path / "log").open("ab") as log:
        thread = threading.Thread(target=lambda: codes.append(processes(["train"], log)))
        thread.start()
        while not (tmp_path / "log").read_text():
            time.sleep(0.01)
        processes.stop()
        thread.join()
        assert codes == [42]
        assert processes(["train"], log) == 42  # and none is begun afterwards
    assert (tmp_path / "log").read_text() == "running\n"


def test_command_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_command, "Processes", lambda: Fake())

    class Fake(Calrec):
        def stop(self, *_):
            pass

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    file = write(tmp_path, GRID)
    try:
        assert sweep_command.main([str(file), f"--sweep_dir={tmp_path / 'sweep'}"]) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    out = capsys.readouterr().out
    assert "alpha=0.125, TRAIN_STEPS=20" in out and "0.4000 to 0.6000" in out
    assert (tmp_path / "sweep" / "results.csv").is_file()
