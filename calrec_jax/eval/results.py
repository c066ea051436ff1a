"""The results of an evaluation: metrics.json, slices.json and examples.json, from predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax.eval.evaluated_domain import MeasuredDomain
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.examples import examples
from calrec_jax.eval.measure import measure
from calrec_jax.eval.outcomes import NUM_BEST, Outcome, join_outcomes
from calrec_jax.eval.predictions import (
    PredictionsFile,
    PredictionSummary,
    UserKey,
)
from calrec_jax.eval.slices import slice_of
from calrec_jax.files import write_json


def write_results(
    file: PredictionsFile,
    measured: Sequence[MeasuredDomain],
    predictions: Mapping[UserKey, PredictionSummary],
    baseline_outcomes: Mapping[str, Sequence[Outcome]],
    config: EvaluationConfig,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures, and writes the results beside the predictions.

    Args:
      file: the predictions.
      predictions: what `file` holds, with all measured users.
      baseline_outcomes: {baseline: its outcome in each domain}.
      facts: what metrics.json begins with, "model", the model's name, among them.

    Returns:
      What metrics.json holds.
    """
    training_items = {one.domain.name: one.domain.training_item_ids for one in measured}
    slices = {
        one.domain.name: {user.user_id: slice_of(user, training_items) for user in one.users}
        for one in measured
    }
    result = _metrics(measured, predictions, baseline_outcomes, config, facts)
    write_json(file.directory.slices, slices)
    write_json(file.directory.examples, examples(file, predictions, measured, slices))
    write_json(file.directory.metrics, result)
    return result


def _metrics(
    measured: Sequence[MeasuredDomain],
    predictions: Mapping[UserKey, PredictionSummary],
    baseline_outcomes: Mapping[str, Sequence[Outcome]],
    config: EvaluationConfig,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What metrics.json holds."""
    domains = [one.domain for one in measured]
    sizes = [len(domain.catalogue) for domain in domains]
    users = [user for one in measured for user in one.users]
    return {
        **facts,
        "n": len(users),
        "users": sum(len(domain.users) for domain in domains),
        "items": sum(sizes),
        "domain": ", ".join(config.domains),
        "split": config.split,
        "config": config.flat(),
        **measure(
            facts["model"],
            join_outcomes([_outcome(one, predictions) for one in measured], sizes),
            {name: join_outcomes(parts, sizes) for name, parts in baseline_outcomes.items()},
            users,
            {domain.name: domain.training_item_ids for domain in domains},
            np.concatenate([domain.baseline_data.events for domain in domains]),
            {"bootstrap_samples": config.bootstrap_samples, "seed": config.seed},
        ),
    }


def _outcome(measured: MeasuredDomain, predictions: Mapping[UserKey, PredictionSummary]) -> Outcome:
    """The model's outcome in one domain."""
    summaries = [predictions[user.domain, user.user_id] for user in measured.users]
    best = np.full((len(summaries), NUM_BEST), -1)
    for row, summary in zip(best, summaries, strict=True):
        row[: len(summary.best)] = measured.domain.catalogue.places(summary.best)
    return Outcome(
        np.array([summary.low for summary in summaries], np.int64),
        np.array([summary.high for summary in summaries], np.int64),
        best,
    )
