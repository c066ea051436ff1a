"""The rules by which events become sequences: pure functions of one user, or of one item.

Engines only read, join, count and group; all decisions are made here, so that engines agree.
"""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from calrec_jax.data.sources import Event
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Fields, UserSequence

SAME_TIME = ("file", "item_id", "random")
SPLIT_KINDS = ("leave_one_out", "temporal")
CATALOGUES = ("listed", "bought")

READ_COUNTS = (
    "items_read",
    "events_read",
    "events_not_sampled",
    "events_too_late",
    "events_untimed",
)
"""Names of the counts of single items and events, which are made while files are read."""

BEFORE_OUR_DATA = 631_152_000
"""1990 in Unix seconds: earlier times are most often in another unit than --time_unit."""

Positioned = tuple[int, Event]
"""(position in the files, see `position`; event)."""

EventRow = tuple[str, str, str | None, int | None, int, int]
"""An event as engines hold it: (user id, item id, order, timestamp, nanosecond, position).

The order is a text of digits, which is the same for equal orders.
"""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How raw events become sequences (method: Protocol). Recorded with every dataset.

    The rules are applied in this order: sample, latest, duplicates, events without an order (see
    `sortable`), items (text, require), k-core, sorting, merging, min_events, split, max_history.

    Attributes:
      keep_duplicates: whether events that are equal in user, item, order and time all stay;
        otherwise only the first in the files does.
      merge_repeats: whether only the first of consecutive events of a user with the same item stays
        (unverified: the exact rule).
      min_events: users with fewer events after merging are left out.
      k_core: users and items with fewer events before merging are left out; 0: none are.
      k_core_iterated: whether this is repeated until all users and items have `k_core` events;
        otherwise it is done once, with users and items counted on the same events.
      same_time: what sorts events of the same order or time: "file" (their position in the files),
        "item_id", or "random" (a hash of the event and `seed`).
      require: the fields that an item must have; items that lack one are left out with their
        events.
      split: "leave_one_out", or "temporal" (see `temporal_windows`).
      validation_from, test_from: Unix seconds, where the periods of the temporal split begin.
      latest: Unix seconds; later events are left out. None: all stay.
      max_history: the greatest number of items before a target. None: no limit.
      sample: the share of users that is kept, chosen by a hash of the id and `seed`.
      seed: the seed of `sample` and of the random order of events of the same time.
      catalogue: "listed" (all items in the files that `require` and the k-core keep), or "bought"
        (those of them that are in any sequence).

    Raises:
      CalrecError: values are impossible, or contradict each other.
    """

    keep_duplicates: bool = False
    merge_repeats: bool = True
    min_events: int = 3
    k_core: int = 0
    k_core_iterated: bool = True
    same_time: str = "file"
    require: tuple[str, ...] = ()
    split: str = "leave_one_out"
    validation_from: int | None = None
    test_from: int | None = None
    latest: int | None = None
    max_history: int | None = None
    sample: float = 1.0
    seed: int = 0
    catalogue: str = "listed"

    def __post_init__(self):
        _check_choice("same_time", self.same_time, SAME_TIME)
        _check_choice("split", self.split, SPLIT_KINDS)
        _check_choice("catalogue", self.catalogue, CATALOGUES)
        if self.k_core < 0:
            raise CalrecError(f"k_core {self.k_core}: give a number of events, or 0 for none")
        if self.max_history is not None and self.max_history < 1:
            raise CalrecError(f"max_history {self.max_history}: a target needs 1 item before it")
        if not 0 < self.sample <= 1:
            raise CalrecError(f"sample {self.sample}: give the share of users, above 0 and up to 1")
        if self.split == "leave_one_out":
            self._check_leave_one_out()
        else:
            self._check_temporal()

    def _check_leave_one_out(self) -> None:
        if self.min_events < 3:
            raise CalrecError(
                f"min_events {self.min_events}: leave-one-out takes a test and a validation item, "
                f"so a user needs at least 3 events"
            )
        if self.validation_from is not None or self.test_from is not None:
            raise CalrecError("validation_from and test_from go with split='temporal' alone")

    def _check_temporal(self) -> None:
        if self.min_events < 2:
            raise CalrecError(
                f"min_events {self.min_events}: an example is a history and a target, so a user "
                f"needs at least 2 events"
            )
        if self.validation_from is None or self.test_from is None:
            raise CalrecError("split='temporal' needs validation_from and test_from")
        if self.validation_from >= self.test_from:
            raise CalrecError(
                f"validation_from {self.validation_from} is not before test_from {self.test_from}"
            )

    @property
    def need_times(self) -> bool:
        """Whether every event must have a timestamp."""
        return self.split == "temporal" or self.latest is not None


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise CalrecError(f"{name} {value!r} is none of {', '.join(choices)}")


def position(file: int, line: int) -> int:
    """The position of an event or a listing in the files, a number that sorts like (file, line).

    Args:
      file: the index of the file among those of its kind, from 0.
      line: the line's number, from 1.
    """
    return file << 40 | line


def in_sample(user_id: str, rules: Rules) -> bool:
    """Whether a user is kept; this does not depend on other users."""
    return rules.sample >= 1 or _hash(rules.seed, user_id) < rules.sample * 2**64


def _hash(*parts: str | int) -> int:
    """The first 64 bits of MD5, which every engine and language has."""
    digest = hashlib.md5("\x1f".join(map(str, parts)).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def event_problem(event: Event, rules: Rules) -> str | None:
    """Why an event, considered alone, is left out: the name of the count of such events, or None.

    "events_untimed" are not simply left out: the rules need their times, see `check_times`.
    """
    if not in_sample(event.user_id, rules):
        return "events_not_sampled"
    if rules.need_times and event.timestamp is None:
        return "events_untimed"
    latest = rules.latest
    if latest is not None and (event.timestamp, event.nanosecond) > (latest, 0):
        return "events_too_late"
    return None


def check_times(domain: str, untimed: int) -> None:
    """Raises CalrecError where events lack the time that the rules need."""
    if untimed:
        raise CalrecError(
            f"{untimed} events of {domain} have no timestamp, but the temporal split and `latest` "
            f"need one of every event"
        )


def item_problem(fields: Fields, rules: Rules) -> str | None:
    """Why an item with the first listing `fields` is left out: the name of the count, or None.

    An item without any text is left out because prompts could not contain it.
    """
    if not fields:
        return "items_without_text"
    if any(name not in fields for name in rules.require):
        return "items_without_required"
    return None


def to_row(event: Event, where: int) -> EventRow:
    """The row of an event at the position `where`."""
    user_id, item_id, order, timestamp, nanosecond = event
    digits = None if order is None else str(order)
    return user_id, item_id, digits, timestamp, nanosecond, where


def from_row(row: EventRow) -> Positioned:
    """The position and the event that `to_row` made `row` from."""
    user_id, item_id, digits, timestamp, nanosecond, where = row
    return where, Event(user_id, item_id, _number(digits), timestamp, nanosecond)


def _number(digits: str | None) -> int | decimal.Decimal | None:
    if digits is None:
        return None
    return int(digits) if digits.lstrip("-").isdecimal() else decimal.Decimal(digits)


def without_duplicates(rows: Iterable[EventRow], rules: Rules) -> list[EventRow]:
    """One user's events; of those that differ only in their position, the first."""
    if rules.keep_duplicates:
        return list(rows)
    first: dict[tuple, EventRow] = {}
    for row in sorted(rows, key=lambda row: row[-1]):
        first.setdefault(tuple(row[:-1]), row)
    return list(first.values())


