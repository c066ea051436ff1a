"""config.gin of a run that was made in Python: the same run comes out of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import seqio

import calrec_jax
from calrec_jax import CalrecError, DataConfig, DecoderConfig, EvaluationConfig, Run, Stage
from calrec_jax.configs import load
from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
from calrec_jax.models.lora import LoraConfig
from calrec_jax.models.rotary import RopeScaling
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.runs import config_text
from calrec_jax.text.templates import Template
from calrec_jax.training.optimizer import OptimizerConfig

LENGTHS = {"inputs": 64, "targets": 16}
MODEL = DecoderConfig(32, 1, 2, 1, 16, 32)


def make_run(folder, **changes) -> Run:
    stages = [
        Stage("first", "all of it", 3, 8, LENGTHS, optimizer=OptimizerConfig(learning_rate=0.5)),
        Stage("2nd stage", "toys", 2, 8, LENGTHS, lora=LoraConfig(rank=2), init_from="first:best"),
    ]
    attributes = {
        "model_dir": str(folder / "model"),
        "model": dataclasses.replace(MODEL, rope_scaling=RopeScaling("linear", 2.0)),
        "data": DataConfig(str(folder / "store"), vocabularies.byte(), Template(("title",))),
        "stages": stages,
        "evaluation": EvaluationConfig(("toys", "books"), seen="exclude", max_users=3),
        "modules": ("my.domains",),
        "mesh": MeshConfig(model=2),
        "seed": 7,
    }
    return Run(**attributes | changes)


def read_again(run, folder, *bindings) -> Run:
    path = folder / "config.gin"
    path.write_text(config_text.of_run(run))
    return load.from_gin([str(path)], bindings)


def test_the_same_run_is_read_again(tmp_path):
    run = make_run(tmp_path)
    again = read_again(run, tmp_path)
    assert dataclasses.replace(again, stages=list(again.stages)) == run
    assert [stage.optimizer.learning_rate for stage in again.stages] == [0.5, 1e-3]


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": None, "modules": "one.module", "mesh": MeshConfig()},
        {"model": MODEL, "modules": ()},
        {"stages": [Stage("only", "m", np.int64(3), 8, LENGTHS)]},
        {"stages": [Stage("a", "m", 3, 8, LENGTHS, optimizer=OptimizerConfig(clip_norm=np.inf))]},
    ],
)
def test_whatever_it_holds(tmp_path, changes):
    run = make_run(tmp_path, **changes)
    assert read_again(run, tmp_path) == run


def test_paths_and_vocabulary_may_be_given_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, model_dir="model", data=DataConfig("store", vocabularies.byte()))
    again = read_again(run, tmp_path, "DATA_DIR='elsewhere'")
    assert again.model_dir == str(tmp_path / "model")
    assert again.data.data_dir == str(tmp_path / "elsewhere")


def test_a_vocabulary_of_a_file(tmp_path):
    path = tmp_path / "small.model"
    sentencepiece_training.train(["Title: red hose", "Title: blue hose"], path, 300)
    vocabulary = vocabularies.sentencepiece(str(path))
    run = make_run(tmp_path, data=DataConfig("store", vocabulary))
    assert read_again(run, tmp_path).data.vocabulary == vocabulary


def test_another_vocabulary_has_to_be_given_with_the_file(tmp_path):
    run = make_run(tmp_path, data=DataConfig("store", seqio.ByteVocabulary()))
    with pytest.raises(CalrecError, match="no value for VOCABULARY"):
        read_again(run, tmp_path)
    given = read_again(run, tmp_path, "VOCABULARY=@vocabularies.byte()")
    assert given.data.vocabulary == vocabularies.byte()


def test_it_is_never_what_gin_holds_of_another_run(tmp_path, monkeypatch):
    """A run of gin, then one that is made in Python: each MODEL_DIR says what made it."""
    from calrec_jax.training.stages import Trainer

    monkeypatch.setattr(Trainer, "run_stage", lambda self, stage: None)
    monkeypatch.setattr("calrec_jax.runs.train.check", lambda run: None)
    monkeypatch.setattr("calrec_jax.runs.train.StageData", NoData)
    other = make_run(tmp_path / "a", seed=3, mesh=MeshConfig())
    text = config_text.of_run(other)
    (tmp_path / "a.gin").write_text(text)
    load.from_gin([str(tmp_path / "a.gin")])
    run = make_run(tmp_path, mesh=MeshConfig())
    calrec_jax.train(run)
    assert calrec_jax.load_run(tmp_path / "model").seed == 7


class NoData:
    def __init__(self, run): ...

    def fingerprint(self, stage):
        return {}

    def description(self, examples):
        return {}
