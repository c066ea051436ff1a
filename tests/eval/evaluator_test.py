"""Evaluation from end to end with a fake model: files, interruption, guards, known defects."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import bm25s
import numpy as np
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
    run,
    said,
    texts_of,
    user,
)

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BASELINES, Known, popularity
from calrec_jax.eval.evaluator import EvaluationConfig, Subject, evaluate
from calrec_jax.eval.retrievers import Scored, TrieLookup
from calrec_jax.eval.users import sample
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


def test_predictions_have_the_documented_form(tmp_path):
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


def test_metrics_have_the_documented_form(tmp_path):
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
        ours, theirs = result["metrics"]["mrr"], result["baselines"][name]["mrr"]
        assert deltas["mrr"]["delta"] == pytest.approx(ours["value"] - theirs["value"])
        assert list(deltas["mrr"]) == ["delta", "low", "high"]
    assert result["metrics"]["recall@1"]["value"] == 1.0


def test_the_configuration_is_recorded(tmp_path):
    result = run(tmp_path, max_users=3, seed=5)
    assert (result["n"], result["users"], result["items"]) == (3, 4, 8)
    assert EvaluationConfig(**result["config"]) == config(max_users=3, seed=5)


def test_equal_evaluations_write_equal_bytes_whatever_the_batches(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two")
    run(tmp_path / "wide", users_per_batch=64)
    for name in ("predictions.jsonl", "metrics.json", "examples.json", "settings.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert lines(tmp_path / "one") == lines(tmp_path / "wide")


def test_with_a_trie_items_that_were_reached_rank_by_log_probability(tmp_path):
    """Each user's texts are of i4, of i2 and i7 (the same text) and of i4 again."""

    def generate(histories, names):
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


def test_log_probabilities_of_nan_stop_it_with_a_trie_too():
    broken = [[Generated("x", float("nan"), items=(1,))]]
    with pytest.raises(CalrecError, match="NaN"):
        list(TrieLookup(3, 1 / 5000).scores(broken))


@pytest.mark.parametrize("torn", ["", '{"user_id": "c", "dom', '{"user_id": "c"}'])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(killed, FakeModel(dies_after=1))
    assert [line["user_id"] for line in lines(killed)] == ["a", "b"]
    assert not (killed / "metrics.json").exists()
    with (killed / "predictions.jsonl").open("a") as file:
        file.write(torn)
    model, told = FakeModel(), []
    run(killed, model, progress=lambda *done: told.append(done))
    assert model.asked == ["c", "d"]
    assert told == [(2, 4), (4, 4)]
    for name in ("predictions.jsonl", "metrics.json", "examples.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_evaluation_asks_nobody_again(tmp_path):
    first, model = run(tmp_path), FakeModel()
    assert run(tmp_path, model) == first
    assert model.asked == []

    def never():
        raise AssertionError("the model is loaded for nothing")

    subject = Subject(Known(TRAIN, CATALOGUE, VALIDATION), USERS, texts_of(CATALOGUE), never)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["data"]
    again = evaluate("calrec", [subject], config(), tmp_path, settings, lambda *_: None)
    assert again == first


OTHER_TEXT = Catalogue("toys", CATALOGUE.item_ids, ({"title": "ankle"}, *CATALOGUE.fields[1:]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("checkpoint", {"settings": {"checkpoint": "stage2:400"}}),
        ("vocabulary", {"settings": SETTINGS | {"vocabulary": "other"}}),
        ("epsilon", {"epsilon": 0.1}),
        ("temperature", {"temperature": 0.7}),
        ("seed", {"seed": 1}),
        ("split", {"split": "validation"}),
        ("seen", {"seen": "exclude"}),
        ("shuffle_history", {"shuffle_history": True}),
        ("template.separator", {"template": dataclasses.replace(TEMPLATE, separator="; ")}),
        ("data.toys", {"catalogue": OTHER_TEXT}),
        ("data.toys", {"train": [*TRAIN[:-1], user("d", 1, 1, 2)]}),
    ],
)
def test_predictions_of_other_settings_are_never_mixed(tmp_path, name, change):
    run(tmp_path, max_users=2)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    model = FakeModel()
    with pytest.raises(CalrecError, match=f"made with {name} = .*move .* away"):
        run(tmp_path, model, **change)
    assert model.asked == []
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_how_it_is_measured_may_change_between_runs(tmp_path):
    run(tmp_path)
    result = run(tmp_path, FakeModel(dies_after=0), bootstrap_samples=80, users_per_batch=1)
    assert result["config"]["bootstrap_samples"] == 80


@pytest.mark.parametrize("settings", [None, "", "{"])
def test_predictions_that_do_not_say_what_made_them_are_refused(tmp_path, settings):
    run(tmp_path)
    (tmp_path / "settings.json").unlink()
    if settings is not None:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(CalrecError, match="settings.json is missing or damaged"):
        run(tmp_path)
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"target": "i1"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    run(tmp_path)
    path = tmp_path / "predictions.jsonl"
    first, _, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *others]) + "\n")
    with pytest.raises(CalrecError, match="damaged in line 2"):
        run(tmp_path)


