"""Evaluations that go on after an interruption: what is predicted again, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import pytest
from evaluation_case import (
    CATALOGUE,
    SETTINGS,
    TEMPLATE,
    TRAIN,
    USERS,
    VALIDATION,
    FakeModel,
    config,
    lines,
    run,
    texts_of,
    user,
)

from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluator import EvaluatedDomain, predict_and_measure
from calrec_jax.eval.users import sample_users
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.retrieval.bm25 import BM25Config
from calrec_jax.text.items import Catalogue


@pytest.mark.parametrize("torn", ["", '{"user_id": "c", "dom', '{"user_id": "c"}'])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    tmp_path: pathlib.Path, torn: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(killed, FakeModel(dies_after=1))
    assert [line["user_id"] for line in lines(killed)] == ["a", "b"]
    assert not (killed / "metrics.json").exists()
    with (killed / "predictions.jsonl").open("a") as file:
        file.write(torn)
    model, calls = FakeModel(), []
    run(killed, model, progress=lambda *done: calls.append(done))
    assert model.predicted == ["c", "d"]
    assert calls == [(2, 4), (4, 4)]
    for name in ("predictions.jsonl", "metrics.json", "examples.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_evaluation_predicts_nothing_again(tmp_path: pathlib.Path) -> None:
    first, model = run(tmp_path), FakeModel()
    assert run(tmp_path, model) == first
    assert model.predicted == []

    def never() -> None:
        raise AssertionError("the model is loaded for nothing")

    domain = EvaluatedDomain(
        BaselineData(TRAIN, CATALOGUE, VALIDATION), USERS, texts_of(CATALOGUE), never
    )
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["data"]
    again = predict_and_measure(
        "calrec", [domain], config(), EvaluationDir(tmp_path), settings, lambda *_: None
    )
    assert again == first


OTHER_TEXT = Catalogue("toys", CATALOGUE.item_ids, ({"title": "ankle"}, *CATALOGUE.fields[1:]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("checkpoint", {"settings": {"checkpoint": "stage2:400"}}),
        ("vocabulary", {"settings": SETTINGS | {"vocabulary": "other"}}),
        ("epsilon", {"epsilon": 0.1}),
        ("temperature", {"sampling": SamplingConfig(temperature=0.7)}),
        ("k1", {"bm25": BM25Config(k1=1.2)}),
        ("seed", {"seed": 1}),
        ("split", {"split": "validation"}),
        ("seen", {"seen": "exclude"}),
        ("shuffle_history", {"shuffle_history": True}),
        ("template.separator", {"template": dataclasses.replace(TEMPLATE, separator="; ")}),
        ("data.toys.texts", {"catalogue": OTHER_TEXT}),
        ("data.toys.sequences", {"train": [*TRAIN[:-1], user("d", 1, 1, 2)]}),
        ("data.toys.sequences", {"train": [*TRAIN[:-1], user("e", 1, 2)]}),
        ("data.toys.sequences", {"validation": [*VALIDATION[:-1], user("d", 1, 1, 2)]}),
        ("data.toys.sequences", {"validation": [*VALIDATION[:-1], user("e", 1, 2)]}),
    ],
)
def test_predictions_of_other_settings_are_never_mixed(
    tmp_path: pathlib.Path, name: str, change: dict[str, Any]
) -> None:
    run(tmp_path, max_users=2)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    model = FakeModel()
    with pytest.raises(CalrecError, match=f"made with {name} = .*move .* away"):
        run(tmp_path, model, **change)
    assert model.predicted == []
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_how_it_is_measured_may_change_between_runs(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    result = run(tmp_path, FakeModel(dies_after=0), bootstrap_samples=80, users_per_batch=1)
    assert result["config"]["bootstrap_samples"] == 80


@pytest.mark.parametrize("settings", [None, "", "{"])
def test_predictions_that_do_not_say_what_made_them_are_refused(
    tmp_path: pathlib.Path, settings: str | None
) -> None:
    run(tmp_path)
    (tmp_path / "settings.json").unlink()
    if settings is not None:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(CalrecError, match="settings.json is missing or damaged"):
        run(tmp_path)
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"target": "i1"}'])
def test_a_damaged_line_is_named(tmp_path: pathlib.Path, line: str) -> None:
    run(tmp_path)
    path = tmp_path / "predictions.jsonl"
    first, _, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *others]) + "\n")
    with pytest.raises(CalrecError, match="damaged in line 2"):
        run(tmp_path)


def test_a_chosen_weight_is_recorded_where_it_was_chosen_and_nowhere_else(
    tmp_path: pathlib.Path,
) -> None:
    kept = tmp_path / "choosing" / "toys" / "choice.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"weight": 0.3, "ndcg": 0.5, "users": 4}))
    for name, weight in (("bm25", None), ("hybrid", 0.5)):
        result = run(tmp_path, retrieval=name, dense_weight=weight, baselines=[])
        assert result["choices"] == {"toys": {}}
        (tmp_path / "predictions.jsonl").unlink()
    result = run(tmp_path, retrieval="hybrid", baselines=[])
    assert result["choices"]["toys"]["calrec"]["weight"] == 0.3


def test_what_only_the_hybrid_reads_is_no_other_setting_elsewhere(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    nobody = FakeModel(dies_after=0)
    run(tmp_path, nobody, dense_weight=0.5, choosing_users=7)
    settings = [
        config(retrieval="hybrid", **changes).prediction_settings()
        for changes in ({}, {"choosing_users": 7}, {"dense_weight": 0.5})
    ]
    assert settings[0] != settings[1] != settings[2] != settings[0]
    bound = config(retrieval="hybrid", dense_weight=0.5, choosing_users=7)
    assert bound.prediction_settings() == settings[2]


def test_a_larger_sample_includes_a_smaller_one() -> None:
    users = [user(f"u{n:04}", 0, 1, 2) for n in range(2000)]
    sizes = [1, 9, 300, 700, 2000, 2001]  # Python samples few and many in different ways
    samples = [sample_users(users, n, 0) for n in sizes]
    names = [[u.user_id for u in users] for users in samples]
    for smaller, larger in itertools.pairwise(names):
        assert set(smaller) <= set(larger)
    assert [len(sample) for sample in samples] == [1, 9, 300, 700, 2000, 2000]
    assert samples[-1] == sample_users(users, None, 0) == users
    assert all(ids == sorted(ids) for ids in names)
    assert sample_users(users, 9, 0) == samples[1]
    assert sample_users(users, 9, 1) != samples[1]


def test_the_seed_decides_which_users_are_measured(tmp_path: pathlib.Path) -> None:
    predicted = {}
    for seed in range(4):
        model = FakeModel()
        run(tmp_path / str(seed), model, max_users=2, seed=seed)
        predicted[seed] = model.predicted
    names = {seed: [u.user_id for u in sample_users(USERS, 2, seed)] for seed in predicted}
    assert predicted == names and len(set(map(tuple, names.values()))) > 1


def test_a_larger_sample_is_predicted_only_for_the_users_that_it_adds(
    tmp_path: pathlib.Path,
) -> None:
    few, more = FakeModel(), FakeModel()
    assert run(tmp_path, few, max_users=2)["n"] == 2
    assert run(tmp_path, more)["n"] == 4
    assert sorted(few.predicted + more.predicted) == ["a", "b", "c", "d"]
