"""The examples: the script says what the quickstart's gin files say, and both of them run."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from calrec_jax import load_run
from calrec_jax.cli import main as cli
from calrec_jax.configs import load

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
STORE = "runs/example/store"
DOMAINS = "synthetic_garden,synthetic_kitchen,synthetic_office,synthetic_sports"


@pytest.fixture
def here(small_store, tmp_path, monkeypatch):
    """A working directory with the embedded store, small, and its vocabulary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    shutil.copytree(small_store, tmp_path / STORE)
    out = f"--out={STORE}/vocabulary.model"
    assert cli.main(["vocab", f"--data_dir={STORE}", f"--domains={DOMAINS}", out]) == 0
    return tmp_path


def test_the_example_is_the_quickstart(here):
    import two_stage

    paths = {
        "DATA_DIR": here / STORE,
        "VOCABULARY_PATH": here / STORE / "vocabulary.model",
        "MODEL_DIR": here / "model",
    }
    bindings = [f"{name}={str(path)!r}" for name, path in paths.items()]
    quickstart = load.from_gin(["gin/runs/quickstart.gin"], bindings)
    assert two_stage.make_run(str(here / STORE), str(here / "model")) == quickstart


def execute(code: str, folder: pathlib.Path) -> str:
    """Runs Python in `folder` on one device, as a user would; returns its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FEW = """
import dataclasses
import two_stage

def few(run):
    sampling = dataclasses.replace(run.evaluation.sampling, num_samples=2, max_new_tokens=8)
    evaluation = dataclasses.replace(run.evaluation, max_users=4, sampling=sampling)
    return dataclasses.replace(run, evaluation=evaluation)

make_run = two_stage.make_run
"""


@pytest.mark.slow
def test_the_script_trains_and_prints_a_table(here):
    arguments = [f"--store={STORE}", "--model_dir=model", "--steps", "2", "2"]
    code = f"{FEW}\nimport sys\nsys.argv[1:] = {arguments}\n"
    code += "two_stage.make_run = lambda *args: few(make_run(*args))\ntwo_stage.main()"
    out = execute(code, here)
    assert out.splitlines()[1].startswith("calrec ") and "\nhybrid " in out
    assert load_run(here / "model").evaluation.max_users == 4


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(here):
    notebook = json.loads((EXAMPLES / "two_stage.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    code = "\n".join(cells).replace("(180, 60)", "(2, 2)")
    code = code.replace(
        "make_run(STORE, MODEL_DIR, STEPS)", "few(make_run(STORE, MODEL_DIR, STEPS))"
    )
    out = execute(FEW + code, here)
    assert "stage2: 2 steps on synthetic_sports, from stage1:best" in out
    assert "NDCG@10 0." in out and len(out.splitlines()) > 15