def test_a_weight_is_told_where_it_was_chosen_and_nowhere_else(tmp_path):
    kept = tmp_path / "choosing" / "toys" / "choice.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"weight": 0.3, "ndcg": 0.5, "users": 4}))
    for name, weight in (("bm25", None), ("hybrid", 0.5)):
        result = run(tmp_path, retrieval=name, dense_weight=weight, baselines=[])
        assert result["choices"] == {"toys": {}}
        (tmp_path / "predictions.jsonl").unlink()
    result = run(tmp_path, retrieval="hybrid", baselines=[])
    assert result["choices"]["toys"]["calrec"]["weight"] == 0.3


def test_what_only_the_hybrid_reads_is_no_other_setting_elsewhere(tmp_path):
    run(tmp_path)
    nobody = FakeModel(dies_after=0)
    run(tmp_path, nobody, dense_weight=0.5, choosing_users=7)
    asked = [
        config(retrieval="hybrid", **changes).asked()
        for changes in ({}, {"choosing_users": 7}, {"dense_weight": 0.5})
    ]
    assert asked[0] != asked[1] != asked[2] != asked[0]
    bound = config(retrieval="hybrid", dense_weight=0.5, choosing_users=7)
    assert bound.asked() == asked[2]


def test_a_larger_sample_includes_a_smaller_one():
    users = [user(f"u{n:04}", 0, 1, 2) for n in range(2000)]
    sizes = [1, 9, 300, 700, 2000, 2001]  # Python samples few and many in different ways
    samples = [sample(users, n, 0) for n in sizes]
    names = [[u.user_id for u in some] for some in samples]
    for smaller, larger in itertools.pairwise(names):
        assert set(smaller) <= set(larger)
    assert [len(some) for some in samples] == [1, 9, 300, 700, 2000, 2000]
    assert samples[-1] == sample(users, None, 0) == users
    assert all(some == sorted(some) for some in names)
    assert sample(users, 9, 0) == samples[1]
    assert sample(users, 9, 1) != samples[1]


def test_a_larger_sample_asks_only_the_users_it_adds(tmp_path):
    few, more = FakeModel(), FakeModel()
    assert run(tmp_path, few, max_users=2)["n"] == 2
    assert run(tmp_path, more)["n"] == 4
    assert sorted(few.asked + more.asked) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([], "no users"),
        ([user("a", 0, 1, 9)], "'i9'"),
        ([user("a", 9, 1, 0)], "'i9'"),
        ([user("a", 0, 1), user("a", 0, 1, 2)], "several sequences"),
    ],
)
def test_users_that_cannot_be_measured_fail_before_the_model_is_asked(tmp_path, users, message):
    model = FakeModel()
    with pytest.raises(CalrecError, match=message):
        run(tmp_path, model, users=users)
    assert model.batches == []


