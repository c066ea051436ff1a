"""Evaluations of a trained run: the files that they write, and what is used again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from trained_run import DOMAIN, evaluate, lines

from calrec_jax import CalrecError, metrics
from calrec_jax.configs import load
from calrec_jax.decode.vectors import Towers
from calrec_jax.runs import trained_model
from calrec_jax.text.templates import Template


def test_towers_rank_every_item_and_their_vectors_are_read_once(model_dir, monkeypatch):
    evaluate(model_dir, "dense", retrieval="dense", top_k=1000)
    predictions = lines(model_dir, "dense")
    assert len(predictions) == 5 and all(line["generated"] == [] for line in predictions)
    items = {item["item_id"] for item in predictions[0]["ranked"]}
    (path,) = model_dir.glob("stage2/vectors/synthetic_sports-*.npz")
    with np.load(path) as saved:
        assert len(items) == len(predictions[0]["ranked"]) == len(saved["vectors"])

    def never(self, tokens):
        raise AssertionError("the items are encoded again")

    monkeypatch.setattr(Towers, "items", never)
    evaluate(model_dir, "dense_again", retrieval="dense", top_k=1000)
    assert lines(model_dir, "dense_again") == predictions


def test_the_index_of_texts_is_kept(model_dir):
    evaluate(model_dir, "plain")
    before = {path: path.stat().st_mtime_ns for path in model_dir.glob("index/*.npz")}
    assert len(before) == 1
    evaluate(model_dir, "plain_again")
    evaluate(model_dir, "other", bm25={"k1": 1.2})
    after = {path: path.stat().st_mtime_ns for path in model_dir.glob("index/*.npz")}
    assert after.items() > before.items() and len(after) == 2
    assert lines(model_dir, "plain") == lines(model_dir, "plain_again")


def test_hybrid_ranks_by_the_weight_that_validation_chose(model_dir):
    result = evaluate(model_dir, "hybrid", retrieval="hybrid")
    choice = result["choices"]["synthetic_sports"]["calrec"]
    folder = model_dir / "eval" / "hybrid" / "choosing" / "synthetic_sports"
    assert choice == json.loads((folder / "choice.json").read_text()) and choice["users"] == 6
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 6
    bound = evaluate(
        model_dir, "bound", retrieval="hybrid", dense_weight=choice["weight"], choosing_users=1
    )
    assert bound["metrics"] == result["metrics"]
    assert not (model_dir / "eval" / "bound" / "choosing").exists()
    assert "calrec" not in bound["choices"]["synthetic_sports"]


def test_a_choice_that_was_removed_is_made_again(model_dir):
    first = evaluate(model_dir, "removed", retrieval="hybrid")
    (path,) = (model_dir / "eval" / "removed").glob("choosing/*/choice.json")
    choice = path.read_bytes()
    path.unlink()
    assert evaluate(model_dir, "removed", retrieval="hybrid") == first
    assert path.read_bytes() == choice


@pytest.fixture
def two_of_one_dataset():
    """Two domains of the dataset synthetic_sports, one with a template of its own."""
    from calrec_jax.data import registry, specs

    before = dict(specs.domains)
    registry.register_domain("sports_whole", dataset="synthetic_sports")
    registry.register_domain(
        "sports_titles", dataset="synthetic_sports", template=Template(fields=("title",))
    )
    yield "sports_whole", "sports_titles"
    specs.domains.clear()
    specs.domains.update(before)


def test_domains_of_one_dataset_are_evaluated_one_by_one(model_dir, two_of_one_dataset):
    with pytest.raises(CalrecError, match="'sports_whole' and 'sports_titles', .* both of dataset"):
        evaluate(model_dir, "mixed", domains=list(two_of_one_dataset))
    assert not (model_dir / "eval" / "mixed").exists()
    for name in (*two_of_one_dataset, two_of_one_dataset[0]):
        evaluate(model_dir, name, domains=name, retrieval="dense")
    assert lines(model_dir, "sports_whole") != lines(model_dir, "sports_titles")


def test_several_domains_are_measured_together_each_in_its_own_catalogue(model_dir):
    names = ["synthetic_sports", "synthetic_office"]
    both = evaluate(model_dir, "both", domains=names, max_users=8)
    assert {k: part["n"] for k, part in both["slices"]["domain"].items()} == {
        name: sum(line["domain"] == name for line in lines(model_dir, "both")) for name in names
    }
    assert both["domain"] == "synthetic_sports, synthetic_office" and both["n"] == 8
    run = load.load_run(model_dir)
    for line in lines(model_dir, "both"):
        catalogue = run.domain(line["domain"]).catalogue
        assert {item["item_id"] for item in line["ranked"]} <= set(catalogue.item_ids)
    # Evaluated alone, a user has the same rank.
    alone = {line["user_id"]: line for line in lines(model_dir, "both")}
    evaluate(model_dir, "office", domains="synthetic_office", max_users=None)
    for line in lines(model_dir, "office"):
        if line["user_id"] in alone and alone[line["user_id"]]["domain"] == line["domain"]:
            assert line["rank"] == alone[line["user_id"]]["rank"]


def test_a_complete_evaluation_is_measured_anew_without_the_model(model_dir, monkeypatch):
    first = evaluate(model_dir, "complete")

    def never(*args, **kwargs):
        raise AssertionError("the weights are read")

    monkeypatch.setattr(trained_model.weights, "load_params", never)
    again = evaluate(model_dir, "complete", bootstrap_samples=30)
    assert again["metrics"]["mrr"]["value"] == first["metrics"]["mrr"]["value"]
    assert list(again["metrics"]) == list(metrics.METRICS)


def test_the_name_of_another_evaluation_with_other_settings_is_refused(model_dir):
    evaluate(model_dir, "mine")
    with pytest.raises(CalrecError, match="made with retrieval = 'bm25', .* has 'dense'"):
        evaluate(model_dir, "mine", retrieval="dense")


def test_predictions_of_other_lengths_or_templates_are_refused(model_dir):
    evaluate(model_dir, "kept", retrieval="dense")
    for name, binding in {
        "task_feature_lengths.inputs": "TASK_FEATURE_LENGTHS={'inputs': 100, 'targets': 32}",
        f"templates.{DOMAIN}.separator": "templates.Template.separator=' / '",
    }.items():
        with pytest.raises(CalrecError, match=f"made with {name} = "):
            evaluate(model_dir, "kept", [binding], retrieval="dense")
