"""A run of a baseline that is trained: its data, training, evaluation and files."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from calrec_jax import files
from calrec_jax.data import vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.errors import CalrecError
from calrec_jax.eval import evaluator, sasrec
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluated_domain import EvaluatedDomain
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.retrievers import ScoreRetriever
from calrec_jax.eval.sasrec import SASRecConfig
from calrec_jax.model_dir import ModelDir, StageDir
from calrec_jax.runs.evaluate import OnProgress, baseline_data, show_nothing
from calrec_jax.text.templates import Template
from calrec_jax.training import manifest

_NAME = "sasrec"
_PREDICTION_SETTINGS = ("split", "top_k", "seen", "shuffle_history", "seed")


@dataclasses.dataclass(frozen=True)
class BaselineRun:
    """A baseline that is trained on one dataset, and its evaluation.

    Attributes:
      model_dir: where everything is written.
      data_dir: the store, or arrays that `calrec batches` made of it.
      model: SASRec and its training.
      evaluation: `domains` is the dataset's name. What it says of texts is not used.
    """

    model_dir: str
    data_dir: str
    model: SASRecConfig
    evaluation: EvaluationConfig


def train_and_evaluate(
    run: BaselineRun, config_gin: str, on_progress: OnProgress = show_nothing
) -> dict[str, Any]:
    """Trains the model, then measures it; returns what metrics.json holds.

    MODEL_DIR gets what `calrec report` reads: manifest.json, config.gin, sasrec/metrics.jsonl (a
    line an epoch), the weights in sasrec/checkpoints, and eval/<split>. Weights that are there are
    not trained again.

    Args:
      config_gin: the text of MODEL_DIR/config.gin.
      on_progress: called with (users done, users in all).

    Raises:
      CalrecError: MODEL_DIR is another run's or holds other predictions, or as `sasrec.train`.
    """
    config, model_dir = run.evaluation, ModelDir(run.model_dir)
    if len(config.domains) > 1:
        raise CalrecError(
            f"EvaluationConfig.domains is {config.domains}: SASRec is trained on one dataset, not "
            f"on several"
        )
    (dataset,) = config.domains
    # Items are their ids: no text is encoded, so any vocabulary does.
    domain = Domain(dataset, dataset, run.data_dir, Template(), vocabularies.byte())
    data = baseline_data(domain, config)
    with manifest.locked(model_dir):
        trained = _trained(run, domain, data, config_gin)
    config = dataclasses.replace(config, checkpoint=f"{_NAME}, epoch {trained.epoch}")
    evaluated = EvaluatedDomain(
        data,
        domain.sequences(config.split),
        domain.item_texts(),
        lambda: ScoreRetriever(trained.score, domain.catalogue, config.seen),
    )
    settings = {name: getattr(config, name) for name in _PREDICTION_SETTINGS} | {
        "model": dataclasses.asdict(run.model),
        "epoch": trained.epoch,
        "ndcg": trained.ndcg,
    }
    directory = model_dir.evaluation(config.folder)
    return evaluator.predict_and_measure(
        _NAME, [evaluated], config, directory, settings, on_progress
    )


def _trained(
    run: BaselineRun, domain: Domain, data: BaselineData, config_gin: str
) -> sasrec.Trained:
    """The model: as it was saved, or trained and saved."""
    stage = ModelDir(run.model_dir).stage(_NAME)
    saved = manifest.read(run.model_dir) if stage.has_saved() else None
    _claim(run, domain, saved["stages"][_NAME]["train_steps"] if saved else 0)
    files.write_text(ModelDir(run.model_dir).config, config_gin)
    trained = sasrec.restore(stage, run.model, data.catalogue)
    if trained is None:
        trained = _train(run, data, stage)
        _claim(run, domain, trained.steps)
        sasrec.save(stage, trained)
    return trained


def _claim(run: BaselineRun, domain: Domain, steps: int) -> None:
    """Writes the manifest, or refuses a MODEL_DIR in which another run has saved something."""
    manifest.claim(
        run.model_dir,
        {
            "versions": manifest.versions(),
            "vocabulary": "item ids",
            "model": dataclasses.asdict(run.model),
            "data": {"checksums": domain.checksums()},
            "stages": {_NAME: {"mixture": domain.name, "train_steps": steps}},
        },
    )


def _train(run: BaselineRun, data: BaselineData, stage: StageDir) -> sasrec.Trained:
    stage.path.mkdir(parents=True, exist_ok=True)
    with stage.metrics.open("w", encoding="utf-8") as file:

        def on_epoch(epoch: int, step: int, loss: float, ndcg: float) -> None:
            lines = (
                {"step": step, "split": "train", "loss": loss},
                {"step": step, "split": "validation", "ndcg@10": ndcg},
            )
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            print(
                f"calrec baseline: epoch {epoch}: loss {loss:.4f}, NDCG@10 on validation "
                f"{ndcg:.4f}",
                file=sys.stderr,
                flush=True,
            )

        return sasrec.train(data.train, data.validation, data.catalogue, run.model, on_epoch)
