"""Slices of the users, for which a model is measured one by one."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax.text.items import UserSequence

_DAY = 86_400  # seconds
_MOST_EVENTS = {"1-2": 2, "3-4": 4, "5-9": 9, "10-19": 19, "20-49": 49, "50+": math.inf}
_SLICES = {
    "target": ("warm", "cold"),
    "purchase": ("new", "repeat"),
    "history": tuple(_MOST_EVENTS),
    "day": ("same_day", "later_day", "unknown"),
}
_BINS = 20  # of a histogram, at most


def slice_of(user: UserSequence, training_items: Mapping[str, Container[str]]) -> dict[str, str]:
    """The slice of each slicing that a user is in.

    Args:
      training_items: {domain: ids of the items that occur in its training sequences}.

    Returns:
      {slicing: slice}:
        "target": "warm" where the target is a training item, "cold" where it is not;
        "purchase": "new", or "repeat" where the target is in the history already;
        "history": its number of events, "1-2", "3-4", "5-9", "10-19", "20-49" or "50+";
        "day": "same_day" where the target's day (UTC) is that of the event before it, "later_day",
          or "unknown" without timestamps;
        "domain": the user's domain.

    Raises:
      KeyError: `training_items` does not hold the user's domain.
    """
    events = len(user.history)
    return {
        "target": "warm" if user.target in training_items[user.domain] else "cold",
        "purchase": "repeat" if user.target in user.history else "new",
        "history": next(name for name, most in _MOST_EVENTS.items() if events <= most),
        "day": _day(user.timestamps),
        "domain": user.domain,
    }


def _day(timestamps: Sequence[int] | None) -> str:
    if timestamps is None:
        return "unknown"
    before, target = timestamps[-2] // _DAY, timestamps[-1] // _DAY
    return "same_day" if before == target else "later_day"


def slices(
    users: Sequence[UserSequence], training_items: Mapping[str, Container[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """The users of each slice. In each slicing every user is in one slice.

    Args:
      training_items: as in `slice_of`.

    Returns:
      {slicing: {slice: int64 indices in `users`, ascending}}, both in the order of `slice_of` and
      domains by name; slices without users are left out.

    Raises:
      KeyError: as `slice_of`.
    """
    slices_of_users = [slice_of(user, training_items) for user in users]
    orders = _SLICES | {"domain": sorted({user.domain for user in users})}
    return {
        slicing: _indices_by_name([of_user[slicing] for of_user in slices_of_users], order)
        for slicing, order in orders.items()
    }


def _indices_by_name(names: Sequence[str], order: Sequence[str]) -> dict[str, np.ndarray]:
    """{name: where it stands in `names`} in the given order, without those that stand nowhere."""
    indices: dict[str, list[int]] = {name: [] for name in order}
    for index, name in enumerate(names):
        indices[name].append(index)
    return {name: np.array(found, np.int64) for name, found in indices.items() if found}


def history_lengths(users: Sequence[UserSequence]) -> dict[str, Any]:
    """A histogram of the number of events in histories, for `charts.bar_chart`.

    Returns:
      {"edges", "counts"}: at most 20 bins of equal width, the first from 1; bin i counts histories
      of edges[i] to edges[i + 1] - 1 events.
    """
    lengths = [len(user.history) for user in users]
    longest = max(lengths, default=1)
    width = math.ceil(longest / _BINS)
    edges = np.arange(1, longest + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
