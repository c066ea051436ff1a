"""What metrics.json says of outcomes: metrics, differences, slices, and what is recommended."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.eval import diversity
from calrec_jax.eval.outcomes import Outcome
from calrec_jax.eval.slices import history_lengths, slices
from calrec_jax.text.items import UserSequence

_OURS = ""  # no baseline has this name


def measure(
    name: str,
    ours: Outcome,
    theirs: Mapping[str, Outcome],
    users: Sequence[UserSequence],
    trained: Mapping[str, Container[str]],
    events: np.ndarray,
    bootstrap: Mapping[str, int],
) -> dict[str, Any]:
    """All figures of a model beside baselines, of the same users in the same order.

    Args:
      name: of the model.
      trained: {domain: item ids that are in its training sequences}.
      events: int64 [items], of the training split; the items of all domains.
      bootstrap: bootstrap_samples and seed.
    """
    ranks = {name: found.bounds for name, found in theirs.items()}
    return {
        **_table(ours.bounds, ranks, bootstrap),
        "paired": metrics.paired(ours.bounds, ranks, **bootstrap),
        "beyond_accuracy": {
            k: diversity.beyond_accuracy(found.best, events)
            for k, found in {name: ours, **theirs}.items()
        },
        "slices": {
            slicing: {
                part: {"n": len(places), **_of_some(places, ours.bounds, ranks, bootstrap)}
                for part, places in parts.items()
            }
            for slicing, parts in slices(users, trained).items()
        },
        "histories": history_lengths(users),
    }


def _of_some(places: np.ndarray, ours, theirs, bootstrap) -> dict[str, Any]:
    low, high = ours
    ranks = {name: (a[places], b[places]) for name, (a, b) in theirs.items()}
    return _table((low[places], high[places]), ranks, bootstrap)


def _table(ours, theirs, bootstrap) -> dict[str, Any]:
    """Of rank bounds. All are summarised together, over the same resamples."""
    found = metrics.summarise({_OURS: ours, **theirs}, **bootstrap)
    return {"metrics": found.pop(_OURS), "baselines": found}
