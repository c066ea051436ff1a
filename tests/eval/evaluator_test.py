"""Evaluation from end to end with a fake model: files, interruption, guards, known defects."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

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
    user,
)

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BASELINES, Known, popularity
from calrec_jax.eval.evaluator import EvaluationConfig, choose_users, evaluate_scores
from calrec_jax.eval.predictions import TrieRetriever
from calrec_jax.text.items import Catalogue
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

    def generate(users):
        pairs = (("easel", -3.0, (4,)), ("candle", -2.0, (2, 7)), ("easel", -9.0, (4,)))
        return [[SimpleNamespace(text=t, log_prob=p, items=i) for t, p, i in pairs] for _ in users]

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
    broken = [[SimpleNamespace(text="x", log_prob=float("nan"), items=(1,))]]
    with pytest.raises(CalrecError, match="NaN"):
        list(TrieRetriever(3, 1 / 5000).scores(broken))


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
        ("template.separator", {"template": dataclasses.replace(TEMPLATE, separator="; ")}),
        ("data", {"catalogue": OTHER_TEXT}),
        ("data", {"train": [*TRAIN[:-1], user("d", 1, 1, 2)]}),
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


def test_a_larger_sample_includes_a_smaller_one():
    users = [user(f"u{n:04}", 0, 1, 2) for n in range(2000)]
    sizes = [1, 9, 300, 700, 2000, 2001]  # Python samples few and many in different ways
    samples = [choose_users(users, config(max_users=n)) for n in sizes]
    names = [[u.user_id for u in sample] for sample in samples]
    for smaller, larger in itertools.pairwise(names):
        assert set(smaller) <= set(larger)
    assert [len(sample) for sample in samples] == [1, 9, 300, 700, 2000, 2000]
    assert samples[-1] == choose_users(users, config()) == users
    assert all(sample == sorted(sample) for sample in names)
    assert choose_users(users, config(max_users=9)) == samples[1]
    assert choose_users(users, config(max_users=9, seed=1)) != samples[1]


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
    ],
)
def test_a_bad_configuration_is_refused(change):
    with pytest.raises(CalrecError, match=f"EvaluationConfig.{next(iter(change))} "):
        config(**change)


def test_log_probabilities_of_nan_stop_the_evaluation(tmp_path):
    with pytest.raises(CalrecError, match="NaN"):
        run(tmp_path, lambda users: [said(("drum", float("nan"))) for _ in users])


def test_infinite_log_probabilities_are_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        run(tmp_path, lambda users: [said(("drum", -np.inf)) for _ in users])
    assert lines(tmp_path) == []


# The known defects of public re-implementations, as far as they are evaluation's.


def test_a_miss_earns_its_own_reciprocal_rank_and_not_that_of_the_cut(tmp_path):
    # All eight items match a little, `anchor` least: rank 8, far below the two items of `ranked`.
    texts = [f"toy{' toy' * (7 - n)}" for n in range(8)]
    catalogue = Catalogue.create("toys", {f"i{n}": {"title": t} for n, t in enumerate(texts)})
    result = run(
        tmp_path,
        lambda users: [said(("toy", -1.0)) for _ in users],
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
    result = run(tmp_path, lambda users: [outputs[u.user_id] for u in users])
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
        lambda users: [said(("red hat", -1.0)) for _ in users],
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
            lambda users, outputs=outputs: [said(*outputs) for _ in users],
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
        "import calrec_jax.eval.evaluator, calrec_jax.eval.report"
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
    assert list(result["choices"]["hybrid"]) == ["part", "weight", "ndcg", "users"]
    assert result["choices"]["hybrid"]["users"] == len(VALIDATION)
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
    assert third["choices"]["hybrid"]["ndcg"] < first["choices"]["hybrid"]["ndcg"]


def test_texts_of_the_baselines_do_not_depend_on_the_template(tmp_path):
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", template=dataclasses.replace(TEMPLATE, fields=("title", "brand")))
    assert first["baselines"] == second["baselines"]


def test_a_model_that_scores_items_is_measured_in_the_same_way(tmp_path):
    known, told = Known(TRAIN, CATALOGUE, VALIDATION), []
    arguments = (known, USERS, popularity(known), config(), tmp_path, {"seed": 1})
    result = evaluate_scores("most popular", *arguments, lambda *done: told.append(done))
    assert result["model"] == "most popular" and told == [(0, 4), (2, 4), (4, 4)]
    assert result["metrics"] == result["baselines"]["popularity"]
    first = lines(tmp_path)[0]
    assert first["generated"] == [] and first["ranked"][0] == {"item_id": "i1", "score": 2.0}
    with pytest.raises(CalrecError, match="made with seed = 1"):
        evaluate_scores("most popular", *arguments[:-1], {"seed": 2}, print)
