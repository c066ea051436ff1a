"""The weight of the towers: chosen on validation, kept, and gone on with when interrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_case import CATALOGUE, TEMPLATE, WORDS, config, said, user, writer

from calrec_jax import metrics
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.errors import CalrecError
from calrec_jax.eval import hybrid
from calrec_jax.eval.retrievers import DenseRetriever
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.retrieval import fusion

USERS = [user("a", 0, 1), user("b", 3, 4), user("c", 6, 7), user("d", 1, 2), user("e", 2, 5)]
ITEMS = np.random.default_rng(0).normal(size=(8, 3))


class Writer:
    """Says the item after the last one to some users, and the last one to others."""

    def __init__(self, dies_after: int | None = None):
        self.asked, self._left = [], dies_after

    def __call__(self, histories, names):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = self._left and self._left - 1
        self.asked += names
        places = [CATALOGUE.index[history[-1]] for history in histories]
        return [
            said((f"Title: {WORDS[place + (name in 'ab')]}", -1.5))
            for place, name in zip(places, names, strict=True)
        ]


def dense() -> DenseRetriever:
    def embed(histories):
        return ITEMS[[CATALOGUE.index[history[-1]] for history in histories]]

    return DenseRetriever(embed, DenseIndex(ITEMS), CATALOGUE, "allow")


def choose(directory, model=None, users=USERS, settings=None, told=None):
    texts = writer(model or Writer(), config(), CATALOGUE, TEMPLATE)
    return hybrid.choose_dense_weight(
        texts,
        dense(),
        users,
        CATALOGUE,
        EvaluationDir(directory),
        settings or {"step": 3},
        batch_size=2,
        progress=lambda *done: told is not None and told.append(done),
    )


def test_the_weight_is_that_of_the_best_ndcg_on_these_users(tmp_path):
    told = []
    choice = choose(tmp_path, told=told)
    assert told == [(2, 5), (4, 5), (5, 5)]
    histories = [u.history for u in USERS]
    texts = writer(Writer(), config(), CATALOGUE, TEMPLATE)
    a = texts.scores(texts.generate(histories, [u.user_id for u in USERS]), histories)
    b = dense().scores(histories)
    targets = CATALOGUE.places([u.target for u in USERS])

    def ndcg(weight: float) -> float:
        rows = fusion.fuse(a, b, weight, "min_max")
        bounds = np.array([*map(metrics.rank_bounds, rows, targets)])
        return metrics.per_user(*bounds.T)["ndcg@10"].mean()

    gains = [ndcg(weight) for weight in hybrid.WEIGHTS]
    assert len(set(gains)) > 1
    best = int(np.argmax(gains))
    assert choice == hybrid.WeightChoice(hybrid.WEIGHTS[best], pytest.approx(gains[best]), 5)
    assert hybrid.read_choice(EvaluationDir(tmp_path)) == choice


def test_what_was_interrupted_goes_on(tmp_path):
    whole = choose(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "killed", Writer(dies_after=1))
    assert hybrid.read_choice(EvaluationDir(tmp_path / "killed")) is None
    rest, told = Writer(), []
    assert choose(tmp_path / "killed", rest, told=told) == whole
    assert rest.asked == ["c", "d", "e"] and told == [(4, 5), (5, 5)]


def test_texts_of_other_settings_are_not_used(tmp_path):
    choose(tmp_path)
    with pytest.raises(CalrecError, match="made with step = 3, this evaluation has 4"):
        choose(tmp_path, settings={"step": 4})


def test_without_validation_users_a_weight_has_to_be_bound(tmp_path):
    with pytest.raises(CalrecError, match="toys is empty: bind EvaluationConfig.dense_weight"):
        choose(tmp_path, users=[])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({"weight": 1.0}),
        json.dumps({"weight": "a", "ndcg": 0.5, "users": 4}),
        json.dumps({"weight": float("nan"), "ndcg": 0.5, "users": 4}),
        json.dumps({"weight": -1.0, "ndcg": 0.5, "users": 4}),
        json.dumps({"weight": 1.0, "ndcg": 0.5, "users": None}),
    ],
)
def test_a_damaged_choice_is_told(tmp_path, text):
    (tmp_path / "choice.json").write_text(text)
    with pytest.raises(CalrecError, match="choice.json is damaged"):
        hybrid.read_choice(EvaluationDir(tmp_path))
