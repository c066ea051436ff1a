"""The rules by which events become sequences: pure functions of one user, or of one item.

An engine reads, joins, counts and groups; whatever decides is here, so that all engines agree.
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
"""Names of what is counted of single items and events, before any are joined."""

BEFORE_OUR_DATA = 631_152_000
"""1990 in Unix seconds: times before it are most often of another unit than was said."""

Positioned = tuple[int, Event]
"""(where the event was read, see `position`; the event)."""

EventRow = tuple[str, str, str | None, int | None, int, int]
"""(user id, item id, order in digits, timestamp, nanosecond, position), as engines hold events.

Of the same order the digits are the same.
"""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How raw events become sequences (method: Protocol). Recorded with every dataset.

    They are applied in this order: sample, latest, duplicates, events without an order (see
    `sortable`), items (text, require), k-core, sorting, merging, min_events, split, max_history.

    Attributes:
      keep_duplicates: events that are equal in user, item, order and time stay; else they are one
        event, the first in the files.
      merge_repeats: consecutive events of a user with the same item are one event, the first
        (unverified: the exact rule).
      min_events: users with fewer events after that are left out.
      k_core: users and items with fewer events are left out; counted before merging. 0: none are.
      k_core_iterated: again and again, until all that are left have `k_core` events; or once, users
        and items counted on the same events.
      same_time: what sorts events of the same order or time: "file" (as the files and their lines
        are), "item_id", or "random" (by a hash that `seed` changes).
      require: fields that an item must have; those that lack one are left out with their events.
      split: "leave_one_out", or "temporal" (see `temporal_windows`).
      validation_from, test_from: Unix seconds, where the periods of the temporal split begin.
      latest: Unix seconds; events after it are left out. None: all stay.
      max_history: at most so many items come before a target. None: all.
      sample: the share of users that is kept, chosen by a hash of the id alone.
      seed: another one samples other users, and sorts events of the same time otherwise.
      catalogue: "listed" (all items of the items files that `require` and the k-core keep), or
        "bought" (of these, the ones in any sequence).

    Raises:
      CalrecError: values that are impossible, or that contradict each other.
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


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise CalrecError(f"{name} {value!r} is none of {', '.join(known)}")


def position(file: int, line: int) -> int:
    """Where an event or a listing was read, as one number that sorts like (file, line).

    Args:
      file: its place among the files of its kind, from 0.
      line: from 1.
    """
    return file << 40 | line


def in_sample(user_id: str, rules: Rules) -> bool:
    """Whether a user is kept, whoever else there is."""
    return rules.sample >= 1 or _hash(rules.seed, user_id) < rules.sample * 2**64


def _hash(*parts) -> int:
    """64 bits of MD5, which every engine and language has."""
    digest = hashlib.md5("\x1f".join(map(str, parts)).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def event_problem(event: Event, rules: Rules) -> str | None:
    """Why an event is left out, told from it alone: the name of what counts such, or None.

    "events_untimed" are no matter of leaving out: the rules cannot do without their time.
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
    """Why an item is left out, told from its first listing alone, or None.

    An item without any text cannot be written down.
    """
    if not fields:
        return "items_without_text"
    if any(name not in fields for name in rules.require):
        return "items_without_required"
    return None


def to_row(event: Event, place: int) -> EventRow:
    """An event that was read at `place`."""
    user_id, item_id, order, timestamp, nanosecond = event
    digits = None if order is None else str(order)
    return user_id, item_id, digits, timestamp, nanosecond, place


def from_row(row: EventRow) -> Positioned:
    """What `to_row` was given."""
    user_id, item_id, digits, timestamp, nanosecond, place = row
    return place, Event(user_id, item_id, _number(digits), timestamp, nanosecond)


def _number(digits: str | None) -> int | decimal.Decimal | None:
    if digits is None:
        return None
    return int(digits) if digits.lstrip("-").isdecimal() else decimal.Decimal(digits)


def without_duplicates(rows: Iterable[EventRow], rules: Rules) -> list[EventRow]:
    """One user's events; of those that differ in nothing but their place the first."""
    if rules.keep_duplicates:
        return list(rows)
    first: dict[tuple, EventRow] = {}
    for row in sorted(rows, key=lambda row: row[-1]):
        first.setdefault(tuple(row[:-1]), row)
    return list(first.values())


def sortable(rows: Sequence[EventRow]) -> list[EventRow]:
    """One user's events, those without an order left out where others have one.

    A rank and a time do not compare. Another user's events may all have times alone.
    """
    ordered = [row for row in rows if row[2] is not None]
    return ordered or list(rows)


def sort_events(user_id: str, events: Iterable[Positioned], rules: Rules) -> list[Event]:
    """One user's events, oldest first.

    They are sorted by `order`, else by time: all have an order, or none (see `sortable`). The
    temporal split sorts by time first: nothing may come before what is older.
    """

    def key(positioned: Positioned):
        place, event = positioned
        time = event.timestamp, event.nanosecond
        when = time if event.order is None else event.order
        if rules.split == "temporal":
            when = time, when
        if rules.same_time == "item_id":
            return when, event.item_id, place
        if rules.same_time == "random":
            return when, _hash(rules.seed, user_id, event.item_id, place), place
        return when, place

    return [event for _, event in sorted(events, key=key)]


def merge_repeats(events: Sequence[Event]) -> list[Event]:
    """The events without those that repeat the item of the one before."""
    return [e for i, e in enumerate(events) if i == 0 or e.item_id != events[i - 1].item_id]


Windows = dict[str, tuple[int, int]]
"""{split: (start, end)}, parts of a user's events; the last of each is its target."""


def leave_one_out_windows(events: Sequence[Event]) -> Windows:
    """test = x1..xn, validation = x1..x(n-1), train = x1..x(n-2) where that has a history too."""
    n = len(events)
    windows = {"train": (0, n - 2), "validation": (0, n - 1), "test": (0, n)}
    return {split: window for split, window in windows.items() if window[1] >= 2}


def temporal_windows(events: Sequence[Event], validation_from: int, test_from: int) -> Windows:
    """train = events before validation_from; else the first event of a period and all before it.

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
    """What the rules make of one user.

    Attributes:
      events: sorted and merged.
      repeats_merged: how many events merging took away.
      splits: {split: sequence}, without the splits in which the user has no example. Empty where
        the user is left out.
      windows: the parts of `events` that `splits` hold.
      events_unused: events that are in no sequence.
      problem: why the user is left out, the name of what counts such; else None.
    """

    user_id: str
    events: Sequence[Event]
    repeats_merged: int
    splits: Mapping[str, UserSequence]
    windows: Windows = dataclasses.field(default_factory=dict)
    events_unused: int = 0
    problem: str | None = None


def make_user(domain: str, user_id: str, events: Iterable[Positioned], rules: Rules) -> User:
    """The splits of one user, from all of the user's events that earlier rules left."""
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
    """How many events are in any window."""
    covered = reach = 0
    for start, end in sorted(windows.values()):
        covered += max(0, end - max(start, reach))
        reach = max(reach, end)
    return covered
