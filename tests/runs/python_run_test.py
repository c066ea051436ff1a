"""A run that is made in Python: it trains, goes on where it stopped, and is evaluated. No gin."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tarfile

import numpy as np
import pytest

import calrec_jax
from calrec_jax import (
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    OptimizerConfig,
    Run,
    SamplingConfig,
    Stage,
    vocabularies,
)
from calrec_jax.runs import train as train_module

ARCHIVE = pathlib.Path(__file__).parents[1] / "model_dirs" / "0.1.tar.xz"


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "arrays"


def make_run(arrays: pathlib.Path, model_dir: pathlib.Path) -> Run:
    def stage(name: str, mixture: str, **more) -> Stage:
        lengths = {"inputs": 192, "targets": 64}
        optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)
        return Stage(
            name, mixture, 4, 8, lengths, optimizer=optimizer,
            validate_period=2, log_period=1, **more
        )  # fmt: skip

    return Run(
        str(model_dir),
        DecoderConfig(16, 2, 2, 1, 8, 16),
        DataConfig(str(arrays), vocabularies.byte()),
        [stage("stage1", "both"), stage("stage2", "shoes", init_from="stage1:best")],
        EvaluationConfig(
            "shoes", sampling=SamplingConfig(num_samples=2, max_new_tokens=8), bootstrap_samples=9
        ),
    )


class Stopped(Exception):
    pass


class Interrupted(train_module.StageData):
    """Ends training in the middle of the second stage."""

    def batches(self, stage, split, start):
        for number, batch in enumerate(super().batches(stage, split, start), start):
            if (stage.name, split, number) == ("stage2", "train", 3):
                raise Stopped
            yield batch


def losses(model_dir: pathlib.Path, stage: str) -> list[tuple[int, str, float]]:
    lines = (model_dir / stage / "metrics.jsonl").read_text().splitlines()
    return [(x["step"], x["split"], x["loss"]) for x in map(json.loads, lines)]


def test_it_goes_on_where_it_stopped_and_is_read_again(arrays, tmp_path, monkeypatch):
    calrec_jax.train(make_run(arrays, tmp_path / "undisturbed"))

    run = make_run(arrays, tmp_path / "model")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(train_module, "StageData", Interrupted)
        calrec_jax.train(run)
    calrec_jax.train(run)
    for stage in ("stage1", "stage2"):
        found, expected = (losses(tmp_path / of, stage) for of in ("model", "undisturbed"))
        assert [line[:2] for line in found] == [line[:2] for line in expected]
        np.testing.assert_allclose([x[2] for x in found], [x[2] for x in expected], rtol=1e-6)

    result = calrec_jax.evaluate(run)
    assert result["n"] == 12 and set(result["baselines"]) == set(run.evaluation.baselines)
    again = calrec_jax.load_run(tmp_path / "model")
    assert again == run
    assert calrec_jax.evaluate(again) == result
    recommender = calrec_jax.Recommender.load(tmp_path / "model")
    assert len(recommender.recommend([["s1", "s2"]], k=3)[0]) == 3


def test_it_is_refused_in_the_folder_of_another(arrays, tmp_path):
    run = make_run(arrays, tmp_path / "model")
    with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "StageData", Interrupted)
        calrec_jax.train(run)
    other = dataclasses.replace(run, seed=1)
    with pytest.raises(calrec_jax.CalrecError, match=r"made with data\.seed = 0, this run has 1"):
        calrec_jax.train(other)
    assert calrec_jax.load_run(tmp_path / "model").seed == 0
