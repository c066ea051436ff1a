"""The examples that each row of a run holds: a function of the seed and the row's number alone.

Every epoch of a domain has the same number of rows, so any row is found without those before it:
a run resumes at step 1,000,000 as fast as at step 1.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data.examples import Examples, Spans
from calrec_jax.data.packing import pack
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id

_PROBED_EPOCHS = 8  # packed to find out how many rows an epoch with random targets needs
_ATTEMPTS = 100
_MIN_PERIOD = 2**16  # rows: rates are exact to one part in so many
_MAX_PERIOD = 2**20  # rows; longer periods would only take memory
_CACHED = 2  # epochs or periods in memory: those that the rows of one batch lie in


class DomainRows:
    """The packed rows of a domain, epoch after epoch. A row holds examples of one domain.

    All examples of an epoch are packed together. Where epochs differ only in their order, a row
    has examples of the same lengths in each epoch, and which of the examples of a length it has
    changes. With random targets the lengths change as well: `per_epoch` is a little more than a few
    sampled epochs need. Unused rows are empty, and targets that need more rows are drawn again.

    Args:
      examples: the domain's examples.
      spec: the shapes of batches.
      seed: the seed of the order.

    Attributes:
      per_epoch: the number of rows of an epoch.
      examples_per_epoch: the number of examples of an epoch.
    """

    def __init__(self, examples: Examples, spec: BatchSpec, seed: int):
        self._examples, self._spec, self._seed = examples, spec, seed
        self._epochs: collections.OrderedDict[int, _Epoch] = collections.OrderedDict()
        self._packing = None
        if not examples.varies or spec.max_segments == 1:
            self._packing = self._pack(examples.spans(0))
            self.per_epoch = len(self._packing)
        else:
            needed = max(len(self._pack(examples.spans(e))) for e in range(_PROBED_EPOCHS))
            self.per_epoch = needed + needed // 100
        self.examples_per_epoch = len(examples.spans(0))

    def row(self, number: int) -> list[tuple[int, int]]:
        """(start, end) of each example of row `number`, see `Spans`; [] where it is empty."""
        epoch, index = divmod(number, self.per_epoch)
        return _cached(self._epochs, epoch, self._epoch).row(index)

    def _epoch(self, epoch: int) -> _Epoch:
        rng = _rng("epoch", self._seed, self._examples.domain_id, epoch)
        spans, packing = self._packed(epoch)
        # The examples by length, as `_pack` sorts them; those of equal lengths in random order.
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
    """Rows of indices into the examples of an epoch, sorted by length.

    Attributes:
      places: int64 [examples], all rows one after another.
      splits: int64 [rows + 1]; row r is `places[splits[r] : splits[r + 1]]`.
    """

    places: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """One epoch of a domain.

    Attributes:
      start, end: int64 [examples], as `Spans` has them, sorted by length.
      packing: which of these share a row.
      order: int64 [rows], the packed row that is read at each index.
    """

    start: np.ndarray
    end: np.ndarray
    packing: _Packing
    order: np.ndarray

    def row(self, index: int) -> list[tuple[int, int]]:
        row = int(self.order[index])
        if row >= len(self.packing):
            return []
        examples = self.packing.places[self.packing.splits[row] : self.packing.splits[row + 1]]
        return list(zip(self.start[examples].tolist(), self.end[examples].tolist(), strict=True))


class Schedule:
    """Maps each row of a run to a domain and to the number of a row of that domain.

    Rows come in periods; in each period every domain has its count of rows, in random order.

    Args:
      counts: [domains], the number of rows of each domain in a period.
      seed: the seed of the order.
    """

    def __init__(self, counts: Sequence[int], seed: int):
        self.counts, self._seed = np.array(counts, np.int64), seed
        self.period = int(self.counts.sum())
        self._periods: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    @classmethod
    def at_rates(cls, rates: Sequence[float], seed: int) -> Schedule:
        """The schedule whose counts are proportional to `rates`, to one part in 65,536 or finer.

        Every count is at least 1.

        Args:
          rates: [domains], the rates of rows. Whole numbers are exact: they are only multiplied by
            a whole number, unless their sum is over a million.
        """
        rates = np.array(rates, np.float64)
        total = rates.sum()
        if np.all(rates == np.round(rates)) and total <= _MAX_PERIOD:
            times = -(-_MIN_PERIOD // int(total))
            return cls((rates * times).astype(np.int64), seed)
        counts = np.maximum(1, np.round(rates / total * _MIN_PERIOD * len(rates)))
        return cls(counts.astype(np.int64), seed)

    def row(self, number: int) -> tuple[int, int]:
        """(domain, number of that domain's row) of row `number`."""
        period, index = divmod(number, self.period)
        domains, ranks = _cached(self._periods, period, self._period)
        domain = int(domains[index])
        return domain, period * int(self.counts[domain]) + int(ranks[index])

    def taken(self, number: int) -> np.ndarray:
        """int64 [domains], how many of the first `number` rows are of each domain."""
        period, index = divmod(number, self.period)
        domains, _ = _cached(self._periods, period, self._period)
        in_period = np.bincount(domains[:index], minlength=len(self.counts))
        return period * self.counts + in_period

    def _period(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """(domain of each row of a period, rank among that domain's rows), both int32 [rows]."""
        domains = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        if len(self.counts) > 1:
            domains = _rng("period", self._seed, period).permutation(domains)
        ranks = np.empty(self.period, np.int32)
        by_domain = np.argsort(domains, kind="stable")
        ranks[by_domain] = np.concatenate([np.arange(n, dtype=np.int32) for n in self.counts])
        return domains, ranks


def _rng(*parts: str | int) -> np.random.Generator:
    key = stable_id(*map(str, parts))
    return np.random.Generator(np.random.Philox(key=key))


_Value = TypeVar("_Value")


def _cached(
    cache: collections.OrderedDict[int, _Value], key: int, make: Callable[[int], _Value]
) -> _Value:
    """`make(key)`, from `cache` if it is there, which keeps the values that were used last."""
    if key not in cache:
        cache[key] = make(key)
        if len(cache) > _CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
