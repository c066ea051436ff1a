"""The layout of a MODEL_DIR, which one module alone spells."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

from calrec_jax.model_dir import EvaluationDir, ModelDir, StageDir, checkpoint_step, saved_steps

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "calrec_jax"


def test_every_file_has_its_place():
    run = ModelDir("runs/a")
    stage, evaluation = run.stage("stage1"), run.evaluation("test")
    assert {
        *(run.config, run.manifest, run.data, run.lock, run.report, run.index),
        *(stage.checkpoints, stage.metrics, stage.vectors),
        *(stage.diverged(7), stage.diverged(7, process=1)),
        *(evaluation.predictions, evaluation.settings, evaluation.metrics, evaluation.slices),
        *(evaluation.examples, evaluation.lock),
        *(evaluation.choosing("toys").predictions, evaluation.choosing("toys").choice),
    } == {
        pathlib.Path("runs/a") / path
        for path in (
            *("config.gin", "manifest.json", "data.json", "lock", "report.html", "index"),
            *("stage1/checkpoints", "stage1/metrics.jsonl", "stage1/vectors"),
            *("stage1/diverged_7.npz", "stage1/diverged_7_process_1.npz"),
            *("eval/test/predictions.jsonl", "eval/test/settings.json", "eval/test/metrics.json"),
            *("eval/test/slices.json", "eval/test/examples.json", "eval/test/lock"),
            *("eval/test/choosing/toys/predictions.jsonl", "eval/test/choosing/toys/choice.json"),
        )
    }


def test_a_folder_is_a_path_wherever_one_is_needed(tmp_path):
    stage = ModelDir(str(tmp_path)).stage("stage1")
    assert f"{stage}" == str(tmp_path / "stage1") and stage.name == "stage1"
    assert pathlib.Path(stage) == tmp_path / "stage1" == stage.path
    assert stage == StageDir(tmp_path / "stage1") and stage.model_dir == ModelDir(tmp_path)
    assert ModelDir(stage.model_dir) == stage.model_dir
    assert stage != EvaluationDir(stage)


def test_stages_and_evaluations_that_are_there(tmp_path):
    run = ModelDir(tmp_path)
    assert run.stages() == run.evaluations() == []
    for name in ("b", "a"):
        run.stage(name).checkpoints.mkdir(parents=True)
        run.evaluation(name).path.mkdir(parents=True)
    assert run.stages() == [run.stage("a"), run.stage("b")]
    assert run.evaluations() == [run.evaluation("a"), run.evaluation("b")]


def test_checkpoints_that_are_half_written_are_none(tmp_path):
    stage = ModelDir(tmp_path).stage("stage1")
    assert not stage.has_saved()
    names = ("checkpoint_7.orbax-checkpoint-tmp-12", ".making_checkpoint_8", "checkpoint_", "9")
    for name in names:
        (stage.checkpoints / name).mkdir(parents=True)
    assert not stage.has_saved() and saved_steps(stage.checkpoints) == []
    for step in (10, 9):
        (stage.checkpoints / f"checkpoint_{step}").mkdir()
    assert stage.has_saved() and saved_steps(stage.checkpoints) == [9, 10]
    assert checkpoint_step(stage.checkpoints / "checkpoint_10") == 10


# No other module spells these names.


def names_of(*folders: ModelDir | StageDir | EvaluationDir) -> set[str]:
    """The last parts of all paths that these folders have as properties."""
    values = {
        getattr(folder, name)
        for folder in folders
        for name, value in vars(type(folder)).items()
        if isinstance(value, property)
    }
    return {value.name for value in values if isinstance(value, pathlib.Path)}


NAMES = names_of(ModelDir("x"), StageDir("x"), EvaluationDir("x"))
# Words that mean other things too, and are parts of a path only behind a "/".
WORDS = {"eval", "choosing"} | {name for name in NAMES if "." not in name} - {"checkpoints"}


def spelt(source: str) -> Iterator[str]:
    """The names and words that a module spells as parts of paths. Docstrings and messages may."""
    tree = ast.parse(source)
    joined = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        for part in ast.walk(node.right)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if len(text.split()) != 1 or text != text.strip():
                continue
            parts = set(text.split("/"))
            found = parts & (NAMES - WORDS) or (parts & WORDS if id(node) in joined else set())
            if found or text.startswith(("checkpoint_", "diverged_")):
                yield text


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "model_dir.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_other_module_spells_a_part_of_a_model_dir(path):
    of_its_own = {"lock"} if path == PACKAGE / "data" / "store" / "datasets.py" else set()
    assert set(spelt(path.read_text())) <= of_its_own


def test_a_name_that_is_spelt_would_be_seen():
    source = '''
"""Writes metrics.json."""
a = folder / "metrics.json"
b = folder.glob("eval/*/settings.json")
c = folder / "eval" / f"{name}/index"
d = f"checkpoint_{step}"
raise ValueError(f"{folder} has no metrics.json: run `calrec eval`")
print("eval", "index", name="vectors")
'''
    assert set(spelt(source)) == {
        *("metrics.json", "eval/*/settings.json", "eval", "/index", "checkpoint_")
    }


def test_the_names_are_those_of_the_layout():
    assert {"checkpoints", "metrics.jsonl", "predictions.jsonl", "config.gin", "lock"} <= NAMES
    assert WORDS == {"eval", "choosing", "lock", "index", "vectors"}
