"""The figures of metrics.json: metrics, differences, slices, and measures beyond accuracy."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.eval import diversity
from calrec_jax.eval.outcomes import Outcome
from calrec_jax.eval.slices import history_lengths, slices
from calrec_jax.text.items import UserSequence

RankBounds = tuple[np.ndarray, np.ndarray]
"""(low, high) ranks of targets, int64 [users] each."""

_MODEL = ""  # no baseline has this name


def measure(
    name: str,
    model_outcome: Outcome,
    baseline_outcomes: Mapping[str, Outcome],
    users: Sequence[UserSequence],
    training_items: Mapping[str, Container[str]],
    events: np.ndarray,
    bootstrap: Mapping[str, int],
) -> dict[str, Any]:
    """All figures of a model beside baselines, on the same users in the same order.

    Args:
      name: of the model.
      training_items: {domain: ids of the items that occur in its training sequences}.
      events: int64 [items], training events of each item; the items of all domains.
      bootstrap: bootstrap_samples and seed.
    """
    model = model_outcome.bounds
    baselines = {baseline: outcome.bounds for baseline, outcome in baseline_outcomes.items()}
    outcomes = {name: model_outcome, **baseline_outcomes}
    return {
        **_table(model, baselines, bootstrap),
        "paired": metrics.paired(model, baselines, **bootstrap),
        "beyond_accuracy": {
            scored_by: diversity.beyond_accuracy(outcome.best, events)
            for scored_by, outcome in outcomes.items()
        },
        "slices": {
            slicing: {
                part: {"n": len(places), **_slice_table(places, model, baselines, bootstrap)}
                for part, places in parts.items()
            }
            for slicing, parts in slices(users, training_items).items()
        },
        "histories": history_lengths(users),
    }


def _slice_table(
    places: np.ndarray,
    model: RankBounds,
    baselines: Mapping[str, RankBounds],
    bootstrap: Mapping[str, int],
) -> dict[str, Any]:
    """The metrics over the users of a slice, whose places among all users are given."""
    sliced = {name: (low[places], high[places]) for name, (low, high) in baselines.items()}
    return _table((model[0][places], model[1][places]), sliced, bootstrap)


def _table(
    model: RankBounds, baselines: Mapping[str, RankBounds], bootstrap: Mapping[str, int]
) -> dict[str, Any]:
    """The metrics of all models. They are summarised together, over the same resamples."""
    summaries = metrics.summarise({_MODEL: model, **baselines}, **bootstrap)
    return {"metrics": summaries.pop(_MODEL), "baselines": summaries}
