"""MODEL_DIRs of earlier versions of calrec_jax can be used, and give the same results.

0.1.tar.xz holds two stages of six steps, stage2 with adapters (model/), SASRec (sasrec/), the
arrays that they were trained on, two evaluations of the run, and what it recommended. Version 0.1.0
made it.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("0.1")
    with tarfile.open(HERE / "0.1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def there(unpacked, tmp_path):
    """A folder with the content of the archive, which a test may change."""
    return shutil.copytree(unpacked, tmp_path / "0.1")


def calrec(folder, *argv):
    """Runs a command in `folder` on one device, as a user would; returns its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "calrec_jax.cli.main", *argv],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def moved(folder, **more):
    """Bindings of the paths where the folders are now."""
    return [f"--gin.DATA_DIR={str(folder / 'arrays')!r}"] + [
        f"--gin.{k}={v!r}" for k, v in more.items()
    ]


def evaluate(folder, name):
    """Evaluates the run again in its folder `name`."""
    more = ["--gin.EvaluationConfig.name='hybrid'", "--gin.EvaluationConfig.retrieval='hybrid'"]
    more.append("--gin.EvaluationConfig.domain=['shoes', 'tools']")
    calrec(folder, "eval", "--model_dir=model", *moved(folder), *(more if name == "hybrid" else []))
    return read(folder, name)


def read(folder, name, run="model"):
    """(predictions, metrics.json but for the configuration) of an evaluation."""
    path = folder / run / "eval" / name
    metrics = json.loads((path / "metrics.json").read_text())
    del metrics["config"]  # its words differ between versions
    lines = (path / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], metrics


def as_it_was(value):
    """`value` in a form that is equal to the same value with the rounding of another machine."""
    if isinstance(value, dict):
        return {key: as_it_was(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_it_was(inner) for inner in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def test_an_evaluation_that_is_complete_is_measured_anew(there):
    before = read(there, "test")
    assert evaluate(there, "test") == before


def test_an_evaluation_that_lacks_a_user_queries_the_model_for_that_one(there):
    before, metrics = read(there, "hybrid")
    path = there / "model/eval/hybrid/predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    after, again = evaluate(there, "hybrid")
    assert after[:-1] == before[1:] and after[-1] == as_it_was(before[0])
    assert again == as_it_was(metrics)


def test_a_stage_that_was_stopped_goes_on(there):
    shutil.rmtree(there / "model/stage1/checkpoints/checkpoint_6")
    shutil.rmtree(there / "model/stage2")
    files = [there / "model" / name for name in ("stage1/metrics.jsonl", "manifest.json")]
    lines, manifest = (file.read_text() for file in files)
    here = moved(there, MODEL_DIR=str(there / "model"))
    calrec(there, "train", "--gin_file=model/config.gin", *here)
    logged = [
        [json.loads(line) for line in text.splitlines()] for text in (lines, files[0].read_text())
    ]
    for line in (line for lines in logged for line in lines):
        for rate in ("examples_per_second", "tokens_per_second"):
            line.pop(rate, None)
    assert logged[1] == as_it_was(logged[0])
    stages = [json.loads(text)["stages"] for text in (manifest, files[1].read_text())]
    assert stages[0]["stage1"] == stages[1]["stage1"]
    assert (there / "model/stage2/checkpoints/checkpoint_6").is_dir()


def test_recommendations_are_the_same(there):
    output = calrec(
        there,
        "recommend",
        "--model_dir=model",
        "--histories=histories.jsonl",
        "--k=3",
        "--gin.EvaluationConfig.retrieval='dense'",
        *moved(there),
    )
    before = (there / "recommended.jsonl").read_text()
    assert [json.loads(line) for line in output.splitlines()] == [
        as_it_was(json.loads(line)) for line in before.splitlines()
    ]


def test_a_report_is_written(there):
    calrec(there, "report", "model")
    page = (there / "model/report.html").read_text()
    assert "stage2" in page and "hybrid" in page


def test_a_baseline_is_measured_anew_without_training(there):
    before, weights = (
        read(there, "test", "sasrec"),
        there / "sasrec/sasrec/checkpoints/checkpoint_4",
    )
    saved = {path: path.stat().st_mtime_ns for path in weights.rglob("*")}
    calrec(
        there,
        "baseline",
        "--gin_file=sasrec/config.gin",
        *moved(there, MODEL_DIR=str(there / "sasrec")),
    )
    assert read(there, "test", "sasrec") == before
    assert {path: path.stat().st_mtime_ns for path in weights.rglob("*")} == saved
