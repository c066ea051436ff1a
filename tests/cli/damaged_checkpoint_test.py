"""Commands that would read a checkpoint which is not whole say so in one line."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import trained_run
from cli.chain_test import calrec

from calrec_jax import locks
from calrec_jax.cli import main as cli


@pytest.fixture
def run(model_dir, tmp_path, monkeypatch):
    """A copy of the run, `model`, the parameters of whose last checkpoint are cut."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_dir, "model")
    (step,) = (tmp_path / "model/stage2/checkpoints").iterdir()
    for path in (step / "params/d").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "histories").write_text('{"history": ["a"]}\n')
    return tmp_path / "model"


@pytest.mark.parametrize(
    "argv",
    [
        ["eval", "--model_dir=model", "--gin.EvaluationConfig.name='new'"],
        ["recommend", "--model_dir=model", "--histories=histories"],
        ["convert", "--from=model/stage2:best", "--to_hf=hf"],
    ],
    ids=lambda argv: argv[0],
)
def test_commands(run, argv):
    if argv[0] == "eval":
        argv = argv + [f"--gin.{binding}" for binding in trained_run.bindings()]
    line = calrec(run.parent, *argv, code=1).stderr.splitlines()[-1]
    assert line.startswith(f"calrec {argv[0]}: error: checkpoint 2 in {run}/stage2/checkpoints is")
    assert line.endswith("copy it whole, there is no other")


def test_a_stage_that_goes_on_and_one_that_starts_from_it(run, small_store, capfd):
    (stage1,) = (run / "stage1/checkpoints").iterdir()
    shutil.rmtree(run / "stage2/checkpoints")
    (stage1 / "params/manifest.ocdbt").write_bytes(b"")
    data = [f"--gin.DATA_DIR={str(small_store)!r}", "--gin.MODEL_DIR='model'"]
    assert cli.main(["train", *trained_run.TRAIN, *data]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == (
        f"calrec train: error: checkpoint 2 in {run}/stage1/checkpoints is damaged "
        f"(params/manifest.ocdbt is empty): copy it whole, there is no other"
    )


def test_a_later_stages_start_is_known_before_the_first_one_trains(run, small_store, capfd):
    (run / "stage2/checkpoints/checkpoint_2/params/_METADATA").unlink()
    new = [f"--gin.DATA_DIR={str(small_store)!r}", "--gin.MODEL_DIR='new'"]
    start = "--gin.stage2/stages.Stage.init_from='model/stage2:best'"
    assert cli.main(["train", *trained_run.TRAIN, *new, start]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "is damaged (params/_METADATA is missing): copy it whole" in line
    assert not pathlib.Path("new").exists()


def test_a_run_is_evaluated_while_it_is_trained(model_dir):
    with locks.locked(model_dir / "lock", str):
        assert trained_run.evaluate(model_dir, "meanwhile")["n"] == trained_run.SMALL["max_users"]
