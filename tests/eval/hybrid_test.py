"""The weight of the towers: chosen on validation, kept, and gone on with when interrupted."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from evaluation_case import CATALOGUE, TEMPLATE, WORDS, config, texts_with, user, writer

from calrec_jax import metrics
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.errors import CalrecError
from calrec_jax.eval import hybrid
from calrec_jax.eval.hybrid import WeightChoice
from calrec_jax.eval.retrievers import DenseRetriever
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.retrieval import fusion
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import UserSequence

USERS = [user("a", 0, 1), user("b", 3, 4), user("c", 6, 7), user("d", 1, 2), user("e", 2, 5)]
ITEMS = np.random.default_rng(0).normal(size=(8, 3))


class Writer:
    """Generates the item after the last one for users a and b, and the last one for others."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.predicted, self._left = [], dies_after

    def __call__(self, histories: list[tuple[str, ...]], names: list[str]) -> list[list[Generated]]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = self._left and self._left - 1
        self.predicted += names
        places = [CATALOGUE.index[history[-1]] for history in histories]
        return [
            texts_with((f"Title: {WORDS[place + (name in 'ab')]}", -1.5))
            for place, name in zip(places, names, strict=True)
        ]


def dense() -> DenseRetriever:
    def embed(histories: list[tuple[str, ...]]) -> np.ndarray:
        return ITEMS[[CATALOGUE.index[history[-1]] for history in histories]]

    return DenseRetriever(embed, DenseIndex(ITEMS), CATALOGUE, "allow")


def choose(
    directory: pathlib.Path,
    model: Writer | None = None,
    users: list[UserSequence] = USERS,
    settings: dict[str, int] | None = None,
    calls: list[Any] | None = None,
) -> WeightChoice:
    texts = writer(model or Writer(), config(), CATALOGUE, TEMPLATE)
    return hybrid.choose_dense_weight(
        texts,
        dense(),
        users,
        CATALOGUE,
        EvaluationDir(directory),
        settings or {"step": 3},
        batch_size=2,
        progress=lambda *done: calls is not None and calls.append(done),
    )


def test_the_weight_is_that_of_the_best_ndcg_on_these_users(tmp_path: pathlib.Path) -> None:
    calls = []
    choice = choose(tmp_path, calls=calls)
    assert calls == [(2, 5), (4, 5), (5, 5)]
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


def test_what_was_interrupted_goes_on(tmp_path: pathlib.Path) -> None:
    whole = choose(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "killed", Writer(dies_after=1))
    assert hybrid.read_choice(EvaluationDir(tmp_path / "killed")) is None
    rest, calls = Writer(), []
    assert choose(tmp_path / "killed", rest, calls=calls) == whole
    assert rest.predicted == ["c", "d", "e"] and calls == [(4, 5), (5, 5)]


def test_texts_of_other_settings_are_not_used(tmp_path: pathlib.Path) -> None:
    choose(tmp_path)
    with pytest.raises(CalrecError, match="made with step = 3, this evaluation has 4"):
        choose(tmp_path, settings={"step": 4})


def test_without_validation_users_a_weight_has_to_be_bound(tmp_path: pathlib.Path) -> None:
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
def test_a_damaged_choice_is_reported(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "choice.json").write_text(text)
    with pytest.raises(CalrecError, match="choice.json is damaged"):
        hybrid.read_choice(EvaluationDir(tmp_path))