def sortable(rows: Sequence[EventRow]) -> list[EventRow]:
    """One user's events, without those that have no order if others have one.

    An order cannot be compared with a time. Users whose events have times alone keep all of them.
    """
    ordered = [row for row in rows if row[2] is not None]
    return ordered or list(rows)


def sort_events(user_id: str, events: Iterable[Positioned], rules: Rules) -> list[Event]:
    """One user's events, oldest first.

    They are sorted by `order`, or by time where they have none: either all have an order or none
    (see `sortable`). The temporal split sorts by time first, since its windows are periods of time.
    """

    def key(positioned: Positioned) -> tuple:
        where, event = positioned
        time = event.timestamp, event.nanosecond
        when = time if event.order is None else event.order
        if rules.split == "temporal":
            when = time, when
        if rules.same_time == "item_id":
            return when, event.item_id, where
        if rules.same_time == "random":
            return when, _hash(rules.seed, user_id, event.item_id, where), where
        return when, where

    return [event for _, event in sorted(events, key=key)]


def merge_repeats(events: Sequence[Event]) -> list[Event]:
    """The events without those that have the same item as the event before."""
    return [e for i, e in enumerate(events) if i == 0 or e.item_id != events[i - 1].item_id]


Windows = dict[str, tuple[int, int]]
"""{split: (start, end)}: parts of a user's events, of which the last event is the target."""


