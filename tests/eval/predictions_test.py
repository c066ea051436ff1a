"""Predictions of one batch, against a slow reading of the method."""

from __future__ import annotations

import math

import pytest
from evaluation_case import CATALOGUE, TEMPLATE, USERS, WORDS, said
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.eval.predictions import Retriever, predict, write_json
from calrec_jax.retrieval.bm25 import BM25Index

TEXTS = [f"{TEMPLATE.render_item(fields)} {WORDS[0]}" for fields in CATALOGUE.fields]
RETRIEVER = Retriever(TEXTS, k1=1.5, b=0.75, epsilon=1 / 5000)

text = st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=3).map(" ".join)
outputs = st.lists(st.tuples(text, st.floats(-100, 0)), max_size=6)


@given(st.lists(outputs, min_size=4, max_size=4))
def test_ranks_and_ranking_are_those_of_the_scores(said_to_users):
    def generate(users):
        return [said(*pairs) for pairs in said_to_users]

    predictions = list(predict(USERS, CATALOGUE, generate, RETRIEVER, top_k=8))
    for user, pairs, prediction in zip(USERS, said_to_users, predictions, strict=True):
        scores = {item["item_id"]: item["score"] for item in prediction["ranked"]}
        assert scores == pytest.approx(slow_scores(pairs), rel=1e-12, abs=0)
        assert list(scores) == sorted(scores, key=lambda item_id: (-scores[item_id], item_id))
        target = scores[user.target]
        assert prediction["rank"] == {
            "low": 1 + sum(score > target for score in scores.values()),
            "high": sum(score >= target for score in scores.values()),
        }
        assert {g["text"] for g in prediction["generated"]} == {text for text, _ in pairs}


def slow_scores(pairs) -> dict[str, float]:
    """{item: score}, each output looked up alone and nothing merged."""
    scores = dict.fromkeys(CATALOGUE.item_ids, 0.0)
    for text, log_prob in pairs:
        row = RETRIEVER.index.scores([text])[0]
        low, span = row.min(), row.max() - row.min()
        for item_id, value in zip(scores, row, strict=True):
            scaled = (value - low) / span if span > 0 else 0.0
            scores[item_id] = max(scores[item_id], math.exp(log_prob / 5000) * scaled)
    return scores


def test_all_texts_of_a_batch_are_looked_up_in_one_call(monkeypatch):
    calls, scores = [], BM25Index.scores

    def counting(self, queries):
        calls.append(list(queries))
        return scores(self, queries)

    monkeypatch.setattr(BM25Index, "scores", counting)

    def generate(users):
        return [said(("drum", -1.0), ("fan", -2.0), ("drum", -3.0)) for _ in users]

    list(predict(USERS, CATALOGUE, generate, RETRIEVER, top_k=3))
    assert calls == [["drum", "fan"] * len(USERS)]


@pytest.mark.parametrize("answers", [3, 5])
def test_a_model_that_answers_for_other_than_the_users_is_a_defect(answers):
    with pytest.raises(ValueError):
        list(predict(USERS, CATALOGUE, lambda users: [[]] * answers, RETRIEVER, top_k=3))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"n": 1})

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", killed)
        write_json(path, {"n": 2})
    with pytest.raises(ValueError):
        write_json(path, {"n": math.nan})
    assert path.read_text() == '{\n  "n": 1\n}\n'
