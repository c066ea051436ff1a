"""Which examples a row of a run holds: a function of the seed and the row's number alone.

Every epoch of a domain has the same number of rows, so the row of any number is found without those
before it: a run goes on at step 1,000,000 as fast as at step 1.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data.examples import Examples, Spans
from calrec_jax.data.packing import pack
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id

_PROBED = 8  # epochs that tell how many rows random targets need
_ATTEMPTS = 100
_FINEST = 2**16  # rows of a period at least: rates are held to a part in so many
_LONGEST = 2**20  # rows of a period of rates; more would only take memory
_KEPT = 2  # epochs or periods in memory: those that a batch's rows lie in


class DomainRows:
    """The packed rows of a domain, epoch after epoch. A row holds examples of one domain.

    Examples of one epoch are packed together, all of them. Where epochs differ in their order alone
    the same lengths share a row in each epoch, and which of the examples of that length it is
    changes. With random targets lengths change as well: `per_epoch` is what some epochs needed and
    a little more, rows that are left over are empty, and a draw that needs more is drawn again.

    Args:
      examples: of the domain.
      spec: of the rows.
      seed: of the order.

    Attributes:
      per_epoch: rows of an epoch.
    """

    def __init__(self, examples: Examples, spec: BatchSpec, seed: int):
        self._examples, self._spec, self._seed = examples, spec, seed
        self._epochs: collections.OrderedDict[int, _Epoch] = collections.OrderedDict()
        self._packing = None
        if not examples.varies or spec.max_segments == 1:
            self._packing = self._pack(examples.spans(0))
            self.per_epoch = len(self._packing)
        else:
            needed = max(len(self._pack(examples.spans(e))) for e in range(_PROBED))
            self.per_epoch = needed + needed // 100
        self.examples_per_epoch = len(examples.spans(0))

    def row(self, number: int) -> list[tuple[int, int]]:
        """(start, end) of each example of row `number`; none where it is empty."""
        epoch, place = divmod(number, self.per_epoch)
        return _remembered(self._epochs, epoch, self._epoch).row(place)

    def _epoch(self, epoch: int) -> _Epoch:
        rng = _rng("epoch", self._seed, self._examples.domain_id, epoch)
        spans, packing = self._packed(epoch)
        # Sorted by length as `_pack` sorts, equal ones in random order: the example of each slot.
        order = np.lexsort((rng.random(len(spans)), -spans.loss_lengths, -spans.lengths))
        return _Epoch(
            spans.start[order], spans.end[order], packing, rng.permutation(self.per_epoch)
        )

    def _packed(self, epoch: int) -> tuple[Spans, _Packing]:
        if self._packing is not None:
            return self._examples.spans(epoch), self._packing
        for attempt in range(_ATTEMPTS):
            spans = self._examples.spans(epoch, attempt)
            packing = self._pack(spans)
            if len(packing) <= self.per_epoch:
                return spans, packing
        raise CalrecError(
            f"{self._examples.tokens.catalogue.domain}: random targets did not fit "
            f"{self.per_epoch} rows in {_ATTEMPTS} draws: use targets = 'last' or 'all'"
        )

    def _pack(self, spans: Spans) -> _Packing:
        by_length = np.lexsort((-spans.loss_lengths, -spans.lengths))
        rows = pack(spans.lengths[by_length], spans.loss_lengths[by_length], self._spec)
        splits = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=splits[1:])
        return _Packing(np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64), splits)


@dataclasses.dataclass(frozen=True)
class _Packing:
    """Rows of places in the order of the examples by length; row r has splits[r] to splits[r+1]."""

    places: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """Examples by length, their packing, and the order of the rows."""

    start: np.ndarray
    end: np.ndarray
    packing: _Packing
    order: np.ndarray

    def row(self, place: int) -> list[tuple[int, int]]:
        row = int(self.order[place])
        if row >= len(self.packing):
            return []
        here = self.packing.places[self.packing.splits[row] : self.packing.splits[row + 1]]
        return list(zip(self.start[here].tolist(), self.end[here].tolist(), strict=True))


class Schedule:
    """Which row of which domain the rows of a run are.

    Rows come in periods; in each, every domain has its count of rows, in random order.

    Args:
      counts: rows of each domain in a period.
      seed: of the order.
    """

    def __init__(self, counts: Sequence[int], seed: int):
        self.counts, self._seed = np.array(counts, np.int64), seed
        self.period = int(self.counts.sum())
        self._periods: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    @classmethod
    def at_rates(cls, rates: Sequence[float], seed: int) -> Schedule:
        """Counts as the `rates`, to a part in 65,536 or finer; each is at least 1.

        Args:
          rates: of rows. Whole numbers are kept as they are, or times a whole number, unless their
            sum is over a million.
        """
        rates = np.array(rates, np.float64)
        total = rates.sum()
        if np.all(rates == np.round(rates)) and total <= _LONGEST:
            times = -(-_FINEST // int(total))
            return cls((rates * times).astype(np.int64), seed)
        counts = np.maximum(1, np.round(rates / total * _FINEST * len(rates)))
        return cls(counts.astype(np.int64), seed)

    def row(self, number: int) -> tuple[int, int]:
        """(domain, number of that domain's row) of row `number`."""
        period, place = divmod(number, self.period)
        domains, ranks = _remembered(self._periods, period, self._period)
        domain = int(domains[place])
        return domain, period * int(self.counts[domain]) + int(ranks[place])

    def taken(self, number: int) -> np.ndarray:
        """int64 [domains], rows of each domain among the first `number`."""
        period, place = divmod(number, self.period)
        domains, _ = _remembered(self._periods, period, self._period)
        begun = np.bincount(domains[:place], minlength=len(self.counts))
        return period * self.counts + begun

    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """The domain of each row of a period, and its rank among that domain's."""
        domains = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        if len(self.counts) > 1:
            domains = _rng("period", self._seed, period).permutation(domains)
        ranks = np.empty(self.period, np.int32)
        by_domain = np.argsort(domains, kind="stable")
        ranks[by_domain] = np.concatenate([np.arange(n, dtype=np.int32) for n in self.counts])
        return domains, ranks


def _rng(*parts) -> np.random.Generator:
    key = stable_id(*map(str, parts))
    return np.random.Generator(np.random.Philox(key=key))


def _remembered(memory: collections.OrderedDict, key: int, make):
    """`make(key)`, made once while it is among the last few that were asked for."""
    if key not in memory:
        memory[key] = make(key)
        if len(memory) > _KEPT:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]
