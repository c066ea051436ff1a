"""Rankings of one batch, against slow readings of the method."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from evaluation_case import CATALOGUE, TEMPLATE, USERS, WORDS, texts_with
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax import metrics
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.errors import CalrecError
from calrec_jax.eval import retrievers
from calrec_jax.eval.retrievers import (
    BM25Lookup,
    DenseRetriever,
    HybridRetriever,
    ScoreRetriever,
    TextRetriever,
)
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue
from calrec_jax.text.templates import Template

TEXTS = [f"{TEMPLATE.render_item(fields)} {WORDS[0]}" for fields in CATALOGUE.fields]
INDEX = BM25Index(TEXTS)
HISTORIES = [user.history for user in USERS]
NAMES = [user.user_id for user in USERS]
TARGETS = [user.target for user in USERS]
SEEN = ("allow", "exclude", "exclude_last")

text = st.lists(st.sampled_from([*WORDS, "unknown", "Title:"]), max_size=3).map(" ".join)
outputs = st.lists(st.tuples(text, st.floats(-100, 0)), max_size=6)
outputs_of_all = st.lists(outputs, min_size=len(USERS), max_size=len(USERS))
# Of few and round numbers, so that cosines tie exactly.
vectors = st.lists(st.sampled_from([(1, 0), (0, 1), (-1, 0), (3, 4)]), min_size=8, max_size=8)


def texts_of(texts_of_users: list[Any], seen: str = "allow") -> TextRetriever:
    def generate(histories: list[tuple[str, ...]], names: list[str]) -> list[Any]:
        return [texts_with(*pairs) for pairs in texts_of_users]

    return TextRetriever(
        generate, BM25Lookup(INDEX, CATALOGUE, TEMPLATE, 1 / 5000), CATALOGUE, seen
    )


def dense_of(
    items: list[tuple[int, ...]] | np.ndarray,
    queries: list[tuple[int, ...]] | np.ndarray,
    seen: str = "allow",
) -> DenseRetriever:
    index = DenseIndex(np.array(items, np.float64))
    return DenseRetriever(lambda histories: np.array(queries, np.float64), index, CATALOGUE, seen)


def check(
    retriever: DenseRetriever | HybridRetriever | TextRetriever,
    expected: list[list[float]],
    seen: str = "allow",
) -> list:
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


def slow_scores(pairs: list[tuple[str, float]]) -> list[float]:
    """Each output looked up alone and nothing merged."""
    scores = [0.0] * len(CATALOGUE)
    for text, log_prob in pairs:
        if not set(text.split()) & set(WORDS):
            continue
        row = INDEX.scores([text])[0]
        low, span = row.min(), row.max() - row.min()
        for item, value in enumerate(row):
            scaled = (value - low) / span if span > 0 else 0.0
            scores[item] = max(scores[item], math.exp(log_prob / 5000) * scaled)
    return scores


@given(outputs_of_all, st.sampled_from(SEEN))
def test_texts_rank_as_the_method_says(texts_of_users: list[Any], seen: str) -> None:
    rankings = check(texts_of(texts_of_users, seen), [*map(slow_scores, texts_of_users)], seen)
    for pairs, ranking in zip(texts_of_users, rankings, strict=True):
        assert {g.text for g in ranking.generated} == {text for text, _ in pairs}


GARDEN = Catalogue.create(
    "garden",
    {
        "hose": {
            "title": "Garden hose 25 m",
            "category": "Garden",
            "brand": "Velmo",
            "price": "$19.99",
        },
        "pen": {"title": "Pen"},
        "spade": {"title": "Steel garden spade", "brand": "Velmo", "price": "$7.50"},
    },
)


def looked_up(
    *pairs: tuple[str, float], catalogue: Catalogue = GARDEN, template: Template = Template()
) -> dict[str, float]:
    """{item id: score} of one user's outputs."""
    index = BM25Index([template.render_item(fields) for fields in catalogue.fields])
    (row,) = BM25Lookup(index, catalogue, template, 1 / 5000).scores([texts_with(*pairs)])
    return dict(zip(catalogue.item_ids, row.tolist(), strict=True))


