"""A trained model is queried as its run's evaluation says, with its checkpoint and its items."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from trained_run import DOMAIN, bindings, domain, evaluate, lines

from calrec_jax import CalrecError
from calrec_jax.configs import load
from calrec_jax.data import domains, vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.decode.sample import Samples
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.eval.retrievers import BM25Lookup
from calrec_jax.retrieval.bm25 import BM25Config, BM25Index
from calrec_jax.runs import trained_model
from calrec_jax.runs.trained_model import TrainedModel
from calrec_jax.text.generated import Generated
from calrec_jax.text.templates import Template


def retriever(model_dir, name: str = DOMAIN, **changes):
    """The model as a retriever of a domain's items."""
    run = load.load_run(model_dir, bindings(**changes))
    return TrainedModel(run).retriever(run.domain(name), never)


def never(*_):
    raise AssertionError("a weight is chosen")


# How the model is queried


class Sampler:
    """Records what it is made with, and its prompts and seeds."""

    made: list[Sampler] = []

    def __init__(self, decoder, params, config, **more):
        self.decoder, self.config, self.more = decoder, config, more
        self.made.append(self)

    def __call__(self, prompts, seeds):
        """Generates empty texts."""
        self.prompts, self.seeds = prompts, seeds
        nothing = np.zeros((len(prompts), 1), np.int32)
        return Samples(nothing[..., None], nothing, nothing.astype(float), nothing)


@pytest.fixture
def samplers(monkeypatch) -> list[Sampler]:
    """All samplers that are made."""
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
@pytest.mark.parametrize("values", [DRAWS, BEAMS])
def test_the_sampling_config_reaches_the_sampler(model_dir, samplers, retrieval, values):
    run = load.load_run(model_dir, bindings(retrieval=retrieval, dense_weight=0.5, sampling=values))
    TrainedModel(run, batch_size=3).retriever(run.domain(DOMAIN), never)
    (made,) = samplers
    assert made.config == SamplingConfig(**values)
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


def test_no_value_above_is_a_default():
    for field in dataclasses.fields(SamplingConfig):
        tried = [getattr(SamplingConfig(**values), field.name) for values in (DRAWS, BEAMS)]
        assert any(value != field.default for value in tried), field.name


def test_the_evaluations_seed_reaches_the_sampler(model_dir, samplers):
    sports = domain(model_dir)
    histories = [user.history for user in sports.sequences("test")[:2]]
    for seed in (0, 1, 1):
        retriever(model_dir, seed=seed).generate(histories, ["a", "b"])
    seeds = [sampler.seeds for sampler in samplers]
    assert len({*seeds[0], *seeds[1]}) == 4 and seeds[1] == seeds[2]


@pytest.mark.parametrize("retrieval", ["bm25", "trie"])
def test_epsilon_scales_the_scores_of_texts(model_dir, samplers, retrieval):
    sports = domain(model_dir)
    history = sports.sequences("test")[0].history
    text = sports.template.render_item(sports.catalogue.fields[3])
    for epsilon in (0.25, 0.5):
        texts = retriever(
            model_dir, retrieval=retrieval, epsilon=epsilon, sampling={"max_new_tokens": 60}
        )
        (scores,) = texts.scores([[Generated(text, -2.0, (3,))]], [history])
        assert scores[3] == scores.max() == pytest.approx(np.exp(-2.0 * epsilon), rel=1e-12)


@pytest.mark.parametrize("change", [{}, {"k1": 0.3}, {"b": 0.1}, {"k1": 0.3, "b": 0.1}])
def test_k1_and_b_are_those_of_the_index(model_dir, samplers, change):
    sports = domain(model_dir)
    history = sports.sequences("test")[0].history
    output = [[Generated(" ".join(sports.catalogue.fields[3].values()), -1.0)]]
    (found,) = retriever(model_dir, bm25=change).scores(output, [history])

    def scores(**parameters) -> list[float]:
        index = BM25Index(sports.item_texts(), BM25Config(**parameters))
        lookup = BM25Lookup(index, sports.catalogue, sports.template, 1 / 5000)
        (row,) = lookup.scores(output)
        return row.tolist()

    assert found.tolist() == scores(**change)
    assert not change or found.tolist() != scores()


# What vectors depend on


def answers(model_dir, checkpoint: str, name: str) -> list[dict]:
    """The predictions of a checkpoint's towers, in a new folder."""
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


def test_other_tokens_of_the_items_have_other_vectors(model_dir, monkeypatch):
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


def test_a_weight_of_zero_gives_the_texts_ranking_and_a_great_one_the_towers(model_dir):
    retrievers = {
        "texts": retriever(model_dir),
        "zero": retriever(model_dir, retrieval="hybrid", dense_weight=0.0),
        "dense": retriever(model_dir, retrieval="dense"),
        "great": retriever(model_dir, retrieval="hybrid", dense_weight=1e9),
    }
    user = domain(model_dir).sequences("test")[0]
    rankings = {
        name: next(iter(retrieve([list(user.history)], ["me"], [user.target], 5)))
        for name, retrieve in retrievers.items()
    }
    assert rankings["texts"].places.tolist() == rankings["zero"].places.tolist()
    assert rankings["texts"].bounds == rankings["zero"].bounds
    assert rankings["dense"].places.tolist() == rankings["great"].places.tolist()
    assert rankings["dense"].generated == () and rankings["great"].generated
