"""examples.json: what the report shows of users, one by one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.eval.evaluated_domain import EvaluatedDomain, MeasuredDomain
from calrec_jax.eval.outcomes import NUM_BEST
from calrec_jax.eval.predictions import PredictionsFile, PredictionSummary, UserKey
from calrec_jax.text.items import UserSequence

_NUM_EXAMPLES = 100  # users, of all domains together


def examples(
    file: PredictionsFile,
    predictions: Mapping[UserKey, PredictionSummary],
    measured: Sequence[MeasuredDomain],
    slices: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> list[dict[str, Any]]:
    """What the report shows of the first users of each domain.

    Args:
      predictions: what `file` holds.
      slices: {domain: {user id: {slicing: slice}}}.
    """
    found = []
    for one in measured:
        users = one.users[: _NUM_EXAMPLES // len(measured)]
        lines = file.read_full([predictions[user.domain, user.user_id] for user in users])
        for user, line in zip(users, lines, strict=True):
            found.append(_example(user, line, one.domain, slices[user.domain][user.user_id]))
    return found


def _example(
    user: UserSequence,
    prediction: Mapping[str, Any],
    domain: EvaluatedDomain,
    slices: Mapping[str, str],
) -> dict[str, Any]:
    """A prediction with the user's history, its dates, and the texts of all items in it.

    Args:
      prediction: a line of predictions.jsonl.
      slices: see `slices.slice_of`.
    """
    ranked = prediction["ranked"][:NUM_BEST]
    item_ids = [*user.item_ids, *(item["item_id"] for item in ranked)]
    return {
        **prediction,
        "ranked": ranked,
        "history": list(user.history),
        "dates": user.timestamps and [_date(seconds) for seconds in user.timestamps],
        "slices": slices,
        "texts": {i: domain.texts[domain.catalogue.index[i]] for i in item_ids},
    }


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