def leave_one_out_windows(events: Sequence[Event]) -> Windows:
    """test = x1..xn, validation = x1..x(n-1), train = x1..x(n-2) where that has a history too."""
    n = len(events)
    windows = {"train": (0, n - 2), "validation": (0, n - 1), "test": (0, n)}
    return {split: window for split, window in windows.items() if window[1] >= 2}


def temporal_windows(events: Sequence[Event], validation_from: int, test_from: int) -> Windows:
    """train: the events before validation_from; others: the first event of a period and all before.

    A split whose window has no history is left out.
    """
    times = [event.timestamp for event in events]
    before_validation = sum(time < validation_from for time in times)
    before_test = sum(time < test_from for time in times)
    windows = {"train": (0, before_validation)}
    if before_validation < before_test:
        windows["validation"] = (0, before_validation + 1)
    if before_test < len(events):
        windows["test"] = (0, before_test + 1)
    return {split: window for split, window in windows.items() if window[1] >= 2}


@dataclasses.dataclass(frozen=True)
class User:
    """One user after the rules were applied.

    Attributes:
      events: the user's events, sorted and merged.
      repeats_merged: the number of events that merging removed.
      splits: {split: sequence}, without splits in which the user has no example; {} if the user is
        left out.
      windows: the parts of `events` that are in `splits`.
      events_unused: the number of events that are in no sequence.
      problem: why the user is left out: the name of the count of such users; otherwise None.
    """

    user_id: str
    events: Sequence[Event]
    repeats_merged: int
    splits: Mapping[str, UserSequence]
    windows: Windows = dataclasses.field(default_factory=dict)
    events_unused: int = 0
    problem: str | None = None


def make_user(domain: str, user_id: str, events: Iterable[Positioned], rules: Rules) -> User:
    """Applies the rules to one user, given all of the user's events that earlier rules kept."""
    in_order = sort_events(user_id, events, rules)
    merged = merge_repeats(in_order) if rules.merge_repeats else in_order
    repeats = len(in_order) - len(merged)
    if len(merged) < rules.min_events:
        return User(user_id, merged, repeats, {}, problem="users_too_short")
    if rules.split == "temporal":
        windows = temporal_windows(merged, rules.validation_from, rules.test_from)
    else:
        windows = leave_one_out_windows(merged)
    if not windows:
        return User(user_id, merged, repeats, {}, problem="users_without_example")
    if rules.max_history is not None:
        most = rules.max_history + 1
        windows = {split: (max(0, end - most), end) for split, (_, end) in windows.items()}
    splits = {
        split: _sequence(domain, user_id, merged[start:end])
        for split, (start, end) in windows.items()
    }
    return User(user_id, merged, repeats, splits, windows, len(merged) - _covered(windows))


def _sequence(domain: str, user_id: str, events: Sequence[Event]) -> UserSequence:
    times = tuple(event.timestamp for event in events)
    items = tuple(event.item_id for event in events)
    return UserSequence(user_id, domain, items, None if None in times else times)


def _covered(windows: Windows) -> int:
    """The number of events that are in at least one window."""
    covered = reach = 0
    for start, end in sorted(windows.values()):
        covered += max(0, end - max(start, reach))
        reach = max(reach, end)
    return covered
