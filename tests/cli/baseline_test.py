"""`calrec baseline`: one command from a store to the table and the page."""

from __future__ import annotations

import json
import shutil

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.eval import sasrec
from calrec_jax.eval.baselines import BASELINES

SMALL = [
    "--gin_file=gin/baselines/sasrec.gin",
    "--gin.DATASET='synthetic_sports'",
    "--gin.sasrec.SASRecConfig.num_layers=1",
    "--gin.sasrec.SASRecConfig.d_model=8",
    "--gin.sasrec.SASRecConfig.epochs=2",
    "--gin.evaluation.EvaluationConfig.bootstrap_samples=20",
]


@pytest.fixture(scope="module")
def finished(small_store, tmp_path_factory):
    """(MODEL_DIR of a finished baseline, the command that made it)."""
    model_dir = tmp_path_factory.mktemp("baseline") / "model"
    argv = ["baseline", *SMALL, f"--gin.DATA_DIR='{small_store}'", f"--gin.MODEL_DIR='{model_dir}'"]
    assert cli.main(argv) == 0
    return model_dir, argv


def test_it_writes_what_an_evaluation_writes(finished):
    model_dir, _ = finished
    result = json.loads((model_dir / "eval" / "test" / "metrics.json").read_text())
    assert result["model"] == "sasrec" and result["n"] == result["users"] == 12
    assert list(result["baselines"]) == list(result["paired"]) == list(BASELINES)
    assert result["config"]["checkpoint"].startswith("sasrec, epoch ")
    lines = (model_dir / "eval" / "test" / "predictions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 12 and first["generated"] == []
    assert list(first) == ["user_id", "domain", "target", "generated", "ranked", "rank"]
    log = [json.loads(x) for x in (model_dir / "sasrec" / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in log] == ["train", "validation"] * 2
    assert [line["step"] for line in log] == [log[0]["step"]] * 2 + [2 * log[0]["step"]] * 2


def test_the_report_compares_it(finished, capsys):
    model_dir, _ = finished
    capsys.readouterr()
    assert cli.main(["report", str(model_dir)]) == 0
    table = capsys.readouterr().out
    assert "synthetic_sports test: 12 users" in table
    assert "\nsasrec " in table and "\nsasrec - hybrid " in table
    assert "\nhybrid: " in table and "validation users" in table
    page = (model_dir / "report.html").read_text()
    assert "sasrec: synthetic_<wbr>sports" in page and "<svg" in page
    assert "Generated" not in page and "Retrieved, with scores" in page


def test_the_same_command_again_gives_the_same_and_trains_nothing(finished, monkeypatch):
    model_dir, argv = finished
    files = [model_dir / "eval" / "test" / f"{n}.json" for n in ("metrics", "examples", "settings")]
    before = [file.read_bytes() for file in files]

    def never(*args):
        raise AssertionError("it is trained again")

    monkeypatch.setattr(sasrec, "train", never)
    assert cli.main(argv) == 0
    assert [file.read_bytes() for file in files] == before
    # The saved weights answer as the trained ones did.
    again = "--gin.evaluation.EvaluationConfig.name='again'"
    assert cli.main([*argv, again]) == 0
    lines = [model_dir / "eval" / n / "predictions.jsonl" for n in ("test", "again")]
    assert lines[0].read_bytes() == lines[1].read_bytes()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("RANDOM_SEED=1", "was made with model.seed = 0"),
        ("sasrec.SASRecConfig.d_model=4", "was made with model.d_model = 8"),
        ("DATASET='synthetic_office'", "was made with data.checksums"),
    ],
)
def test_a_folder_of_another_model_is_left_as_it_is(finished, capsys, binding, message):
    model_dir, argv = finished
    files = [path for path in sorted(model_dir.rglob("*")) if path.is_file()]
    before = [path.read_bytes() for path in files]
    capsys.readouterr()
    assert cli.main([*argv, f"--gin.{binding}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.read_bytes() for path in files] == before


def test_damaged_weights_are_named(finished, capsys, tmp_path):
    model_dir, argv = finished
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    (path,) = copy.rglob("weights.npz")
    path.write_bytes(path.read_bytes()[:200])
    argv = [*argv, f"--gin.MODEL_DIR='{copy}'"]
    capsys.readouterr()
    assert cli.main(argv) == 1
    assert f"{path} holds no weights" in capsys.readouterr().err


def test_what_is_required_is_named(capsys):
    assert cli.main(["baseline", "--gin_file=gin/baselines/sasrec.gin"]) == 1
    assert "no value for DATASET, DATA_DIR, MODEL_DIR" in capsys.readouterr().err
