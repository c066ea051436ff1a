"""A run from saved arrays, without TensorFlow, SeqIO and TFDS."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest
from cli.chain_test import DOMAINS, SMALL, calrec

ROOT = pathlib.Path(__file__).resolve().parents[2]
ABSENT = ("tensorflow", "seqio", "tfds", "keras", "array_record", "apache_beam", "clu")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Runs a module where only links to the other installed packages are on the path."""
    packages = tmp_path_factory.mktemp("packages")
    for path in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(ABSENT) and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)

    def run(cwd, *argv, code=0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-S", *argv],
            cwd=cwd, env=os.environ | {"PYTHONPATH": f"{ROOT}:{packages}"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.mark.parametrize("module", ["tensorflow", "seqio", "tensorflow_datasets"])
def test_they_are_really_absent(without, tmp_path, module):
    assert "ModuleNotFoundError" in without(tmp_path, "-c", f"import {module}", code=1).stderr


@pytest.mark.slow
def test_train_eval_report_and_recommend_run_and_give_the_same(without, tmp_path):
    store, saved = "runs/quickstart/store", "runs/quickstart/arrays"
    calrec(tmp_path, "synthetic", f"--data_dir={store}", "--users=60", "--target_users=60")
    model = f"{store}/vocabulary.model"
    calrec(
        tmp_path, "vocab", f"--data_dir={store}", f"--domains={','.join(DOMAINS)}", "--size=400",
        f"--out={model}",
    )  # fmt: skip
    quickstart = ["--gin_file=gin/runs/quickstart.gin"]
    output = calrec(tmp_path, "batches", *quickstart, f"--out={saved}").stdout
    assert output.splitlines()[-1] == f"{saved}: give it as DATA_DIR"
    again = calrec(tmp_path, "batches", *quickstart, f"--out={saved}", code=1).stderr
    assert f"error: {saved} is there already" in again

    def ours(*argv, **more):
        return without(tmp_path, "-m", "calrec_jax.cli.main", *argv, **more)

    small = [*quickstart, *SMALL]
    arrays = [f"--gin.DATA_DIR={saved!r}", "--gin.MODEL_DIR='without'"]
    assert "stage2 2/2" in ours("train", *small, *arrays).stderr
    calrec(tmp_path, "train", *small, "--gin.MODEL_DIR='with'")

    def curve(model_dir, stage):
        lines = (tmp_path / model_dir / stage / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if "_per_" not in k} for x in lines]

    for stage in ("stage1", "stage2"):
        assert curve("without", stage) == curve("with", stage) != []
    assert "synthetic_sports test: 5 users" in ours("eval", "--model_dir=without").stdout
    calrec(tmp_path, "eval", "--model_dir=with")
    with_, without_ = (
        (tmp_path / name / "eval" / "test" / "predictions.jsonl").read_text()
        for name in ("with", "without")
    )
    assert with_ == without_ != ""
    assert ours("report", "without").stdout.endswith("report.html\n")

    from calrec_jax.data.store import arrays as saved_arrays

    item = saved_arrays.read_catalogue(tmp_path / saved, "synthetic_sports").item_ids[0]
    (tmp_path / "histories.jsonl").write_text(json.dumps({"history": [item]}) + "\n")
    asked = ["recommend", "--model_dir=without", "--histories=histories.jsonl", "--k=3"]
    assert len(json.loads(ours(*asked).stdout)["items"]) == 3
    # What does need TensorFlow says so in a line.
    (tmp_path / "mine.py").write_text("from calrec_jax.data.registry import register_domain\n")
    other = ["--gin.MODEL_DIR='other'", "--gin.MIXTURE_OR_TASK_MODULE='mine'"]
    missing = ours("train", *small, *other, code=1).stderr.splitlines()[-1]
    assert "a store needs TensorFlow, SeqIO" in missing and "`calrec batches` saved" in missing
