"""Groups of users, by whom a model is measured in parts."""

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


def slice_of(user: UserSequence, trained: Mapping[str, Container[str]]) -> dict[str, str]:
    """Which slice of each slicing a user is in.

    Args:
      trained: {domain: ids of the items that occur in its training sequences}.

    Returns:
      {slicing: slice}:
        "target": "warm" where the target is trained, "cold" where it is not;
        "purchase": "new", or "repeat" where the target is in the history already;
        "history": its number of events, "1-2", "3-4", "5-9", "10-19", "20-49" or "50+";
        "day": "same_day" where the target's day (UTC) is that of the event before it, "later_day",
          or "unknown" without timestamps;
        "domain": the user's.

    Raises:
      KeyError: `trained` does not hold the user's domain.
    """
    events = len(user.history)
    return {
        "target": "warm" if user.target in trained[user.domain] else "cold",
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
    users: Sequence[UserSequence], trained: Mapping[str, Container[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """The users of each slice; in each slicing every user is in one.

    Args:
      trained: as of `slice_of`.

    Returns:
      {slicing: {slice: int64 places in `users`, ascending}}, both in the order of `slice_of` and
      domains by name; slices that hold nobody are left out.

    Raises:
      KeyError: as `slice_of`.
    """
    found = [slice_of(user, trained) for user in users]
    names = _SLICES | {"domain": sorted({user.domain for user in users})}
    return {
        slicing: _places([of[slicing] for of in found], order) for slicing, order in names.items()
    }


def _places(names: Sequence[str], order: Sequence[str]) -> dict[str, np.ndarray]:
    places: dict[str, list[int]] = {name: [] for name in order}
    for place, name in enumerate(names):
        places[name].append(place)
    return {name: np.array(of, np.int64) for name, of in places.items() if of}


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