@pytest.mark.parametrize(
    "change",
    [
        {"split": "train"},
        {"num_samples": 0},
        {"decoding": "greedy"},
        {"retrieval": "bm26"},
        {"name": "../other"},
        {"name": ""},
        {"domain": []},
        {"domain": ["toys", "toys"]},
        {"seen": "hide"},
        {"dense_weight": -1.0},
        {"choosing_users": 0},
        {"sampling_top_k": 0},
        {"sampling_top_p": 0.0},
        {"max_users": 0},
        {"bootstrap_samples": 0},
        {"users_per_batch": -1},
        {"top_k": 0},
        {"epsilon": -1e-3},
        {"epsilon": float("nan")},
        {"k1": float("inf")},
        {"b": -0.1},
        {"b": 1.1},
        {"temperature": -0.5},
        {"temperature": float("inf")},
        {"seed": -1},
        {"name": "a" * 201},
        {"baselines": ["popularity", "hybrid", "popularity"]},
    ],
)
def test_a_bad_configuration_is_refused(change):
    with pytest.raises(CalrecError, match=f"EvaluationConfig.{next(iter(change))} "):
        config(**change)


def test_log_probabilities_of_nan_stop_the_evaluation(tmp_path):
    with pytest.raises(CalrecError, match="NaN"):
        run(tmp_path, lambda _, names: [said(("drum", float("nan"))) for _ in names])


def test_infinite_log_probabilities_are_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        run(tmp_path, lambda _, names: [said(("drum", -np.inf)) for _ in names])
    assert lines(tmp_path) == []


# The known defects of public re-implementations, as far as they are evaluation's.


def test_a_miss_earns_its_own_reciprocal_rank_and_not_that_of_the_cut(tmp_path):
    # All eight items match a little, `anchor` least: rank 8, far below the two items of `ranked`.
    texts = [f"toy{' toy' * (7 - n)}" for n in range(8)]
    catalogue = Catalogue.create("toys", {f"i{n}": {"title": t} for n, t in enumerate(texts)})
    result = run(
        tmp_path,
        lambda _, names: [said(("toy", -1.0)) for _ in names],
        users=[user("a", 1, 2, 7)],
        catalogue=catalogue,
        top_k=2,
    )
    (prediction,) = lines(tmp_path)
    assert prediction["rank"] == {"low": 8, "high": 8}
    assert [item["item_id"] for item in prediction["ranked"]] == ["i0", "i1"]
    assert result["metrics"]["mrr"]["value"] == pytest.approx(1 / 8)


def test_a_user_without_any_output_ties_the_whole_catalogue(tmp_path):
    outputs = {"a": said(("", -1.0), ("", -2.0)), "b": said((" ?! ", -1.0)), "c": [], "d": []}
    result = run(tmp_path, lambda _, names: [outputs[name] for name in names])
    assert [line["rank"] for line in lines(tmp_path)] == [{"low": 1, "high": 8}] * 4
    assert result["n"] == 4
    assert result["metrics"]["recall@1"]["value"] == pytest.approx(1 / 8)
    assert result["metrics"]["mrr"]["value"] == pytest.approx(np.mean(1 / np.arange(1, 9)))
    assert result["metrics"]["recall@1"]["tie_low"] == 0.0


def test_an_item_of_equal_text_is_no_hit(tmp_path):
    titles = {"i0": "ball", "i1": "red hat", "i2": "red hat", "i3": "shoe"}
    catalogue = Catalogue.create("toys", {i: {"title": title} for i, title in titles.items()})
    result = run(
        tmp_path,
        lambda _, names: [said(("red hat", -1.0)) for _ in names],
        users=[user("a", 0, 3, 2)],
        train=[],
        validation=[user("a", 0, 1)],
        catalogue=catalogue,
    )
    (prediction,) = lines(tmp_path)
    assert prediction["rank"] == {"low": 1, "high": 2}
    recall = result["metrics"]["recall@1"]
    assert (recall["value"], recall["tie_low"], recall["tie_high"]) == (0.5, 0.0, 1.0)


