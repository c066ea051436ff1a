"""A run that has hardly learnt anything, and how tests evaluate it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from calrec_jax.cli import main as cli
from calrec_jax.configs import load
from calrec_jax.runs.evaluate import evaluate as evaluate_run

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
    """Both stages, as `calrec train` does."""
    data = [f"--gin.DATA_DIR={str(store)!r}", f"--gin.MODEL_DIR={str(model_dir)!r}"]
    assert cli.main(["train", *TRAIN, *data]) == 0


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
    return [f"{cls}.{name}={v!r}" for cls, of in values.items() for name, v in of.items()]


def evaluate(model_dir: pathlib.Path, name: str, more=(), **changes) -> dict:
    """Of a folder `name`, as `calrec eval` does.

    Args:
      more: bindings of other things.
    """
    told = []
    run = load.load_run(model_dir, [*bindings(name=name, **changes), *more])
    result = evaluate_run(run, lambda *done, **verb: told.append(done))
    path = model_dir / "eval" / name
    assert json.loads((path / "metrics.json").read_text()) == result
    assert told[-1] == (result["n"], result["n"])
    return result


def lines(model_dir: pathlib.Path, name: str) -> list[dict]:
    """The predictions in a folder `name`."""
    path = model_dir / "eval" / name / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
