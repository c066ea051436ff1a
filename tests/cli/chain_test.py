"""The whole chain of commands as users run it, at the smallest size."""

import json
import pathlib
import subprocess
import sys

import pytest
from small_disk import fill, small_disk

DOMAINS = ("synthetic_garden", "synthetic_kitchen", "synthetic_office", "synthetic_sports")
SMALL = [
    "--gin.TRAIN_STEPS=3",
    "--gin.STAGE2_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.stages.Stage.validation_batches=1",
    "--gin.EvaluationConfig.max_users=5",
    "--gin.SamplingConfig.num_samples=2",
    "--gin.SamplingConfig.max_new_tokens=8",
]


def calrec(cwd, *argv, code=0, **more) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "calrec_jax.cli.main", *argv],
        cwd=cwd, capture_output=True, text=True, **more,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_the_chain(tmp_path):
    here = tmp_path
    store = "runs/quickstart/store"
    calrec(here, "synthetic", f"--data_dir={store}", "--users=60", "--target_users=60")
    made = calrec(
        here, "vocab", f"--data_dir={store}", f"--domains={','.join(DOMAINS)}", "--size=400",
        f"--out={store}/vocabulary.model",
    )  # fmt: skip
    assert "pieces, from" in made.stdout

    train = ["train", "--gin_file=gin/runs/quickstart.gin", *SMALL]
    assert "stage2 2/2" in calrec(here, *train).stderr
    model_dir = here / "runs" / "quickstart" / "model"
    assert (model_dir / "config.gin").is_file() and (model_dir / "manifest.json").is_file()
    assert "stage1 " not in calrec(here, *train).stderr  # nothing is left to do
    other = calrec(here, *train, "--gin.DecoderConfig.d_ff=64", code=1)
    assert "was made with model.d_ff" in other.stderr.splitlines()[-1]

    # From here on, from another directory, with MODEL_DIR alone, after a move.
    moved = here / "moved"
    model_dir.rename(moved)
    away = tmp_path / "away"
    away.mkdir()
    table = calrec(away, "eval", "--model_dir=../moved").stdout
    assert "synthetic_sports test: 5 users" in table
    metrics = json.loads((moved / "eval" / "test" / "metrics.json").read_text())
    assert metrics["n"] == 5
    page = calrec(away, "report", "../moved").stdout.splitlines()[-1]
    assert pathlib.Path(away, page).is_file()

    prediction = json.loads((moved / "eval/test/predictions.jsonl").read_text().splitlines()[0])
    # The store has moved, too.
    (here / store).rename(here / "elsewhere")
    gone = calrec(away, "recommend", "--model_dir=../moved", "--histories=-", input="{}", code=1)
    assert "no SentencePiece model at" in gone.stderr.splitlines()[-1]
    there = ["--gin.DATA_DIR='../elsewhere'"]
    there += ["--gin.VOCABULARY_PATH='../elsewhere/vocabulary.model'"]
    lines = [{"user_id": "u", "history": [prediction["target"]]}, {"history": ["none"]}]
    answer = calrec(
        away, "recommend", "--model_dir=../moved", "--histories=-", "--k=3", *there,
        input="\n".join(map(json.dumps, lines)), code=1,
    )  # fmt: skip
    (answered,) = map(json.loads, answer.stdout.splitlines())
    assert answered["user_id"] == "u" and len(answered["items"]) == 3
    assert "line 2: synthetic_sports has no item 'none'" in answer.stderr


@pytest.mark.slow
def test_a_full_disk_ends_training_in_one_line_and_loses_nothing(tmp_path):
    store = "runs/quickstart/store"
    calrec(tmp_path, "synthetic", f"--data_dir={store}", "--users=60", "--target_users=60")
    train = ["train", "--gin_file=gin/runs/quickstart.gin", "--gin.VOCABULARY=@vocabularies.byte()"]
    train += [*SMALL, "--gin.MODEL_DIR='disk/model'", "--gin.stages.Stage.validate_period=1"]

    def checkpoints() -> dict[str, bytes]:
        steps = (disk / "model").glob("stage1/checkpoints/checkpoint_*[0-9]")
        return {p.name: p.read_bytes() for step in steps for p in step.rglob("*") if p.is_file()}

    with small_disk(tmp_path / "disk", 96 * 1024) as disk:
        calrec(tmp_path, *train, "--gin.STAGE1_STEPS=2", "--gin.STAGES=[@stage1/stages.Stage()]")
        saved = checkpoints()
        filler = fill(disk, free=2**20)
        more = ["--gin.STAGES=[@stage1/stages.Stage(), @stage2/stages.Stage()]"]
        full = calrec(tmp_path, *train, "--gin.STAGE1_STEPS=2", *more, code=1)
        line = full.stderr.splitlines()[-1]
        assert line.startswith("calrec train: error: no space left on the disk of ")
        assert "Traceback" not in full.stderr and saved and checkpoints() == saved
        filler.unlink()
        assert "stage2 2/2" in calrec(tmp_path, *train, "--gin.STAGE1_STEPS=2", *more).stderr
        assert checkpoints() == saved


@pytest.mark.slow
def test_mistakes_are_reported_before_anything_is_trained(tmp_path):
    train = [
        "train",
        "--gin_file=gin/runs/quickstart.gin",
        "--gin.VOCABULARY=@vocabularies.byte()",
    ]
    missing = calrec(tmp_path, *train, code=1).stderr.splitlines()[-1]
    assert missing.startswith("calrec train: error: no dataset of 'synthetic_")
    unknown = calrec(tmp_path, *train, "--gin.MIXTURE_OR_TASK_NAME='synthetic_al'", code=1)
    assert "did you mean 'synthetic_all'?" in unknown.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
