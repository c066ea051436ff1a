"""A run without an evaluation, as in the gin file of T5X: commands that need none work."""

from __future__ import annotations

import json
import shutil

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.training.stages import Trainer

RUN = ["--gin_file=gin/runs/quickstart.gin", "--gin.VOCABULARY=@vocabularies.byte()"]
RUN += ["--gin.DATA_DIR='store'", "--gin.MODEL_DIR='model'", "--gin.Run.evaluation=None"]
LINE = (
    "error: Run.evaluation is None, so nothing says how the model is queried: bind it to "
    "@evaluation.EvaluationConfig(), as gin/stages/two_stage.gin does\n"
)


@pytest.fixture
def calrec(small_store, tmp_path, monkeypatch, capfd):
    """Runs a command in a folder with `store`, and `model`, a run whose stages computed nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "run_stage", lambda self, stage: None)
    shutil.copytree(small_store, "store")

    def run(*argv):
        code = cli.main(list(argv))
        return code, *capfd.readouterr()

    assert run("train", *RUN) == (0, "", "")
    return run


def test_it_is_inspected_and_reported(calrec, tmp_path):
    code, out, _ = calrec("inspect", *RUN, "--json")
    assert code == 0 and json.loads(out).keys() == {"stage1", "stage2"}
    assert calrec("report", "model")[0] == 0
    assert "Not evaluated yet" in (tmp_path / "model" / "report.html").read_text()


def test_commands_that_need_one_say_what_to_bind(calrec, tmp_path):
    (tmp_path / "histories").write_text('{"history": ["a"]}\n')
    for argv in (["eval", *RUN], ["eval", "--model_dir=model"],
                 ["recommend", "--model_dir=model", "--histories=histories"]):  # fmt: skip
        assert calrec(*argv) == (1, "", f"calrec {argv[0]}: {LINE}")
