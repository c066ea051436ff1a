"""A run that has hardly learnt anything: how tests train and evaluate it.

The fixture `model_dir` of conftest.py is a copy of it.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from calrec_jax.cli import main as cli
from calrec_jax.configs import load
from calrec_jax.data.domains import Domain
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.runs.evaluate import evaluate as evaluate_run
from calrec_jax.training import stages

DOMAIN = "synthetic_sports"
TRAIN = [
    "--gin_file=gin/runs/quickstart.gin",
    "--gin.VOCABULARY=@vocabularies.byte()",
    "--gin.TRAIN_STEPS=2",
    "--gin.STAGE2_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.DecoderConfig.num_layers=1",
    "--gin.DecoderConfig.d_model=32",
    "--gin.stages.Stage.validation_batches=1",
    # One program for both stages.
    "--gin.stage2/optimizer.OptimizerConfig.learning_rate=2e-3",
    "--gin.stage2/optimizer.OptimizerConfig.warmup_steps=40",
]
SMALL = {
    "max_users": 5,
    "choosing_users": 6,
    "users_per_batch": 8,
    "bootstrap_samples": 20,
    "baselines": ["popularity", "co_occurrence"],
}
SMALL_SAMPLING = {"num_samples": 2, "max_new_tokens": 8}


def train(store: pathlib.Path, model_dir: pathlib.Path) -> None:
    """Trains both stages as `calrec train` does, on one device: the fastest to compile for."""
    data = [f"--gin.DATA_DIR={str(store)!r}", f"--gin.MODEL_DIR={str(model_dir)!r}"]
    one_device = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "make_mesh", lambda config: one_device)
        assert cli.main(["train", *TRAIN, *data]) == 0


@contextlib.contextmanager
def kept_programs(folder: pathlib.Path) -> Iterator[None]:
    """While active, compiled programs are kept in a folder, where the next model finds them."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,  # these programs run for a moment
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def bindings(**changes: Any) -> list[str]:
    """Bindings of an evaluation of few users and short texts.

    Args:
      changes: other values of its parameters; those of `sampling` and `bm25` are dictionaries.
    """
    sampling, bm25 = changes.pop("sampling", {}), changes.pop("bm25", {})
    values = {
        "evaluation.EvaluationConfig": SMALL | changes,
        "sampling.SamplingConfig": SMALL_SAMPLING | sampling,
        "bm25.BM25Config": bm25,
    }
    return [
        f"{selector}.{parameter}={value!r}"
        for selector, parameters in values.items()
        for parameter, value in parameters.items()
    ]


def evaluate(
    model_dir: pathlib.Path, name: str, more: Sequence[str] = (), **changes: Any
) -> Mapping[str, Any]:
    """Evaluates the run into the folder `name`, as `calrec eval` does. Returns metrics.json.

    Args:
      more: bindings of other things than the evaluation.
      changes: see `bindings`.
    """
    progress = []
    run = load.load_run(model_dir, [*bindings(name=name, **changes), *more])
    result = evaluate_run(run, lambda *done, **verb: progress.append(done))
    path = model_dir / "eval" / name
    assert json.loads((path / "metrics.json").read_text()) == result
    assert progress[-1] == (result["n"], result["n"])
    return result


def domain(model_dir: pathlib.Path) -> Domain:
    """The domain that the run evaluates."""
    return load.load_run(model_dir).domain(DOMAIN)


def lines(model_dir: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """The predictions in the folder `name`."""
    path = model_dir / "eval" / name / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
