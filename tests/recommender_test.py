"""The recommender in Python: with a made-up retriever, and of a trained run."""

from __future__ import annotations

import numpy as np
import pytest
import trained_run

import calrec_jax
from calrec_jax import CalrecError, Recommender
from calrec_jax.configs import load
from calrec_jax.eval.retrievers import BM25Lookup, Ranking, TextRetriever
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.runs.trained_model import TrainedModel
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue
from calrec_jax.text.templates import Template

WORDS = ("anchor", "bottle", "candle", "drum")
CATALOGUE = Catalogue.create("toys", {f"i{n}": {"title": word} for n, word in enumerate(WORDS)})


class FakeGenerator:
    """Generates the last item's title and, less likely, that of the item after it."""

    def __init__(self):
        self.names = []

    def __call__(self, histories, names):
        self.names.append(list(names))
        outputs = []
        for history in histories:
            last = CATALOGUE.index[history[-1]]
            said = ((WORDS[last], -1.0), (WORDS[(last + 1) % 4], -2.0), (WORDS[last], -1.5))
            outputs.append([Generated(text, p) for text, p in said])
        return outputs


def made(seen: str = "allow", batch_size: int = 32) -> tuple[Recommender, FakeGenerator]:
    generator = FakeGenerator()
    lookup = BM25Lookup(BM25Index(WORDS), CATALOGUE, Template(("title",)), 1 / 5000)
    retriever = TextRetriever(generator, lookup, CATALOGUE, seen)
    return Recommender(retriever, CATALOGUE, batch_size), generator


@pytest.fixture
def recommender():
    return made()[0]


def test_the_likeliest_outputs_items_come_first_seen_or_not(recommender):
    (items,) = recommender.recommend([["i0", "i1"]], k=2)
    assert [item.item_id for item in items] == ["i1", "i2"]
    assert [item.score for item in items] == pytest.approx([0.9998, 0.9996], abs=1e-6)
    assert items[0].fields == {"title": "bottle"}


def test_more_items_than_the_catalogue_has_are_all_of_them_once(recommender):
    (items,) = recommender.recommend([["i3"]], k=100)
    assert [item.item_id for item in items] == ["i3", "i0", "i1", "i2"]


def test_items_of_the_history_may_be_left_out():
    (items,) = made("exclude")[0].recommend([["i0", "i1"]], k=100)
    assert [item.item_id for item in items] == ["i2", "i3"]
    (items,) = made("exclude_last")[0].recommend([["i0", "i1"]], k=100)
    assert [item.item_id for item in items] == ["i2", "i0", "i3"]


def test_each_history_has_its_own_answer_and_a_seed_that_depends_on_it_alone():
    recommender, generator = made()
    together = recommender.recommend([["i0"], ["i1", "i2"]], k=3)
    alone = [recommender.recommend([history], k=3)[0] for history in (["i0"], ["i1", "i2"])]
    assert together == alone
    names = generator.names
    assert names[0] == [names[1][0], names[2][0]] and len(set(names[0])) == 2


def test_ids_are_taken_as_prepare_takes_them():
    catalogue = Catalogue.create("toys", {str(n): {"title": word} for n, word in enumerate(WORDS)})
    asked = []

    def retriever(histories, names, targets, k):
        asked.extend([*histories, *names])
        return [Ranking(np.array([0]), np.array([1.0]), None)] * len(histories)

    recommender = Recommender(retriever, catalogue)
    for history in ([1, " 2 "], [1.0, "2"], np.array([1, 2])):
        recommender.check(history)
        recommender.recommend([history])
    assert asked == [["1", "2"], "1\x1f2"] * 3


def test_many_histories_are_answered_in_blocks():
    recommender, generator = made(batch_size=2)
    histories = [[f"i{n % 4}"] for n in range(5)]
    answers = recommender.recommend(histories, k=1)
    assert [items[0].item_id for items in answers] == [history[0] for history in histories]
    assert [len(names) for names in generator.names] == [2, 2, 1]