def test_the_catalogue_is_indexed_once_for_all_users_and_baselines(tmp_path, monkeypatch):
    built, build = [], bm25s.BM25.index

    def counting(self, *args, **kwargs):
        built.append(self)
        return build(self, *args, **kwargs)

    monkeypatch.setattr(bm25s.BM25, "index", counting)
    run(tmp_path, users_per_batch=1)
    assert len(built) == 3  # of the template's texts, of the titles, of titles, brands, categories


def test_the_likeliest_output_comes_first_and_long_outputs_are_not_preferred(tmp_path):
    # Divided by its words the long one would be at -0.5 each, the short one at -2.
    titles = {"i0": "one two three four five six", "i1": "hat", "i2": "shoe"}
    catalogue = Catalogue.create("toys", {i: {"title": title} for i, title in titles.items()})
    long, short = ("one two three four five six", -3.0), ("hat", -2.0)
    for name, outputs in {"ab": (long, short), "ba": (short, long)}.items():
        run(
            tmp_path / name,
            lambda _, names, outputs=outputs: [said(*outputs) for _ in names],
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


def test_evaluation_runs_where_neither_jax_nor_tensorflow_is_installed():
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['jax', 'flax', 'tensorflow', 'gin'])  # not to be had\n"
        "import calrec_jax.eval.evaluator, calrec_jax.report.compare, calrec_jax.report.run_page"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_template_of_the_domain_writes_the_texts(tmp_path):
    run(tmp_path, template=Template(fields=("title", "brand")))
    (example, *_) = json.loads((tmp_path / "examples.json").read_text())
    assert example["history"] == ["i0", "i1"]
    assert example["texts"]["i2"] == "Title: candle"


def test_the_baselines_are_those_that_are_named_in_their_order(tmp_path):
    result = run(tmp_path, baselines=["hybrid", "popularity"])
    assert list(result["baselines"]) == list(result["paired"]) == ["hybrid", "popularity"]
    choice = result["choices"]["toys"]["hybrid"]
    assert list(choice) == ["part", "weight", "ndcg", "users"]
    assert choice["users"] == len(VALIDATION)
    # They are measured anew, and the model is not asked again.
    assert run(tmp_path, FakeModel(dies_after=0), baselines=[])["baselines"] == {}
    with pytest.raises(CalrecError, match="EvaluationConfig.baselines names 'bm52', .*bm25_title"):
        config(baselines=["bm52"])


def test_the_hybrid_is_chosen_on_validation_and_on_no_test_user(tmp_path):
    first = run(tmp_path / "a")
    others = [user("a", 0, 1, 7), user("b", 3, 4, 6)]
    second = run(tmp_path / "b", users=others)
    assert first["choices"] == second["choices"]
    third = run(tmp_path / "c", validation=[user("a", 0, 7)])
    ndcg = [result["choices"]["toys"]["hybrid"]["ndcg"] for result in (first, third)]
    assert ndcg[1] < ndcg[0]


def test_texts_of_the_baselines_do_not_depend_on_the_template(tmp_path):
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", template=dataclasses.replace(TEMPLATE, fields=("title", "brand")))
    assert first["baselines"] == second["baselines"]


def test_a_model_that_scores_items_is_measured_in_the_same_way(tmp_path):
    score, told = popularity(Known(TRAIN, CATALOGUE, VALIDATION)), []
    retriever = Scored(score, CATALOGUE, "allow")
    result = run(tmp_path, retriever=retriever, progress=lambda *done: told.append(done))
    assert told == [(0, 4), (2, 4), (4, 4)]
    assert result["metrics"] == result["baselines"]["popularity"]
    beyond = result["beyond_accuracy"]
    assert beyond["calrec"] == beyond["popularity"]
    first = lines(tmp_path)[0]
    assert first["generated"] == [] and first["ranked"][0] == {"item_id": "i1", "score": 2.0}


