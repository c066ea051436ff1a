"""What evaluation refuses, and the known defects that it does not have."""

from __future__ import annotations

import pathlib
from typing import Any

import bm25s
import numpy as np
import pytest
from evaluation_case import (
    FakeModel,
    config,
    lines,
    run,
    texts_with,
    user,
)

from calrec_jax.errors import CalrecError
from calrec_jax.eval.retrievers import TrieLookup
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([], "no users"),
        ([user("a", 0, 1, 9)], "'i9'"),
        ([user("a", 9, 1, 0)], "'i9'"),
        ([user("a", 0, 1), user("a", 0, 1, 2)], "several sequences"),
    ],
)
def test_users_that_cannot_be_measured_fail_before_anything_is_predicted(
    tmp_path: pathlib.Path, users: list[UserSequence], message: str
) -> None:
    model = FakeModel()
    with pytest.raises(CalrecError, match=message):
        run(tmp_path, model, users=users)
    assert model.batches == []


@pytest.mark.parametrize(
    "change",
    [
        {"split": "train"},
        {"retrieval": "bm26"},
        {"name": "../other"},
        {"name": ""},
        {"domains": []},
        {"domains": ["toys", "toys"]},
        {"seen": "hide"},
        {"dense_weight": -1.0},
        {"choosing_users": 0},
        {"max_users": 0},
        {"bootstrap_samples": 0},
        {"users_per_batch": -1},
        {"top_k": 0},
        {"epsilon": -1e-3},
        {"epsilon": float("nan")},
        {"seed": -1},
        {"name": "a" * 201},
        {"baselines": ["popularity", "hybrid", "popularity"]},
    ],
)
def test_a_bad_configuration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CalrecError, match=f"EvaluationConfig.{next(iter(change))} "):
        config(**change)


def test_log_probabilities_of_nan_stop_the_evaluation(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CalrecError, match="NaN"):
        run(tmp_path, lambda _, names: [texts_with(("drum", float("nan"))) for _ in names])


def test_log_probabilities_of_nan_stop_it_with_a_trie_too() -> None:
    broken = [[Generated("x", float("nan"), items=(1,))]]
    with pytest.raises(CalrecError, match="NaN"):
        list(TrieLookup(3, 1 / 5000).scores(broken))


def test_infinite_log_probabilities_are_no_json(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run(tmp_path, lambda _, names: [texts_with(("drum", -np.inf)) for _ in names])
    assert lines(tmp_path) == []


# Known defects of public re-implementations, as far as they concern evaluation.


def test_a_miss_earns_its_own_reciprocal_rank_and_not_that_of_the_cut(
    tmp_path: pathlib.Path,
) -> None:
    # All eight items match a little, `anchor` least: rank 8, far below the two items of `ranked`.
    texts = [f"toy{' toy' * (7 - n)}" for n in range(8)]
    catalogue = Catalogue.create("toys", {f"i{n}": {"title": t} for n, t in enumerate(texts)})
    result = run(
        tmp_path,
        lambda _, names: [texts_with(("toy", -1.0)) for _ in names],
        users=[user("a", 1, 2, 7)],
        catalogue=catalogue,
        top_k=2,
    )
    (prediction,) = lines(tmp_path)
    assert prediction["rank"] == {"low": 8, "high": 8}
    assert [item["item_id"] for item in prediction["ranked"]] == ["i0", "i1"]
    assert result["metrics"]["mrr"]["value"] == pytest.approx(1 / 8)


def test_a_user_without_any_output_ties_the_whole_catalogue(tmp_path: pathlib.Path) -> None:
    outputs = {
        "a": texts_with(("", -1.0), ("", -2.0)),
        "b": texts_with((" ?! ", -1.0)),
        "c": [],
        "d": [],
    }
    result = run(tmp_path, lambda _, names: [outputs[name] for name in names])
    assert [line["rank"] for line in lines(tmp_path)] == [{"low": 1, "high": 8}] * 4
    assert result["n"] == 4
    assert result["metrics"]["recall@1"]["value"] == pytest.approx(1 / 8)
    assert result["metrics"]["mrr"]["value"] == pytest.approx(np.mean(1 / np.arange(1, 9)))
    assert result["metrics"]["recall@1"]["tie_low"] == 0.0


def test_an_item_of_equal_text_is_no_hit(tmp_path: pathlib.Path) -> None:
    titles = {"i0": "ball", "i1": "red hat", "i2": "red hat", "i3": "shoe"}
    catalogue = Catalogue.create("toys", {i: {"title": title} for i, title in titles.items()})
    result = run(
        tmp_path,
        lambda _, names: [texts_with(("red hat", -1.0)) for _ in names],
        users=[user("a", 0, 3, 2)],
        train=[],
        validation=[user("a", 0, 1)],
        catalogue=catalogue,
    )
    (prediction,) = lines(tmp_path)
    assert prediction["rank"] == {"low": 1, "high": 2}
    recall = result["metrics"]["recall@1"]
    assert (recall["value"], recall["tie_low"], recall["tie_high"]) == (0.5, 0.0, 1.0)


def test_the_catalogue_is_indexed_once_for_all_users_and_baselines(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], bm25s.BM25.index

    def counting(self: bm25s.BM25, *args: list[list[str]], **kwargs: bool) -> None:
        built.append(self)
        return build(self, *args, **kwargs)

    monkeypatch.setattr(bm25s.BM25, "index", counting)
    run(tmp_path, users_per_batch=1)
    assert len(built) == 3  # of the template's texts, of the titles, of titles, brands, categories


def test_the_likeliest_output_comes_first_and_long_outputs_are_not_preferred(
    tmp_path: pathlib.Path,
) -> None:
    # Divided by its words the long one would be at -0.5 each, the short one at -2.
    titles = {"i0": "one two three four five six", "i1": "hat", "i2": "shoe"}
    catalogue = Catalogue.create("toys", {i: {"title": title} for i, title in titles.items()})
    long, short = ("one two three four five six", -3.0), ("hat", -2.0)
    for name, outputs in {"ab": (long, short), "ba": (short, long)}.items():
        run(
            tmp_path / name,
            lambda _, names, outputs=outputs: [texts_with(*outputs) for _ in names],
            users=[user("a", 0, 1, 2)],
            train=[],
            validation=[user("a", 0, 1)],
            catalogue=catalogue,
        )
        (prediction,) = lines(tmp_path / name)
        assert [g["logprob"] for g in prediction["generated"]] == [-2.0, -3.0]
        assert [item["item_id"] for item in prediction["ranked"]] == ["i1", "i0", "i2"]
        scores = [item["score"] for item in prediction["ranked"]]
        assert scores == pytest.approx([np.exp(-2 / 5000), np.exp(-3 / 5000), 0], abs=1e-15)
