"""What of a run's evaluation reaches whom: splits, settings, checkpoints and domains."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from trained_run import DOMAIN, bindings, evaluate, lines

from calrec_jax import CalrecError, Recommender
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.cli import main as cli
from calrec_jax.configs import load
from calrec_jax.data import domains, vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.decode.sample import Samples
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.eval import sasrec
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.retrievers import BM25Lookup
from calrec_jax.eval.users import sample_users
from calrec_jax.retrieval.bm25 import BM25Config, BM25Index
from calrec_jax.runs import evaluate as evaluations
from calrec_jax.runs import trained_model
from calrec_jax.runs.trained_model import TrainedModel
from calrec_jax.text.generated import Generated
from calrec_jax.text.templates import Template


def domain(model_dir) -> Domain:
    return load.load_run(model_dir).domain(DOMAIN)


def model(model_dir, *more, **changes) -> TrainedModel:
    return TrainedModel(load.load_run(model_dir, [*bindings(**changes), *more]))


def retriever(model_dir, name: str = DOMAIN, **changes):
    """The model on a domain."""
    run = load.load_run(model_dir, bindings(**changes))
    return TrainedModel(run).retriever(run.domain(name), never)


def never(*_):
    raise AssertionError("a weight is chosen")


# Splits


@pytest.fixture
def change_split(monkeypatch):
    """split -> every target of it is another item from now on."""

    def change(split: str) -> None:
        read = Domain.sequences

        def sequences(self, name):
            users = read(self, name)
            if name != split:
                return users
            ids = self.catalogue.item_ids
            others = [ids[(self.catalogue.index[user.target] + 40) % len(ids)] for user in users]
            return [
                dataclasses.replace(user, item_ids=(*user.history, other))
                for user, other in zip(users, others, strict=True)
            ]

        monkeypatch.setattr(Domain, "sequences", sequences)

    return change


def chosen(model_dir, name: str) -> dict:
    """How an evaluation of both retrievers together chose."""
    more = {"retrieval": "hybrid", "baselines": ["hybrid"], "max_users": None, "seed": 3}
    result = evaluate(model_dir, name, **more)
    folder = model_dir / "eval" / name / "choosing" / DOMAIN
    return {"choices": result["choices"], "texts": (folder / "predictions.jsonl").read_text()}


def test_what_is_chosen_is_chosen_on_validation_and_not_on_test(model_dir, change_split):
    first = chosen(model_dir, "first")
    asked = {x["user_id"]: x["target"] for x in map(json.loads, first["texts"].splitlines())}
    users = domain(model_dir).sequences("validation")
    some = {
        seed: {user.user_id: user.target for user in sample_users(users, 6, seed)}
        for seed in (0, 3)
    }
    assert asked == some[3] != some[0]
    change_split("test")
    assert chosen(model_dir, "other_test") == first
    change_split("validation")
    other = chosen(model_dir, "other_validation")
    assert other["texts"] != first["texts"]
    found = [x["choices"][DOMAIN]["hybrid"] for x in (first, other)]
    assert found[0] != found[1]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_baselines_know_of_train_and_validation_whichever_split_is_measured(
    model_dir, monkeypatch, split
):
    told = evaluated(
        model_dir, monkeypatch, split=split, bm25={"k1": 1.2, "b": 0.5}, seen="exclude"
    )
    (subject,) = told["subjects"]
    where = domain(model_dir)
    splits = {name: where.sequences(name) for name in ("train", "validation", "test")}
    assert splits["train"] != splits["validation"] != splits["test"]
    catalogue = where.catalogue
    assert subject.baseline_data == BaselineData(
        splits["train"], catalogue, splits["validation"], BM25Config(1.2, 0.5), "exclude"
    )
    assert subject.users == splits[split]
    assert subject.texts == [where.template.render_item(fields) for fields in catalogue.fields]


def evaluated(model_dir, monkeypatch, *more, **changes) -> dict:
    """What `evaluator.predict_and_measure` is asked."""
    told = {}

    def spy(name, subjects, config, directory, settings, progress):
        told.update(subjects=subjects, config=config, directory=directory, settings=settings)
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(evaluations.evaluator, "predict_and_measure", spy)
        run = load.load_run(model_dir, [*bindings(**changes), *more])
        evaluations.evaluate(run)
    return told


def test_the_epoch_of_a_trained_baseline_is_chosen_on_validation(
    small_store, tmp_path, change_split, monkeypatch
):
    told = []

    def train(sequences, validation, catalogue, *_):
        told.append((sequences, validation))
        zeros = np.zeros(len(catalogue))
        return sasrec.Trained(1, 9, 0.5, lambda of: np.zeros((len(of), len(zeros))), {"w": zeros})

    monkeypatch.setattr(sasrec, "train", train)
    where = Domain(DOMAIN, DOMAIN, str(small_store), Template(), vocabularies.byte())
    splits = [where.sequences(name) for name in ("train", "validation")]

    def result(name: str) -> dict:
        path = tmp_path / name
        paths = [f"--gin.DATA_DIR='{small_store}'", f"--gin.MODEL_DIR='{path}'"]
        assert cli.main(["baseline", *SASREC, *paths]) == 0
        return json.loads((path / "eval" / "test" / "metrics.json").read_text())

    first = result("first")
    change_split("test")
    other = result("other_test")
    assert told == [tuple(splits)] * 2
    assert first["choices"] == other["choices"]
    assert first["baselines"] != other["baselines"]


SASREC = [
    "--gin_file=gin/baselines/sasrec.gin",
    f"--gin.DATASET='{DOMAIN}'",
    "--gin.evaluation.EvaluationConfig.bootstrap_samples=20",
    "--gin.evaluation.EvaluationConfig.baselines=['hybrid']",
]


# How the model is asked


class Sampler:
    """Remembers what it is made with, and what it is asked."""

    made: list[Sampler] = []

    def __init__(self, decoder, params, config, **more):
        self.decoder, self.config, self.more = decoder, config, more
        self.made.append(self)

    def __call__(self, prompts, seeds):
        """Writes nothing."""
        self.prompts, self.seeds = prompts, seeds
        nothing = np.zeros((len(prompts), 1), np.int32)
        return Samples(nothing[..., None], nothing, nothing.astype(float), nothing)


@pytest.fixture
def samplers(monkeypatch) -> list[Sampler]:
    """All that are made."""
    monkeypatch.setattr(Sampler, "made", [])
    monkeypatch.setattr(trained_model, "Sampler", Sampler)
    return Sampler.made


DRAWS = {
    "num_samples": 3,
    "temperature": 0.7,
    "max_new_tokens": 60,
    "method": "sample",
    "top_k": 5,
    "top_p": 0.9,
}
BEAMS = DRAWS | {"method": "beam", "top_k": None, "top_p": 1.0}


@pytest.mark.parametrize("retrieval", ["bm25", "trie", "hybrid"])
@pytest.mark.parametrize("asked", [DRAWS, BEAMS])
def test_all_that_is_said_of_texts_reaches_the_sampler(model_dir, samplers, retrieval, asked):
    run = load.load_run(model_dir, bindings(retrieval=retrieval, dense_weight=0.5, sampling=asked))
    TrainedModel(run, batch_size=3).retriever(run.domain(DOMAIN), never)
    (made,) = samplers
    assert made.config == SamplingConfig(**asked)
    vocabulary = run.data.vocabulary
    trie = made.more.pop("trie")
    assert (trie is not None) == (retrieval == "trie")
    del made.more["mesh"]
    assert made.more == {
        "eos_id": vocabulary.eos_id,
        "bos_id": vocabularies.bos_id(vocabulary),
        "max_prompt_tokens": 176,
        "mesh_config": run.mesh,
        "batch_size": 3,
    }
    assert made.decoder.config == run.decoder_config


def test_no_value_above_is_the_preset_one():
    for field in dataclasses.fields(SamplingConfig):
        values = [getattr(SamplingConfig(**asked), field.name) for asked in (DRAWS, BEAMS)]
        assert any(value != field.default for value in values), field.name


def test_the_seed_is_that_of_the_texts(model_dir, samplers):
    where = domain(model_dir)
    histories = [user.history for user in where.sequences("test")[:2]]
    for seed in (0, 1, 1):
        retriever(model_dir, seed=seed).generate(histories, ["a", "b"])
    seeds = [sampler.seeds for sampler in samplers]
    assert len({*seeds[0], *seeds[1]}) == 4 and seeds[1] == seeds[2]


@pytest.mark.parametrize("retrieval", ["bm25", "trie"])
def test_epsilon_scales_the_scores_of_texts(model_dir, samplers, retrieval):
    where = domain(model_dir)
    history = where.sequences("test")[0].history
    text = where.template.render_item(where.catalogue.fields[3])
    for epsilon in (0.25, 0.5):
        texts = retriever(
            model_dir, retrieval=retrieval, epsilon=epsilon, sampling={"max_new_tokens": 60}
        )
        (scores,) = texts.scores([[Generated(text, -2.0, (3,))]], [history])
        assert scores[3] == scores.max() == pytest.approx(np.exp(-2.0 * epsilon), rel=1e-12)


@pytest.mark.parametrize("change", [{}, {"k1": 0.3}, {"b": 0.1}, {"k1": 0.3, "b": 0.1}])
def test_k1_and_b_are_those_of_the_index(model_dir, samplers, change):
    where = domain(model_dir)
    history = where.sequences("test")[0].history
    output = [[Generated(" ".join(where.catalogue.fields[3].values()), -1.0)]]
    (found,) = retriever(model_dir, bm25=change).scores(output, [history])

    def scores(**parameters) -> list[float]:
        index = BM25Index(where.item_texts(), BM25Config(**parameters))
        lookup = BM25Lookup(index, where.catalogue, where.template, 1 / 5000)
        (row,) = lookup.scores(output)
        return row.tolist()

    assert found.tolist() == scores(**change)
    assert not change or found.tolist() != scores()


# What predictions and vectors depend on


def fingerprint(stage_dir: pathlib.Path, step: int) -> str:
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    found = checkpoints.fingerprint(step)
    checkpoints.close()
    return found


def test_predictions_keep_all_that_they_depend_on(model_dir, monkeypatch):
    names = [DOMAIN, "synthetic_office"]
    told = evaluated(model_dir, monkeypatch, domains=names)
    run = load.load_run(model_dir, bindings(domains=names))
    step = TrainedModel(run).step
    template = dataclasses.asdict(Template())
    needed = {
        **run.evaluation.prediction_settings(),
        "vocabulary": vocabularies.fingerprint(run.data.vocabulary),
        "step": step,
        "saved": fingerprint(model_dir / "stage2", step),
        "dtype": "float32",
        "task_feature_lengths": {"inputs": 176, "targets": 32},
        "templates": dict.fromkeys(names, template),
    }
    assert told["settings"].items() >= needed.items()
    assert told["directory"].path == model_dir / "eval" / "test"


def test_predictions_of_other_lengths_or_templates_are_refused(model_dir):
    evaluate(model_dir, "kept", retrieval="dense")
    for name, binding in {
        "task_feature_lengths.inputs": "TASK_FEATURE_LENGTHS={'inputs': 100, 'targets': 32}",
        f"templates.{DOMAIN}.separator": "templates.Template.separator=' / '",
    }.items():
        with pytest.raises(CalrecError, match=f"made with {name} = "):
            evaluate(model_dir, "kept", [binding], retrieval="dense")


def answers(model_dir, checkpoint: str, name: str) -> list[dict]:
    """Whom the towers of a checkpoint rank, in a new folder."""
    evaluate(model_dir, name, retrieval="dense", checkpoint=checkpoint, top_k=1000)
    return lines(model_dir, name)


def test_each_checkpoint_has_its_own_vectors_and_answers(model_dir, tmp_path):
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    shutil.rmtree(copy / "eval", ignore_errors=True)
    first = answers(copy, "stage1:best", "first")
    second = answers(copy, "stage2:best", "second")
    assert first != second
    # The second stage is made anew, and its weights are those of the first one.
    shutil.rmtree(copy / "stage2" / "checkpoints")
    shutil.copytree(copy / "stage1" / "checkpoints", copy / "stage2" / "checkpoints")
    with pytest.raises(CalrecError, match="made with saved = "):
        evaluate(copy, "second", retrieval="dense", checkpoint="stage2:best", top_k=1000)
    assert answers(copy, "stage2:best", "anew") == first


def test_vectors_are_of_the_items_as_they_are_encoded(model_dir, monkeypatch):
    def vectors() -> set[str]:
        retriever(model_dir, retrieval="dense")
        return {path.name for path in model_dir.glob("stage2/vectors/*.npz")}

    before = vectors()
    assert vectors() == before
    text, resolved = Domain.text.func, domains.resolved

    def other_text(self):
        return dataclasses.replace(text(self), values=text(self).values[::-1])

    def with_titles_alone(*args):
        return dataclasses.replace(resolved(*args), template=Template(fields=("title",)))

    with monkeypatch.context() as patch:
        patch.setattr(Domain, "text", property(other_text))
        others = vectors()
    assert len(others) == len(before) + 1
    monkeypatch.setattr(domains, "resolved", with_titles_alone)
    assert len(vectors()) == len(others) + 1


# Recommender


def recommended(model_dir, history, **named):
    made = Recommender.load(model_dir, **named, bindings=bindings(retrieval="dense"))
    return made.recommend([history], k=20)[0]


def test_a_recommender_is_of_the_checkpoint_that_is_asked_for(model_dir):
    history = domain(model_dir).sequences("test")[0].history
    first = recommended(model_dir, history, checkpoint="stage1:best")
    run = load.load_run(model_dir, bindings(retrieval="dense", checkpoint="stage1:best"))
    towers = TrainedModel(run).retriever(run.domain(DOMAIN), never)
    (found,) = towers([history], ["me"], None, 20)
    ids = domain(model_dir).catalogue.item_ids
    assert [item.item_id for item in first] == [ids[place] for place in found.places]
    assert [item.score for item in first] == found.scores.tolist()
    assert first != recommended(model_dir, history)


def test_a_recommender_is_of_the_domain_that_is_asked_for(model_dir):
    office = load.load_run(model_dir).domain("synthetic_office")
    history = office.sequences("test")[0].history
    items = recommended(model_dir, history, domain="synthetic_office")
    assert {item.item_id for item in items} <= set(office.catalogue.item_ids)


def test_the_command_hands_all_of_it_on(monkeypatch):
    told = []

    def load(model_dir, domain=None, checkpoint=None, bindings=()):
        told.append((model_dir, domain, list(bindings)))
        raise CalrecError("enough")

    monkeypatch.setattr(Recommender, "load", load)
    where = ["--model_dir=runs/a", "--histories=-", "--domain=toys"]
    assert cli.main(["recommend", *where, "--gin.RANDOM_SEED=1"]) == 1
    assert told == [("runs/a", "toys", ["RANDOM_SEED=1"])]