# What is told beside the metrics.


def test_users_are_sliced_and_each_slice_is_measured_alone(tmp_path):
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
        "target": {"warm": 3, "cold": 1},  # nobody bought i5 in training
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


def test_what_is_recommended_is_measured_beside_the_ranks(tmp_path):
    beyond = run(tmp_path)["beyond_accuracy"]
    assert list(beyond) == ["calrec", *BASELINES]
    for measured in beyond.values():
        assert list(measured) == ["coverage@10", "gini@10", "novelty@10"]
    assert beyond["popularity"]["coverage@10"] == 1.0  # all eight items are among the first ten
    few = run(tmp_path / "few", top_k=1)["beyond_accuracy"]["calrec"]
    assert few["coverage@10"] == 4 / 8  # to each of the users their own target


def test_items_of_the_history_are_left_out_of_all_rankings(tmp_path):
    result = run(tmp_path, seen="exclude", users=[user("a", 0, 1, 2), user("b", 3, 5, 3)])
    first, second = lines(tmp_path)
    assert {"i0", "i1"}.isdisjoint(item["item_id"] for item in first["ranked"])
    assert first["rank"] == {"low": 1, "high": 1}
    assert len(second["ranked"]) == 6 and second["rank"] == {"low": 7, "high": 8}
    for name in BASELINES:
        assert result["baselines"][name]["recall@5"]["value"] <= 0.5


class Order:
    """Remembers the histories that it is told."""

    def __init__(self):
        self.told = {}

    def __call__(self, histories, names):
        self.told |= dict(zip(names, histories, strict=True))
        return FakeModel()(histories, names)


def test_the_control_tells_histories_in_random_order_and_measures_the_same_users(tmp_path):
    users = [user("a", *range(8), 2), user("b", *range(8), 5), user("c", 1, 0), user("d", 7, 1, 3)]
    plain, control = Order(), Order()
    first = run(tmp_path / "plain", plain, users=users, baselines=["popularity", "co_occurrence"])
    arguments = {"users": users, "shuffle_history": True}
    second = run(
        tmp_path / "control", control, **arguments, baselines=["popularity", "co_occurrence"]
    )
    assert plain.told["a"] == users[0].history
    assert sorted(control.told["a"]) == sorted(plain.told["a"])
    assert len({plain.told["a"], control.told["a"], control.told["b"]}) == 3
    assert first["baselines"]["popularity"] == second["baselines"]["popularity"]
    assert {k: x["n"] for k, x in first["slices"]["purchase"].items()} == {
        k: x["n"] for k, x in second["slices"]["purchase"].items()
    }
    again = Order()
    run(tmp_path / "again", again, **arguments)
    assert again.told == control.told


def test_several_domains_are_measured_together(tmp_path):
    games = Catalogue("games", CATALOGUE.item_ids[:4], CATALOGUE.fields[:4])
    train = [user("a", 3, 2, domain="games")]
    users = [user("a", 3, 2, 1, domain="games"), user("z", 0, 1, 2, domain="games")]
    progress = []

    def subject(catalogue, train, users):
        texts = texts_of(catalogue)
        return Subject(
            Known(train, catalogue, train),
            users,
            texts,
            lambda: Scored(popularity(Known(train, catalogue)), catalogue, "allow"),
        )

    subjects = [subject(CATALOGUE, TRAIN, USERS), subject(games, train, users)]
    c = config(domain=["toys", "games"], baselines=["popularity", "hybrid"])
    arguments = (c, tmp_path, {}, lambda *done: progress.append(done))
    result = evaluate("popular", subjects, *arguments)
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
    assert evaluate("popular", subjects, *arguments) == result