def test_a_text_of_labels_alone_does_not_vote_for_the_shortest_item() -> None:
    hose = ("Title: Garden hose 25 m Brand: Velmo", -3.0)
    found = looked_up(("Title: zzqq", -1.0), hose)
    assert found == looked_up(hose)
    assert found["hose"] == math.exp(-3 / 5000) and found["pen"] < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Title:",
        "Title: zzqq Category: yyxx Brand: Price: $",
        "Title: Title: zzqq Title: zzqq Price: Price:",
        "zzqq Title:\nyyxx\nBrand: ",
        "title: zzqq Brand yyxx Price:9 Pric",
    ],
)
def test_words_of_labels_find_nothing(text: str) -> None:
    assert not any(looked_up((text, -1.0)).values())


@pytest.mark.parametrize("title", ["Brand new", "Title, brand and price"])
def test_a_word_of_a_label_that_an_item_has_in_its_text_is_a_word(title: str) -> None:
    items = {"a": {"title": title}, "b": {"title": "Pen", "brand": "Velmo"}}
    catalogue = Catalogue.create("garden", items)
    assert looked_up(("Title: brand", -1.0), catalogue=catalogue)["a"] > 0.99
    assert not any(looked_up(("Title: zzqq Brand: yyxx", -1.0), catalogue=catalogue).values())
    # A field that the template does not show is no text of the item.
    hidden = Template(fields=("brand", "price"))
    shown = Catalogue.create("garden", {"a": {"title": title, "price": "$1"}, "b": items["b"]})
    assert not any(looked_up(("Brand: brand", -1.0), catalogue=shown, template=hidden).values())


def test_labels_are_those_of_the_template() -> None:
    template = Template(fields=("film name", "标题"))
    items = {"a": {"film name": "Heat"}, "b": {"film name": "Ronin", "标题": "冷血悍将"}}
    catalogue = Catalogue.create("films", items)
    for text, best in (("Film name: zzqq", None), ("标题: 无此", None), ("标题: 悍将", "b")):
        found = looked_up((text, -1.0), catalogue=catalogue, template=template)
        assert [item for item, score in found.items() if score > 0.5] == [best] * (best is not None)
    assert looked_up(("Title: ronin", -1.0), catalogue=catalogue, template=template)["b"] > 0.99


def test_a_user_of_whose_texts_none_has_a_word_leaves_the_others_as_they_are() -> None:
    nothing, something = [("Title: zzqq", -1.0), ("", -2.0)], [("Title: drum", -1.0)]
    rows = texts_of([nothing, something, nothing, []]).scores(
        [texts_with(*pairs) for pairs in (nothing, something, nothing, [])], HISTORIES
    )
    assert not rows[[0, 2, 3]].any()
    assert rows[1].argmax() == 3
    rankings = list(texts_of([nothing] * 4)(HISTORIES, NAMES, TARGETS, 3))
    assert [ranking.bounds for ranking in rankings] == [(1, 8)] * 4
    assert [g.text for g in rankings[0].generated] == ["Title: zzqq", ""]


def test_in_the_hybrid_a_text_of_labels_alone_leaves_the_towers_alone() -> None:
    vectors = [(1, n) for n in range(8)]
    dense, nothing = dense_of(vectors, [(0, 1)] * 4), texts_of([[("Title: zzqq", -1.0)]] * 4)
    both = list(HybridRetriever(nothing, dense, CATALOGUE, 0.1)(HISTORIES, NAMES, TARGETS, 8))
    alone = list(dense(HISTORIES, NAMES, TARGETS, 8))
    assert [r.places.tolist() for r in both] == [r.places.tolist() for r in alone]


def cosines(
    items: list[tuple[int, ...]] | np.ndarray, queries: list[tuple[int, ...]] | np.ndarray
) -> list[list[float]]:
    def cosine(a: np.ndarray | tuple[int, ...], b: np.ndarray | tuple[int, ...]) -> float:
        return (a[0] * b[0] + a[1] * b[1]) / math.hypot(*a) / math.hypot(*b)

    return [[cosine(query, item) for item in items] for query in queries]


