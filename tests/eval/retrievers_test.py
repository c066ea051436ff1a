"""Rankings of one batch, against slow readings of the method."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_case import CATALOGUE, TEMPLATE, USERS, WORDS, said
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax import metrics
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.errors import CalrecError
from calrec_jax.eval import retrievers
from calrec_jax.eval.retrievers import BM25Lookup, Dense, Hybrid, Scored, Texts
from calrec_jax.retrieval.bm25 import BM25Index

TEXTS = [f"{TEMPLATE.render_item(fields)} {WORDS[0]}" for fields in CATALOGUE.fields]
INDEX = BM25Index(TEXTS)
HISTORIES = [user.history for user in USERS]
NAMES = [user.user_id for user in USERS]
TARGETS = [user.target for user in USERS]
SEEN = ("allow", "exclude", "exclude_last")

text = st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=3).map(" ".join)
outputs = st.lists(st.tuples(text, st.floats(-100, 0)), max_size=6)
outputs_of_all = st.lists(outputs, min_size=len(USERS), max_size=len(USERS))
# Of few and round numbers, so that cosines tie exactly.
vectors = st.lists(st.sampled_from([(1, 0), (0, 1), (-1, 0), (3, 4)]), min_size=8, max_size=8)


def texts_of(said_to_users, seen: str = "allow") -> Texts:
    def generate(histories, names):
        return [said(*pairs) for pairs in said_to_users]

    return Texts(generate, BM25Lookup(INDEX, 1 / 5000), CATALOGUE, seen)


def dense_of(items, queries, seen: str = "allow") -> Dense:
    index = DenseIndex(np.array(items, np.float64))
    return Dense(lambda histories: np.array(queries, np.float64), index, CATALOGUE, seen)


def check(retriever, expected: list[list[float]], seen: str = "allow") -> list:
    """Rankings are those of the expected scores, of which -inf are left out."""
    rankings = list(retriever(HISTORIES, NAMES, TARGETS, 8))
    for user, row, ranking in zip(USERS, expected, rankings, strict=True):
        excluded = {"allow": (), "exclude": user.history, "exclude_last": user.history[-1:]}[seen]
        row = [
            -math.inf if i in excluded else s for i, s in zip(CATALOGUE.item_ids, row, strict=True)
        ]
        places = sorted(range(8), key=lambda i: (-row[i], i))
        kept = [i for i in places if row[i] > -math.inf]
        assert ranking.places.tolist() == kept
        assert ranking.scores.tolist() == pytest.approx([row[i] for i in kept], rel=1e-6, abs=1e-12)
        target = row[CATALOGUE.index[user.target]]
        assert ranking.bounds == (
            1 + sum(score > target for score in row),
            sum(score >= target for score in row),
        )
    return rankings


def slow_scores(pairs) -> list[float]:
    """Each output looked up alone and nothing merged."""
    scores = [0.0] * len(CATALOGUE)
    for some, log_prob in pairs:
        row = INDEX.scores([some])[0]
        low, span = row.min(), row.max() - row.min()
        for item, value in enumerate(row):
            scaled = (value - low) / span if span > 0 else 0.0
            scores[item] = max(scores[item], math.exp(log_prob / 5000) * scaled)
    return scores


@given(outputs_of_all, st.sampled_from(SEEN))
def test_texts_rank_as_the_method_says(said_to_users, seen):
    rankings = check(texts_of(said_to_users, seen), [*map(slow_scores, said_to_users)], seen)
    for pairs, ranking in zip(said_to_users, rankings, strict=True):
        assert {g.text for g in ranking.generated} == {some for some, _ in pairs}


def cosines(items, queries) -> list[list[float]]:
    def cosine(a, b):
        return (a[0] * b[0] + a[1] * b[1]) / math.hypot(*a) / math.hypot(*b)

    return [[cosine(query, item) for item in items] for query in queries]


@given(vectors, vectors, st.sampled_from(SEEN))
def test_towers_rank_by_the_cosine(items, queries, seen):
    queries = queries[: len(USERS)]
    check(dense_of(items, queries, seen), cosines(items, queries), seen)
    scores = dense_of(items, queries, seen).scores(HISTORIES)
    bounds = [*map(metrics.rank_bounds, scores, CATALOGUE.places(TARGETS))]
    rankings = dense_of(items, queries, seen)(HISTORIES, NAMES, TARGETS, 3)
    assert [ranking.bounds for ranking in rankings] == bounds


def scaled(row: list[float], excluded: set[int]) -> list[float]:
    """To [0, 1] by minimum and maximum of what may be recommended."""
    kept = [s for i, s in enumerate(row) if i not in excluded]
    low, span = min(kept), max(kept) - min(kept)
    return [(s - low) / span if span else 0.0 for s in row]


@pytest.mark.parametrize("weight", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("seen", SEEN)
def test_both_are_added_each_from_zero_to_one(weight, seen):
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(8, 2)), rng.normal(size=(4, 2))
    pairs = [[(f"Title: {WORDS[n]}", -1.0), (f"Title: {WORDS[n + 2]}", -9.0)] for n in range(4)]
    hybrid = Hybrid(texts_of(pairs, seen), dense_of(items, queries, seen), CATALOGUE, weight)
    excluded = [
        set(CATALOGUE.places({"allow": (), "exclude": h, "exclude_last": h[-1:]}[seen]))
        for h in HISTORIES
    ]
    expected = [
        [a + weight * b for a, b in zip(scaled(s, out), scaled(c, out), strict=True)]
        for s, c, out in zip(
            map(slow_scores, pairs), cosines(items, queries), excluded, strict=True
        )
    ]
    rankings = check(hybrid, expected, seen)
    assert [len(ranking.generated) for ranking in rankings] == [2] * 4


def test_without_a_target_there_is_no_rank():
    pairs = [[("drum", -1.0)]] * 4
    items = [(1, 0)] * 8
    for retriever in (
        texts_of(pairs),
        dense_of(items, items[:4]),
        Hybrid(texts_of(pairs), dense_of(items, items[:4]), CATALOGUE, 1.0),
        Scored(lambda histories: np.zeros((len(histories), 8)), CATALOGUE, "allow"),
    ):
        rankings = list(retriever(HISTORIES, NAMES, None, 2))
        assert [(len(r.places), r.bounds) for r in rankings] == [(2, None)] * 4


@pytest.mark.parametrize(("most", "together"), [(10**6, [4]), (4 * 8, [2, 2]), (1, [1] * 4)])
def test_texts_of_a_batch_are_looked_up_together_as_far_as_memory_allows(
    monkeypatch, most, together
):
    calls = []

    def scores(queries):
        calls.append(list(queries))
        return INDEX.scores(queries)

    def generate(histories, names):
        return [said(("drum", -1.0), ("fan", -2.0), ("drum", -3.0)) for _ in names]

    lookup = BM25Lookup(SimpleNamespace(scores=scores, num_items=8), 1 / 5000)
    monkeypatch.setattr(retrievers, "MOST_SCORES", most)
    found = list(Texts(generate, lookup, CATALOGUE, "allow")(HISTORIES, NAMES, TARGETS, 3))
    assert calls == [["drum", "fan"] * users for users in together]
    assert [ranking.places.tolist()[:2] for ranking in found] == [[3, 5]] * 4


def test_a_model_that_scores_items_is_asked_as_far_as_memory_allows(monkeypatch):
    blocks, table = [], np.random.default_rng(0).normal(size=(4, 8))

    def score(histories):
        blocks.append(len(histories))
        return table[[HISTORIES.index(history) for history in histories]]

    model = Scored(score, CATALOGUE, "exclude")
    whole = list(model(HISTORIES, NAMES, TARGETS, 3))
    monkeypatch.setattr(retrievers, "MOST_SCORES", 3 * 8)
    parts = list(model(HISTORIES, NAMES, TARGETS, 3))
    assert blocks == [4, 3, 1]
    assert [x.places.tolist() for x in whole] == [x.places.tolist() for x in parts]
    assert [x.bounds for x in whole] == [x.bounds for x in parts]


@pytest.mark.parametrize("answers", [3, 5])
def test_a_model_that_answers_for_other_than_the_users_is_a_defect(answers):
    with pytest.raises(ValueError):
        list(texts_of([[]] * answers)(HISTORIES, NAMES, TARGETS, 3))


def test_a_target_that_is_not_in_the_catalogue_is_named():
    with pytest.raises(CalrecError, match="toys has no item 'x9'"):
        list(texts_of([[]] * 4)(HISTORIES, NAMES, ["x9", *TARGETS[1:]], 3))
