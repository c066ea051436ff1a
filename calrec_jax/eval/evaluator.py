"""Evaluation of a model on one split of domains, beside the baselines on the same users."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calrec_jax.eval import baselines, hybrid
from calrec_jax.eval.evaluated_domain import EvaluatedDomain, MeasuredDomain, measured_domains
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.outcomes import Outcome, outcome
from calrec_jax.eval.predictions import (
    PredictionsFile,
    PredictionSummary,
    UserKey,
    locked,
    predict_users,
)
from calrec_jax.eval.results import write_results
from calrec_jax.eval.users import with_shuffled_history
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.items import UserSequence

Progress = Callable[[int, int], None]
"""Called with (users done, users in all)."""


def predict_and_measure(
    name: str,
    domains: Sequence[EvaluatedDomain],
    config: EvaluationConfig,
    directory: str | os.PathLike,
    settings: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Predicts for users of a split, measures, and writes the files of the evaluation.

    predictions.jsonl (with settings.json, what the predictions depend on), metrics.json, and what
    the report shows: examples.json and slices.json. For users that predictions.jsonl already holds
    nothing is predicted again; users outside of the sample stay there, but are not measured.

    Args:
      name: of the model, in tables.
      domains: of different datasets; `config.max_users` of all their users are measured.
      config: what is measured. The retrievers were made as it says.
      directory: the folder to write, MODEL_DIR/eval/<config.folder>.
      settings: all that predictions depend on besides the data.
      progress: called after each batch, with (users done, users in all).

    Returns:
      What metrics.json holds.

    Raises:
      CalrecError: the directory holds predictions made with other settings, or is in use; there are
        no users, or their items are not in the catalogue.
    """
    folder = EvaluationDir(directory)
    measured = measured_domains(domains, config)
    data_hashes = {domain.name: domain.data_hashes() for domain in domains}
    with locked(folder):
        file = PredictionsFile(folder, {"data": data_hashes, **settings})
        # Before the model, which may take hours: what fails here fails at once.
        baseline_outcomes, choices = _measure_baselines(measured, config)
        predictions = _complete_predictions(file, measured, config, progress)
        if config.chooses_weight:
            for domain in domains:
                if choice := _read_weight_choice(file, domain):
                    choices[domain.name][name] = dataclasses.asdict(choice)
        facts = {"model": name, "data": data_hashes, "choices": choices}
        return write_results(file, measured, predictions, baseline_outcomes, config, facts)


def _measure_baselines(
    measured: Sequence[MeasuredDomain], config: EvaluationConfig
) -> tuple[dict[str, list[Outcome]], dict[str, dict[str, Any]]]:
    """{baseline: its outcome in each domain}, {domain: {hybrid: what validation chose for it}}."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in config.baselines}
    choices: dict[str, dict[str, Any]] = {}
    for one in measured:
        data, users = one.domain.baseline_data, _as_models_see(one.users, config)
        choices[one.domain.name] = {}
        for name in config.baselines:
            score = baselines.BASELINES[name](data)
            outcomes[name].append(outcome(score, users, data.catalogue, data.seen))
            if isinstance(score, baselines.HybridBaseline):
                choices[one.domain.name][name] = dataclasses.asdict(score.choice)
    return outcomes, choices


def _complete_predictions(
    file: PredictionsFile,
    measured: Sequence[MeasuredDomain],
    config: EvaluationConfig,
    progress: Progress,
) -> dict[UserKey, PredictionSummary]:
    """Predicts for the measured users that the file lacks; returns what the file then holds."""
    predictions = file.read()
    for one in measured:
        file.require_same_data(predictions, one.users, one.domain.catalogue)
    missing = [
        [user for user in one.users if (user.domain, user.user_id) not in predictions]
        for one in measured
    ]
    total = sum(len(one.users) for one in measured)
    done = total - sum(map(len, missing))
    progress(done, total)
    for one, users in zip(measured, missing, strict=True):
        if users or _lacks_weight_choice(file, one, config):
            predict_users(
                file,
                _as_models_see(users, config),
                one.domain.catalogue,
                one.domain.retriever(),
                config.top_k,
                config.users_per_batch,
                lambda n, before=done: progress(before + n, total),
            )
            done += len(users)
    return file.read() if any(missing) else predictions


def _lacks_weight_choice(
    file: PredictionsFile, measured: MeasuredDomain, config: EvaluationConfig
) -> bool:
    """Whether the weight of the towers has to be chosen, which making the retriever does."""
    if not measured.users or not config.chooses_weight:
        return False
    return _read_weight_choice(file, measured.domain) is None


def _read_weight_choice(
    file: PredictionsFile, domain: EvaluatedDomain
) -> hybrid.WeightChoice | None:
    """The weight that was chosen for a domain, if any."""
    return hybrid.read_choice(file.directory.choosing(domain.name))


def _as_models_see(
    users: Sequence[UserSequence], config: EvaluationConfig
) -> Sequence[UserSequence]:
    """The users with the histories that models are given."""
    if not config.shuffle_history:
        return users
    return [with_shuffled_history(user, config.seed) for user in users]
