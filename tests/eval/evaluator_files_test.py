"""What an evaluation with a fake model writes and measures, from end to end.

This is what eval/results, eval/measure and eval/examples make of an evaluation.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from evaluation_case import (
    CATALOGUE,
    TEMPLATE,
    TRAIN,
    VALIDATION,
    FakeModel,
    config,
    lines,
    run,
    user,
)

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BASELINES, BaselineData, popularity
from calrec_jax.eval.retrievers import ScoreRetriever
from calrec_jax.text.generated import Generated
from calrec_jax.text.templates import Template


def test_predictions_have_the_documented_form(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    first, *others = lines(tmp_path)
    assert first == {
        "user_id": "a",
        "domain": "toys",
        "target": "i2",
        "generated": [
            {"text": "Title: candle", "logprob": -1.5},
            {"text": "Title: drum", "logprob": -2.25},
        ],
        "ranked": first["ranked"],
        "rank": {"low": 1, "high": 1},
    }
    assert [item["item_id"] for item in first["ranked"][:2]] == ["i2", "i3"]
    assert all(list(item) == ["item_id", "score"] for item in first["ranked"])
    assert [prediction["user_id"] for prediction in others] == ["b", "c", "d"]


def test_metrics_have_the_documented_form(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["n"] == 4
    assert list(result["metrics"]) == list(metrics.METRICS)
    for values in [result["metrics"], *result["baselines"].values()]:
        for value in values.values():
            assert list(value) == ["value", "low", "high", "tie_low", "tie_high"]
            assert all(isinstance(number, float) for number in value.values())
    assert list(result["baselines"]) == list(result["paired"]) == list(BASELINES)
    for name, deltas in result["paired"].items():
        assert list(deltas) == list(metrics.METRICS)
        model, baseline = result["metrics"]["mrr"], result["baselines"][name]["mrr"]
        assert deltas["mrr"]["delta"] == pytest.approx(model["value"] - baseline["value"])
        assert list(deltas["mrr"]) == ["delta", "low", "high"]
    assert result["metrics"]["recall@1"]["value"] == 1.0


def test_the_configuration_is_recorded(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path, max_users=3, seed=5)
    assert (result["n"], result["users"], result["items"]) == (3, 4, 8)
    assert result["config"] == config(max_users=3, seed=5).flat()


def test_equal_evaluations_write_equal_bytes_whatever_the_batches(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two")
    run(tmp_path / "wide", users_per_batch=64)
    for name in ("predictions.jsonl", "metrics.json", "examples.json", "settings.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert lines(tmp_path / "one") == lines(tmp_path / "wide")


def test_with_a_trie_items_that_were_reached_rank_by_log_probability(
    tmp_path: pathlib.Path,
) -> None:
    """Each user's texts are of i4, of i2 and i7 (the same text) and of i4 again."""

    def generate(histories: list[tuple[str, ...]], names: list[str]) -> list[list[Generated]]:
        pairs = (("easel", -3.0, (4,)), ("candle", -2.0, (2, 7)), ("easel", -9.0, (4,)))
        return [[Generated(*pair) for pair in pairs] for _ in names]

    run(tmp_path, generate, retrieval="trie")
    ranks = {line["target"]: line["rank"] for line in lines(tmp_path)}
    behind = {"low": 4, "high": 8}  # three were reached, five were not
    assert ranks == {"i2": {"low": 1, "high": 2}, "i5": behind, "i0": behind, "i3": behind}
    ranked = lines(tmp_path)[0]["ranked"]
    assert [item["item_id"] for item in ranked[:4]] == ["i2", "i7", "i4", "i0"]
    scores = [item["score"] for item in ranked]
    assert scores[:3] == pytest.approx(np.exp(np.array([-2, -2, -3]) / 5000), rel=1e-12)
    assert scores[3:] == [0] * 5


def test_the_template_of_the_domain_writes_the_texts(tmp_path: pathlib.Path) -> None:
    run(tmp_path, template=Template(fields=("title", "brand")))
    (example, *_) = json.loads((tmp_path / "examples.json").read_text())
    assert example["history"] == ["i0", "i1"]
    assert example["texts"]["i2"] == "Title: candle"


def test_the_baselines_are_those_that_are_named_in_their_order(tmp_path: pathlib.Path) -> None:
    result = run(tmp_path, baselines=["hybrid", "popularity"])
    assert list(result["baselines"]) == list(result["paired"]) == ["hybrid", "popularity"]
    choice = result["choices"]["toys"]["hybrid"]
    assert list(choice) == ["part", "weight", "ndcg", "users"]
    assert choice["users"] == len(VALIDATION)
    # They are measured anew, and nothing is predicted again.
    assert run(tmp_path, FakeModel(dies_after=0), baselines=[])["baselines"] == {}
    with pytest.raises(CalrecError, match="EvaluationConfig.baselines names 'bm52', .*bm25_title"):
        config(baselines=["bm52"])


def test_the_hybrid_is_chosen_on_validation_and_on_no_test_user(tmp_path: pathlib.Path) -> None:
    first = run(tmp_path / "a")
    others = [user("a", 0, 1, 7), user("b", 3, 4, 6)]
    second = run(tmp_path / "b", users=others)
    assert first["choices"] == second["choices"]
    third = run(tmp_path / "c", validation=[user("a", 0, 7)])
    ndcg = [result["choices"]["toys"]["hybrid"]["ndcg"] for result in (first, third)]
    assert ndcg[1] < ndcg[0]


def test_texts_of_the_baselines_do_not_depend_on_the_template(tmp_path: pathlib.Path) -> None:
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", template=dataclasses.replace(TEMPLATE, fields=("title", "brand")))
    assert first["baselines"] == second["baselines"]


def test_a_model_that_scores_items_is_measured_in_the_same_way(tmp_path: pathlib.Path) -> None:
    score, calls = popularity(BaselineData(TRAIN, CATALOGUE, VALIDATION)), []
    retriever = ScoreRetriever(score, CATALOGUE, "allow")
    result = run(tmp_path, retriever=retriever, progress=lambda *done: calls.append(done))
    assert calls == [(0, 4), (2, 4), (4, 4)]
    assert result["metrics"] == result["baselines"]["popularity"]
    beyond = result["beyond_accuracy"]
    assert beyond["calrec"] == beyond["popularity"]
    first = lines(tmp_path)[0]
    assert first["generated"] == [] and first["ranked"][0] == {"item_id": "i1", "score": 2.0}


def test_evaluation_runs_where_neither_jax_nor_tensorflow_is_installed() -> None:
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['jax', 'flax', 'tensorflow', 'gin'])  # not to be had\n"
        "import calrec_jax.eval.evaluator, calrec_jax.report.compare, calrec_jax.report.run_page"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