@pytest.mark.parametrize("k", [0, -1])
def test_no_items_cannot_be_asked_for(recommender, k):
    with pytest.raises(CalrecError, match=f"k is {k}: at least one item"):
        recommender.recommend([["i0"]], k=k)


def test_no_histories_have_no_answers(recommender):
    assert recommender.recommend([]) == []


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([["i0"], []], "history 1: an empty history"),
        ([[["i0"]]], "history 0: item id is neither a string nor an integer, in the history"),
        ([["i0", None]], "history 0: no item id, in the history"),
        ([[1.5]], "history 0: item id is neither a string nor an integer, in the history"),
        ([[9]], "history 0: toys has no item '9'"),
        ([["i0", "x9"]], "history 0: toys has no item 'x9': its catalogue has 4 items"),
    ],
)
def test_histories_that_cannot_be_answered_are_named(recommender, histories, message):
    with pytest.raises(CalrecError, match=message):
        recommender.recommend(histories)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CalrecError, match="is no MODEL_DIR of `calrec train`"):
        Recommender.load(tmp_path)


def test_the_face_of_the_package():
    for name in calrec_jax.__all__:
        assert getattr(calrec_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        calrec_jax.Recomender  # noqa: B018


# Of a trained run


@pytest.mark.parametrize("retrieval", ["bm25", "trie", "dense", "hybrid"])
def test_a_recommender_has_the_settings_of_the_evaluation(model_dir, retrieval):
    more = {"seen": "exclude", "sampling": {"max_new_tokens": 32}, "dense_weight": 0.5}
    made = Recommender.load(model_dir, bindings=trained_run.bindings(retrieval=retrieval, **more))
    history = list(trained_run.domain(model_dir).sequences("test")[0].history)
    (items,) = made.recommend([history], k=1000)
    assert len(items) == len(made.catalogue) - len(set(history))
    assert not {item.item_id for item in items} & set(history)
    assert [item.score for item in items] == sorted((x.score for x in items), reverse=True)
    assert made.recommend([history], k=3)[0] == items[:3]


def test_a_recommender_needs_a_weight(model_dir):
    hybrid = trained_run.bindings(retrieval="hybrid", name="never_evaluated")
    with pytest.raises(CalrecError, match="run `calrec eval` with it, or bind .*dense_weight"):
        Recommender.load(model_dir, bindings=hybrid)
    trained_run.evaluate(model_dir, "chosen", retrieval="hybrid")
    Recommender.load(model_dir, bindings=trained_run.bindings(retrieval="hybrid", name="chosen"))


def recommended(model_dir, history, **named):
    made = Recommender.load(model_dir, **named, bindings=trained_run.bindings(retrieval="dense"))
    return made.recommend([history], k=20)[0]


def test_a_recommender_has_the_checkpoint_that_is_named(model_dir):
    history = trained_run.domain(model_dir).sequences("test")[0].history
    first = recommended(model_dir, history, checkpoint="stage1:best")
    run = load.load_run(
        model_dir, trained_run.bindings(retrieval="dense", checkpoint="stage1:best")
    )
    towers = TrainedModel(run).retriever(run.domain(trained_run.DOMAIN), lambda *_: 1.0)
    (found,) = towers([history], ["me"], None, 20)
    ids = trained_run.domain(model_dir).catalogue.item_ids
    assert [item.item_id for item in first] == [ids[place] for place in found.places]
    assert [item.score for item in first] == found.scores.tolist()
    assert first != recommended(model_dir, history)


def test_a_recommender_has_the_domain_that_is_named(model_dir):
    office = load.load_run(model_dir).domain("synthetic_office")
    history = office.sequences("test")[0].history
    items = recommended(model_dir, history, domain="synthetic_office")
    assert {item.item_id for item in items} <= set(office.catalogue.item_ids)
