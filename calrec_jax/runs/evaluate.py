"""Evaluation of a run's trained model, beside the baselines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from calrec_jax.data.domains import Domain
from calrec_jax.errors import CalrecError
from calrec_jax.eval import evaluator, hybrid
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluated_domain import EvaluatedDomain
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.predictions import require_made_with
from calrec_jax.eval.retrievers import DenseRetriever, TextRetriever
from calrec_jax.eval.users import sample_users
from calrec_jax.model_dir import EvaluationDir, ModelDir
from calrec_jax.runs.run import Run
from calrec_jax.runs.trained_model import TrainedModel


class OnProgress(Protocol):
    """Called after each batch of users."""

    def __call__(self, done: int, total: int, verb: str = "evaluated") -> None:
        """Takes the users that are done, and all users.

        Args:
          verb: what is done with them.
        """


def show_nothing(done: int, total: int, verb: str = "evaluated") -> None:
    """An `OnProgress` that does nothing."""


def evaluate(run: Run, on_progress: OnProgress = show_nothing) -> dict[str, Any]:
    """Measures the run's model as `run.evaluation` says; returns what metrics.json holds.

    Users that MODEL_DIR/eval already has predictions of are not predicted again, see
    `evaluator.predict_and_measure`.

    Args:
      on_progress: called after each batch of users.

    Raises:
      CalrecError: there are several processes, no evaluation or no such checkpoint; or as
        `evaluator.predict_and_measure`.
    """
    config = run.require_evaluation()
    if jax.process_count() > 1:
        raise CalrecError(
            f"evaluation runs in one process, and these are {jax.process_count()}: run it on a "
            f"machine or slice with one host"
        )
    directory = ModelDir(run.model_dir).evaluation(config.folder)
    domains = [run.domain(name) for name in config.domains]
    _check_datasets(domains)
    users = sum(domain.num_sequences(config.split) for domain in domains)
    # No larger than the users are many: smaller batches are filled up to this size.
    batch_size = max(1, min(config.users_per_batch, config.max_users or users, users))
    model = TrainedModel(run, batch_size=batch_size)
    settings = {
        **config.prediction_settings(),
        **model.settings(),
        "templates": {domain.name: dataclasses.asdict(domain.template) for domain in domains},
    }
    choose_weight = _weight_chooser(config, directory, settings, batch_size, on_progress)
    evaluated = [
        EvaluatedDomain(
            baseline_data(domain, config),
            domain.sequences(config.split),
            domain.item_texts(),
            functools.partial(model.retriever, domain, functools.partial(choose_weight, domain)),
        )
        for domain in domains
    ]
    return evaluator.predict_and_measure(
        "calrec", evaluated, config, directory, settings, on_progress
    )


def _weight_chooser(
    config: EvaluationConfig,
    directory: EvaluationDir,
    settings: Mapping[str, Any],
    batch_size: int,
    on_progress: OnProgress,
) -> Callable[[Domain, TextRetriever, DenseRetriever], float]:
    """A function that chooses the weight of the towers in "hybrid", on a domain's validation."""

    def choose_weight(domain: Domain, texts: TextRetriever, dense: DenseRetriever) -> float:
        return hybrid.choose_dense_weight(
            texts,
            dense,
            sample_users(domain.sequences("validation"), config.choosing_users, config.seed),
            domain.catalogue,
            directory.choosing(domain.dataset),
            settings,
            batch_size=batch_size,
            progress=functools.partial(on_progress, verb="choosing the weight of the towers:"),
        ).weight

    return choose_weight


def _check_datasets(domains: Sequence[Domain]) -> None:
    """Raises CalrecError for two domains of one dataset: their users could not be told apart."""
    names: dict[str, str] = {}
    for domain in domains:
        other = names.setdefault(domain.dataset, domain.name)
        if other != domain.name:
            raise CalrecError(
                f"EvaluationConfig.domains names {other!r} and {domain.name!r}, which are both of "
                f"dataset {domain.dataset!r}: evaluate them one by one, with EvaluationConfig.name"
            )


def baseline_data(domain: Domain, config: EvaluationConfig) -> BaselineData:
    """What the baselines of an evaluation learn from."""
    return BaselineData(
        domain.sequences("train"),
        domain.catalogue,
        domain.sequences("validation"),
        config.bm25,
        config.seen,
    )


def chosen_weight(run: Run, model: TrainedModel, domain: Domain) -> float:
    """The weight of retrieval "hybrid" that the run's last evaluation chose for a domain.

    Raises:
      CalrecError: it has chosen none, or one for another checkpoint.
    """
    directory = ModelDir(run.model_dir).evaluation(run.evaluation.folder)
    folder = directory.choosing(domain.dataset)
    choice = hybrid.read_choice(folder)
    if choice is None:
        raise CalrecError(
            f"no weight has been chosen for retrieval 'hybrid' in {folder}: run `calrec eval` with "
            f"it, or bind EvaluationConfig.name to that of an evaluation that chose one, or "
            f"EvaluationConfig.dense_weight"
        )
    require_made_with(folder, model.settings())
    return choice.weight
