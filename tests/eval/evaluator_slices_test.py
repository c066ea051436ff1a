"""Figures besides the metrics: slices, measures beyond accuracy, controls, several domains."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from evaluation_case import (
    CATALOGUE,
    TRAIN,
    USERS,
    FakeModel,
    config,
    lines,
    run,
    texts_of,
    user,
)

from calrec_jax import metrics
from calrec_jax.eval.baselines import BASELINES, BaselineData, popularity
from calrec_jax.eval.evaluator import EvaluatedDomain, predict_and_measure
from calrec_jax.eval.retrievers import ScoreRetriever
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence


def test_users_are_sliced_and_each_slice_is_measured_alone(tmp_path: pathlib.Path) -> None:
    day = 86_400
    users = [
        UserSequence("a", "toys", ("i0", "i1", "i2"), (day, 2 * day, 2 * day + 9)),
        UserSequence("b", "toys", ("i3", "i4", "i5"), (day, 2 * day, 3 * day)),
        user("c", 6, 7, 6),
        user("d", 1, 2, 3, 4, 0),
    ]
    result = run(tmp_path, users=users, baselines=["popularity"])
    sizes = {
        slicing: {part: found["n"] for part, found in parts.items()}
        for slicing, parts in result["slices"].items()
    }
    assert sizes == {
        "target": {"warm": 3, "cold": 1},  # nobody bought i5 in training, but in validation
        "purchase": {"new": 3, "repeat": 1},
        "history": {"1-2": 3, "3-4": 1},
        "day": {"same_day": 1, "later_day": 1, "unknown": 2},
        "domain": {"toys": 4},
    }
    alone = run(tmp_path / "alone", users=users[2:3], baselines=["popularity"])
    repeat = result["slices"]["purchase"]["repeat"]
    assert repeat == {"n": 1, "metrics": alone["metrics"], "baselines": alone["baselines"]}
    of_users = json.loads((tmp_path / "slices.json").read_text())
    assert of_users["toys"]["b"] == {
        "target": "cold", "purchase": "new", "history": "1-2", "day": "later_day", "domain": "toys",
    }  # fmt: skip
    first, _, third, _ = json.loads((tmp_path / "examples.json").read_text())
    assert first["dates"] == ["1970-01-02", "1970-01-03", "1970-01-03"]
    assert third["dates"] is None and third["slices"] == of_users["toys"]["c"]
    assert sum(result["histories"]["counts"]) == 4


def test_what_is_recommended_is_measured_beside_the_ranks(tmp_path: pathlib.Path) -> None:
    beyond = run(tmp_path)["beyond_accuracy"]
    assert list(beyond) == ["calrec", *BASELINES]
    for measured in beyond.values():
        assert list(measured) == ["coverage@10", "gini@10", "novelty@10"]
    assert beyond["popularity"]["coverage@10"] == 1.0  # all eight items are among the first ten
    few = run(tmp_path / "few", top_k=1)["beyond_accuracy"]["calrec"]
    assert few["coverage@10"] == 4 / 8  # to each of the users their own target
    # With one event added to each of 8 items there are 16: one of i5, two of each other target.
    assert few["novelty@10"] == (np.log2(16 / 1) + 3 * np.log2(16 / 2)) / 4


def test_items_of_the_history_are_left_out_of_all_rankings(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path, seen="exclude", users=[user("a", 0, 1, 2), user("b", 3, 5, 3)])
    first, second = lines(tmp_path)
    assert {"i0", "i1"}.isdisjoint(item["item_id"] for item in first["ranked"])
    assert first["rank"] == {"low": 1, "high": 1}
    assert len(second["ranked"]) == 6 and second["rank"] == {"low": 7, "high": 8}
    for name in BASELINES:
        assert result["baselines"][name]["recall@5"]["value"] <= 0.5


class Order:
    """Records the histories that it is given."""

    def __init__(self) -> None:
        self.histories = {}

    def __call__(self, histories: list[tuple[str, ...]], names: list[str]) -> list[list[Generated]]:
        self.histories |= dict(zip(names, histories, strict=True))
        return FakeModel()(histories, names)


def test_the_control_gives_histories_in_random_order_and_measures_the_same_users(
    tmp_path: pathlib.Path,
) -> None:
    users = [user("a", *range(8), 2), user("b", *range(8), 5), user("c", 1, 0), user("d", 7, 1, 2)]
    plain, control = Order(), Order()
    config_changes = {"baselines": ["popularity", "co_occurrence"]}
    first = run(tmp_path / "plain", plain, users=users, **config_changes)
    arguments = {"users": users, "shuffle_history": True}
    second = run(tmp_path / "control", control, **arguments, **config_changes)
    assert plain.histories["a"] == users[0].history
    assert sorted(control.histories["a"]) == sorted(plain.histories["a"])
    assert len({plain.histories["a"], control.histories["a"], control.histories["b"]}) == 3
    # Baselines are given the same histories, which popularity does not read.
    assert first["baselines"]["popularity"] == second["baselines"]["popularity"]
    shuffled = [
        dataclasses.replace(u, item_ids=(*control.histories[u.user_id], u.target)) for u in users
    ]
    third = run(tmp_path / "shuffled", users=shuffled, **config_changes)
    assert second["baselines"] == third["baselines"]
    assert second["baselines"]["co_occurrence"] != first["baselines"]["co_occurrence"]
    assert {k: x["n"] for k, x in first["slices"]["purchase"].items()} == {
        k: x["n"] for k, x in second["slices"]["purchase"].items()
    }
    again = Order()
    run(tmp_path / "again", again, **arguments)
    assert again.histories == control.histories


def popular(catalogue: Catalogue, train: list[UserSequence]) -> ScoreRetriever:
    """The popularity baseline as the model."""
    return ScoreRetriever(popularity(BaselineData(train, catalogue)), catalogue, "allow")


def test_several_domains_are_measured_together(tmp_path: pathlib.Path) -> None:
    games = Catalogue("games", CATALOGUE.item_ids[:4], CATALOGUE.fields[:4])
    train = [user("a", 3, 2, domain="games")]
    users = [user("a", 3, 2, 1, domain="games"), user("z", 0, 1, 2, domain="games")]
    progress = []

    def evaluated(
        catalogue: Catalogue, train: list[UserSequence], users: list[UserSequence]
    ) -> EvaluatedDomain:
        data = BaselineData(train, catalogue, train)
        return EvaluatedDomain(data, users, texts_of(catalogue), lambda: popular(catalogue, train))

    domains = [evaluated(CATALOGUE, TRAIN, USERS), evaluated(games, train, users)]
    c = config(domains=["toys", "games"], baselines=["popularity", "hybrid"])
    arguments = (c, EvaluationDir(tmp_path), {}, lambda *done: progress.append(done))
    result = predict_and_measure("popular", domains, *arguments)
    assert progress == [(0, 6), (2, 6), (4, 6), (6, 6)]
    assert (result["n"], result["items"], result["domain"]) == (6, 12, "toys, games")
    assert result["metrics"] == result["baselines"]["popularity"]
    parts = result["slices"]["domain"]
    assert {name: part["n"] for name, part in parts.items()} == {"games": 2, "toys": 4}
    mean = sum(part["n"] * part["metrics"]["mrr"]["value"] for part in parts.values()) / 6
    assert result["metrics"]["mrr"]["value"] == pytest.approx(mean)
    assert list(result["choices"]) == ["toys", "games"]
    # Users of one name in two domains are two users, and items of one id are two items.
    assert [(x["domain"], x["user_id"]) for x in lines(tmp_path)].count(("games", "a")) == 1
    assert result["beyond_accuracy"]["popular"]["coverage@10"] == 1.0
    assert predict_and_measure("popular", domains, *arguments) == result


def test_the_seed_is_that_of_the_intervals(tmp_path: pathlib.Path) -> None:
    users = [user(f"u{n}", n % 8, (n + 1) % 8, n * n % 8) for n in range(30)]
    popularity = popular(CATALOGUE, TRAIN)
    result = run(tmp_path, retriever=popularity, users=users, seed=5, baselines=[])
    ranks = [line["rank"] for line in lines(tmp_path)]
    bounds = tuple(np.array([rank[side] for rank in ranks]) for side in ("low", "high"))

    def intervals(seed: int) -> dict:
        return metrics.summarise({"": bounds}, bootstrap_samples=50, seed=seed)[""]

    assert result["metrics"] == intervals(5) != intervals(0)


def test_domains_share_the_examples_that_are_shown(tmp_path: pathlib.Path) -> None:
    games = Catalogue("games", CATALOGUE.item_ids, CATALOGUE.fields)
    domains = [
        EvaluatedDomain(
            BaselineData([], catalogue),
            [user(f"u{n}", 0, 1, 2, domain=catalogue.domain) for n in range(size)],
            texts_of(catalogue),
            lambda catalogue=catalogue: popular(catalogue, []),
        )
        for catalogue, size in ((CATALOGUE, 60), (games, 70))
    ]
    c = config(domains=["toys", "games"], baselines=[], users_per_batch=100)
    predict_and_measure("popular", domains, c, EvaluationDir(tmp_path), {}, lambda *_: None)
    shown = [x["domain"] for x in json.loads((tmp_path / "examples.json").read_text())]
    assert shown == ["toys"] * 50 + ["games"] * 50
