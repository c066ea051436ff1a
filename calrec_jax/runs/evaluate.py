"""Evaluation of a run's trained model, beside the baselines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

# Takes (users done, users in all), and a verb where they are not those that are evaluated.
OnProgress = Callable[..., None]


def unnoticed(done: int, total: int, verb: str = "evaluated") -> None:
    """Progress that nobody is shown."""


def evaluate(run: Run, on_progress: OnProgress = unnoticed) -> dict[str, Any]:
    """Measures the run's model as `run.evaluation` says; returns what metrics.json holds.

    Users that MODEL_DIR/eval already has predictions of are not predicted again, see
    `evaluator.predict_and_measure`.

    Args:
      on_progress: called with (users done, users in all, verb of the line).

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
    # The last batch is smaller, and filled up.
    batch_size = max(1, min(config.users_per_batch, config.max_users or users, users))
    model = TrainedModel(run, batch_size=batch_size)
    settings = {
        **config.prediction_settings(),
        **model.settings(),
        "templates": {domain.name: dataclasses.asdict(domain.template) for domain in domains},
    }
    choose = functools.partial(
        _choose_weight, run, directory, settings, batch_size=batch_size, on_progress=on_progress
    )
    evaluated = [_evaluated(run, model, domain, choose) for domain in domains]
    return evaluator.predict_and_measure(
        "calrec", evaluated, config, directory, settings, on_progress
    )


def _check_datasets(domains: Sequence[Domain]) -> None:
    """Raises CalrecError for two domains of one dataset, whose users would be one another's."""
    names: dict[str, str] = {}
    for domain in domains:
        other = names.setdefault(domain.dataset, domain.name)
        if other != domain.name:
            raise CalrecError(
                f"EvaluationConfig.domains names {other!r} and {domain.name!r}, which are both of "
                f"dataset {domain.dataset!r}: evaluate them one by one, with EvaluationConfig.name"
            )


def _evaluated(
    run: Run,
    model: TrainedModel,
    domain: Domain,
    choose_weight: Callable[[Domain, TextRetriever, DenseRetriever], float],
) -> EvaluatedDomain:
    """A domain of the evaluation, with the model that is measured on it."""
    return EvaluatedDomain(
        baseline_data(domain, run.evaluation),
        domain.sequences(run.evaluation.split),
        domain.item_texts(),
        lambda: model.retriever(domain, functools.partial(choose_weight, domain)),
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


def _choose_weight(
    run: Run,
    directory: EvaluationDir,
    settings: Mapping[str, Any],
    domain: Domain,
    texts: TextRetriever,
    dense: DenseRetriever,
    *,
    batch_size: int,
    on_progress: OnProgress,
) -> float:
    """The weight of the towers in retrieval "hybrid", chosen on the domain's validation split."""
    config = run.evaluation
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
