"""Preparation in memory, written as plainly as possible; every engine must give the same."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Sequence

from calrec_jax.data.preparation import sequences
from calrec_jax.data.preparation.engine import Times
from calrec_jax.data.preparation.sequences import Positioned, Rules, User
from calrec_jax.data.sources import Event, Item
from calrec_jax.text.items import UserSequence


@dataclasses.dataclass
class Reference:
    """The result of a preparation.

    Attributes:
      users: {user id: user}, all that have an event left; also users that the rules leave out.
      catalogue: {item id: fields}.
      counts: {reason: number of events or items that were left out}.
      times: of the events that are left when duplicates are looked for.
    """

    users: dict[str, User]
    catalogue: dict[str, dict[str, str]]
    counts: collections.Counter
    times: Times

    def split(self, name: str) -> dict[str, UserSequence]:
        """{user id: sequence}."""
        return {u.user_id: u.splits[name] for u in self.users.values() if name in u.splits}

    def cold(self, split: str) -> int:
        """How many targets are in no training sequence."""
        trained = {item for s in self.split("train").values() for item in s.item_ids}
        return sum(s.target not in trained for s in self.split(split).values())


def run(domain: str, events: Sequence[Event], listings: Sequence[Item], rules: Rules) -> Reference:
    """Events and listings are in the order of one file each."""
    counts = collections.Counter(items_read=len(listings), events_read=len(events))
    items = _first_listings(listings, counts)
    timed = [e for e in events if not sequences.event_problem(e, rules) and e.timestamp is not None]
    kept = _single_events(events, rules, counts)
    usable = {i for i, fields in items.items() if not sequences.item_problem(fields, rules)}
    counts.update(sequences.item_problem(f, rules) for i, f in items.items() if i not in usable)
    for _, event in kept:
        if event.item_id not in usable:
            required = items.get(event.item_id)
            counts["events_without_required" if required else "events_without_item"] += 1
    known = [(place, event) for place, event in kept if event.item_id in usable]
    left, core_items = k_core(known, rules.k_core, rules.k_core_iterated)
    counts["events_not_in_core"] = len(known) - len(left)
    counts["users_not_in_core"] = len({e.user_id for _, e in known} - {e.user_id for _, e in left})
    listed = usable & core_items if rules.k_core else usable
    counts["items_not_in_core"] = len(usable) - len(listed)
    by_user = collections.defaultdict(list)
    for place, event in left:
        by_user[event.user_id].append((place, event))
    users = {u: sequences.make_user(domain, u, by_user[u], rules) for u in by_user}
    used = {i for u in users.values() for s in u.splits.values() for i in s.item_ids}
    catalogue = listed & used if rules.catalogue == "bought" else listed
    counts["items_not_bought"] = len(listed) - len(catalogue)
    return Reference(users, {i: items[i] for i in catalogue}, counts, _describe(timed))


def _describe(timed: Sequence[Event]) -> Times:
    alone = [(event.timestamp, event.nanosecond) for event in timed if event.order is None]
    at_once = max(collections.Counter(alone).values(), default=0)
    future = sum(event.timestamp > time.time() for event in timed)
    early = sum(event.timestamp < 631_152_000 for event in timed)  # date -u -d 1990-01-01 +%s
    return Times(len(timed), future, early, len(alone), at_once)


def _first_listings(
    listings: Iterable[Item], counts: collections.Counter[str]
) -> dict[str, dict[str, str]]:
    items: dict[str, dict[str, str]] = {}
    for item in listings:
        counts["items_listed_again"] += item.item_id in items
        counts["items_listed_differently"] += items.get(item.item_id, item.fields) != item.fields
        items.setdefault(item.item_id, item.fields)
    return items


def _single_events(
    events: Iterable[Event], rules: Rules, counts: collections.Counter[str]
) -> list[Positioned]:
    kept: list[Positioned] = []
    seen = set()
    for line, event in enumerate(events, start=1):
        problem = sequences.event_problem(event, rules)
        if not problem and event in seen and not rules.keep_duplicates:
            problem = "events_duplicated"
        if problem:
            counts[problem] += 1
        else:
            seen.add(event)
            kept.append((sequences.position(0, line), event))
    ordered = {event.user_id for _, event in kept if event.order is not None}
    left = [(p, e) for p, e in kept if e.order is not None or e.user_id not in ordered]
    counts["events_without_order"] = len(kept) - len(left)
    return left


def k_core(events: list[Positioned], k: int, iterated: bool) -> tuple[list[Positioned], set[str]]:
    """(the events that are left, the items that were counted large enough last)."""
    while True:
        users = collections.Counter(event.user_id for _, event in events)
        items = collections.Counter(event.item_id for _, event in events)
        large = {item for item, n in items.items() if n >= k}
        left = [(p, e) for p, e in events if users[e.user_id] >= k and e.item_id in large]
        if left == events or not iterated:
            return left, large
        events = left
