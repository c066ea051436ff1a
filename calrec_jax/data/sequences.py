"""From events to user sequences: cleaning, merging of repeats, leave-one-out. Pure functions."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from calrec_jax.data.readers import Event, RawDomain
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import UserSequence


@dataclasses.dataclass(frozen=True)
class Rules:
    """How raw events become sequences (method: Protocol). Recorded with every dataset.

    Attributes:
      merge_repeats: consecutive events of a user with the same item are one event, the first
        (unverified: the exact rule).
      min_events: users with fewer events after that are left out.
    """

    merge_repeats: bool = True
    min_events: int = 3

    def __post_init__(self):
        if self.min_events < 3:
            raise CalrecError(
                f"min_events {self.min_events}: leave-one-out takes a test and a validation item, "
                f"so a user needs at least 3 events"
            )


COUNTS = (
    "events_read",
    "events_without_item",
    "repeats_merged",
    "users_too_short",
    "users",
    "events",
)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Leave-one-out splits, users in the order of their ids, and what the rules did.

    Attributes:
      train, validation, test: the last item of each sequence is its target.
      counts: by the names in COUNTS; "users" and "events" are those that are left.
    """

    train: list[UserSequence]
    validation: list[UserSequence]
    test: list[UserSequence]
    counts: dict[str, int]


def merge_repeats(events: Sequence[Event]) -> list[Event]:
    """The events without those that repeat the item of the one before."""
    return [e for i, e in enumerate(events) if i == 0 or e.item_id != events[i - 1].item_id]


def leave_one_out(domain: str, user_id: str, events: Sequence[Event]):
    """(train, validation, test) of one user's events x1..xn, n >= 3, in time order.

    test = x1..xn, validation = x1..x(n-1), train = x1..x(n-2) or None where that has no target
    with a history (n = 3). The last item of each is its target.
    """

    def first(n: int) -> UserSequence:
        times = [event.timestamp for event in events[:n]]
        return UserSequence(
            user_id,
            domain,
            tuple(event.item_id for event in events[:n]),
            None if None in times else tuple(times),
        )

    n = len(events)
    return first(n - 2) if n > 3 else None, first(n - 1), first(n)


def make_splits(raw: RawDomain, rules: Rules) -> Splits:
    """Sequences of all users that the rules keep.

    Events are sorted by `order`, equal ones stay in the file's order. Events whose item has no
    text at all (not in the items file, or every field missing) are left out and counted: they
    cannot be written down.

    Raises:
      CalrecError: no user is left; the line says what the rules removed.
    """
    by_user: dict[str, list[Event]] = collections.defaultdict(list)
    counts = dict.fromkeys(COUNTS, 0) | {"events_read": len(raw.events)}
    for event in raw.events:
        if raw.items.get(event.item_id):
            by_user[event.user_id].append(event)
        else:
            counts["events_without_item"] += 1

    splits = Splits([], [], [], counts)
    for user_id in sorted(by_user):
        events = sorted(by_user[user_id], key=lambda event: event.order)
        merged = merge_repeats(events) if rules.merge_repeats else events
        counts["repeats_merged"] += len(events) - len(merged)
        if len(merged) < rules.min_events:
            counts["users_too_short"] += 1
            continue
        counts["users"] += 1
        counts["events"] += len(merged)
        train, validation, test = leave_one_out(raw.name, user_id, merged)
        if train is not None:
            splits.train.append(train)
        splits.validation.append(validation)
        splits.test.append(test)
    if not splits.test:
        raise CalrecError(
            f"{raw.name} is empty: of {counts['events_read']} events "
            f"{counts['events_without_item']} have no item with text, and "
            f"{counts['users_too_short']} users have fewer than {rules.min_events} events left"
        )
    return splits