@given(vectors, vectors, st.sampled_from(SEEN))
def test_towers_rank_by_the_cosine(
    items: list[tuple[int, ...]], queries: list[tuple[int, ...]], seen: str
) -> None:
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
def test_both_are_added_each_from_zero_to_one(weight: float, seen: str) -> None:
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(8, 2)), rng.normal(size=(4, 2))
    pairs = [[(f"Title: {WORDS[n]}", -1.0), (f"Title: {WORDS[n + 2]}", -9.0)] for n in range(4)]
    hybrid = HybridRetriever(
        texts_of(pairs, seen), dense_of(items, queries, seen), CATALOGUE, weight
    )
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


def test_without_a_target_there_is_no_rank() -> None:
    pairs = [[("drum", -1.0)]] * 4
    items = [(1, 0)] * 8
    for retriever in (
        texts_of(pairs),
        dense_of(items, items[:4]),
        HybridRetriever(texts_of(pairs), dense_of(items, items[:4]), CATALOGUE, 1.0),
        ScoreRetriever(lambda histories: np.zeros((len(histories), 8)), CATALOGUE, "allow"),
    ):
        rankings = list(retriever(HISTORIES, NAMES, None, 2))
        assert [(len(r.places), r.bounds) for r in rankings] == [(2, None)] * 4


@pytest.mark.parametrize(("most", "together"), [(10**6, [4]), (4 * 8, [2, 2]), (1, [1] * 4)])
def test_texts_of_a_batch_are_looked_up_together_as_far_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, most: int, together: list[int]
) -> None:
    calls = []

    def scores(queries: list[str]) -> np.ndarray:
        calls.append(list(queries))
        return INDEX.scores(queries)

    def generate(histories: list[tuple[str, ...]], names: list[str]) -> list[list[Generated]]:
        return [texts_with(("drum", -1.0), ("fan", -2.0), ("drum", -3.0)) for _ in names]

    index = BM25Index(TEXTS)
    monkeypatch.setattr(index, "scores", scores)
    lookup = BM25Lookup(index, CATALOGUE, TEMPLATE, 1 / 5000)
    monkeypatch.setattr(retrievers, "MAX_SCORES", most)
    found = list(TextRetriever(generate, lookup, CATALOGUE, "allow")(HISTORIES, NAMES, TARGETS, 3))
    assert calls == [["drum", "fan"] * users for users in together]
    assert [ranking.places.tolist()[:2] for ranking in found] == [[3, 5]] * 4


def test_a_model_that_scores_items_is_called_as_far_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks, table = [], np.random.default_rng(0).normal(size=(4, 8))

    def score(histories: list[tuple[str, ...]]) -> np.ndarray:
        blocks.append(len(histories))
        return table[[HISTORIES.index(history) for history in histories]]

    model = ScoreRetriever(score, CATALOGUE, "exclude")
    whole = list(model(HISTORIES, NAMES, TARGETS, 3))
    monkeypatch.setattr(retrievers, "MAX_SCORES", 3 * 8)
    parts = list(model(HISTORIES, NAMES, TARGETS, 3))
    assert blocks == [4, 3, 1]
    assert [x.places.tolist() for x in whole] == [x.places.tolist() for x in parts]
    assert [x.bounds for x in whole] == [x.bounds for x in parts]


@pytest.mark.parametrize("answers", [3, 5])
def test_a_model_that_answers_for_other_than_the_users_is_a_defect(answers: int) -> None:
    with pytest.raises(ValueError):
        list(texts_of([[]] * answers)(HISTORIES, NAMES, TARGETS, 3))


def test_a_target_that_is_not_in_the_catalogue_is_named() -> None:
    with pytest.raises(CalrecError, match="toys has no item 'x9'"):
        list(texts_of([[]] * 4)(HISTORIES, NAMES, ["x9", *TARGETS[1:]], 3))
