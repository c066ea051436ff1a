"""What an evaluation knows of each split, and the settings that it saves with its predictions."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from trained_run import DOMAIN, bindings, domain, evaluate

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.cli import main as cli
from calrec_jax.configs import load
from calrec_jax.data import vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.eval import sasrec
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.users import sample_users
from calrec_jax.retrieval.bm25 import BM25Config
from calrec_jax.runs import evaluate as evaluations
from calrec_jax.runs.trained_model import TrainedModel
from calrec_jax.text.templates import Template


@pytest.fixture
def change_split(monkeypatch):
    """Makes every target of a split another item."""

    def change(split: str) -> None:
        read = Domain.sequences

        def sequences(self, name):
            users = read(self, name)
            if name != split:
                return users
            ids = self.catalogue.item_ids
            others = [ids[(self.catalogue.index[user.target] + 40) % len(ids)] for user in users]
            return [
                dataclasses.replace(user, item_ids=(*user.history, other))
                for user, other in zip(users, others, strict=True)
            ]

        monkeypatch.setattr(Domain, "sequences", sequences)

    return change


def chosen(model_dir, name: str) -> dict:
    """The weights of 'hybrid' that an evaluation chose, and the predictions it chose them by."""
    more = {"retrieval": "hybrid", "baselines": ["hybrid"], "max_users": None, "seed": 3}
    result = evaluate(model_dir, name, **more)
    folder = model_dir / "eval" / name / "choosing" / DOMAIN
    return {"choices": result["choices"], "texts": (folder / "predictions.jsonl").read_text()}


def test_weights_are_chosen_on_validation_and_not_on_test(model_dir, change_split):
    first = chosen(model_dir, "first")
    predictions = map(json.loads, first["texts"].splitlines())
    targets = {prediction["user_id"]: prediction["target"] for prediction in predictions}
    users = domain(model_dir).sequences("validation")
    drawn = {
        seed: {user.user_id: user.target for user in sample_users(users, 6, seed)}
        for seed in (0, 3)
    }
    assert targets == drawn[3] != drawn[0]
    change_split("test")
    assert chosen(model_dir, "other_test") == first
    change_split("validation")
    other = chosen(model_dir, "other_validation")
    assert other["texts"] != first["texts"]
    assert other["choices"][DOMAIN]["hybrid"] != first["choices"][DOMAIN]["hybrid"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_baselines_see_train_and_validation_whichever_split_is_measured(
    model_dir, monkeypatch, split
):
    arguments = evaluated(
        model_dir, monkeypatch, split=split, bm25={"k1": 1.2, "b": 0.5}, seen="exclude"
    )
    (subject,) = arguments["subjects"]
    sports = domain(model_dir)
    splits = {name: sports.sequences(name) for name in ("train", "validation", "test")}
    assert splits["train"] != splits["validation"] != splits["test"]
    catalogue = sports.catalogue
    assert subject.baseline_data == BaselineData(
        splits["train"], catalogue, splits["validation"], BM25Config(1.2, 0.5), "exclude"
    )
    assert subject.users == splits[split]
    assert subject.texts == [sports.template.render_item(fields) for fields in catalogue.fields]


def evaluated(model_dir, monkeypatch, *more, **changes) -> dict:
    """The arguments of `evaluator.predict_and_measure` in an evaluation."""
    arguments = {}

    def spy(name, subjects, config, directory, settings, progress):
        arguments.update(subjects=subjects, directory=directory, settings=settings)
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(evaluations.evaluator, "predict_and_measure", spy)
        run = load.load_run(model_dir, [*bindings(**changes), *more])
        evaluations.evaluate(run)
    return arguments


def test_the_epoch_of_a_trained_baseline_is_chosen_on_validation(
    small_store, tmp_path, change_split, monkeypatch
):
    trained_on = []

    def train(sequences, validation, catalogue, *_):
        trained_on.append((sequences, validation))
        size = len(catalogue)
        score = lambda histories: np.zeros((len(histories), size))  # noqa: E731
        return sasrec.Trained(1, 9, 0.5, score, {"w": np.zeros(size)})

    monkeypatch.setattr(sasrec, "train", train)
    sports = Domain(DOMAIN, DOMAIN, str(small_store), Template(), vocabularies.byte())
    splits = [sports.sequences(name) for name in ("train", "validation")]

    def result(name: str) -> dict:
        path = tmp_path / name
        paths = [f"--gin.DATA_DIR='{small_store}'", f"--gin.MODEL_DIR='{path}'"]
        assert cli.main(["baseline", *SASREC, *paths]) == 0
        return json.loads((path / "eval" / "test" / "metrics.json").read_text())

    first = result("first")
    change_split("test")
    other = result("other_test")
    assert trained_on == [tuple(splits)] * 2
    assert first["choices"] == other["choices"]
    assert first["baselines"] != other["baselines"]


SASREC = [
    "--gin_file=gin/baselines/sasrec.gin",
    f"--gin.DATASET='{DOMAIN}'",
    "--gin.evaluation.EvaluationConfig.bootstrap_samples=20",
    "--gin.evaluation.EvaluationConfig.baselines=['hybrid']",
]


def test_predictions_are_saved_with_all_that_they_depend_on(model_dir, monkeypatch):
    names = [DOMAIN, "synthetic_office"]
    arguments = evaluated(model_dir, monkeypatch, domains=names)
    run = load.load_run(model_dir, bindings(domains=names))
    step = TrainedModel(run).step
    template = dataclasses.asdict(Template())
    needed = {
        **run.evaluation.prediction_settings(),
        "vocabulary": vocabularies.fingerprint(run.data.vocabulary),
        "step": step,
        "saved": fingerprint(model_dir / "stage2", step),
        "dtype": "float32",
        "task_feature_lengths": {"inputs": 176, "targets": 32},
        "templates": dict.fromkeys(names, template),
    }
    assert arguments["settings"].items() >= needed.items()
    assert arguments["directory"].path == model_dir / "eval" / "test"


def fingerprint(stage_dir: pathlib.Path, step: int) -> str:
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    try:
        return checkpoints.fingerprint(step)
    finally:
        checkpoints.close()
