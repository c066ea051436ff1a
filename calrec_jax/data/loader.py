"""Batches of a mixture: dicts of NumPy arrays as `batch.BatchSpec` describes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data import packing, vocabularies
from calrec_jax.data.domains import Domain, Mixture
from calrec_jax.data.examples import Examples
from calrec_jax.data.schedule import DomainRows, Schedule
from calrec_jax.data.vocabularies import VocabularyLike
from calrec_jax.errors import CalrecError

Batch = dict[str, np.ndarray]
_AHEAD = 2  # batches that are made in advance


class Batches:
    """The batches of a mixture: the rows of one host.

    The batch at step n is a function of (seed, n) alone, whatever the number of hosts, and is made
    without the batches before it. An epoch of a domain has each of its examples once.

    Args:
      mixture: the domains, and the rates at which they are mixed.
      spec: the shapes of the global batch, as `BatchSpec.create` makes them from `lengths`.
      lengths: TASK_FEATURE_LENGTHS, {"inputs", "targets"}.
      split: "train", "validation" or "test".
      seed: the seed of the order, and of random targets.
      targets: see `batch.TARGETS`.
      one_pass: whether there is each example of each domain once, mixed by the domains' sizes, and
        the last batch is filled up with empty rows; otherwise batches are mixed at the mixture's
        rates, without end.
      host: (index of this host, number of hosts).

    Raises:
      CalrecError: the hosts cannot share a batch, or a domain has no dataset, no examples or
        another vocabulary.
    """

    def __init__(
        self,
        mixture: Mixture,
        spec: BatchSpec,
        lengths: Mapping[str, int],
        *,
        split: str,
        seed: int,
        targets: str = "last",
        one_pass: bool = False,
        host: tuple[int, int] = (0, 1),
    ):
        index, count = host
        if spec.batch_size % count:
            raise CalrecError(f"BATCH_SIZE {spec.batch_size} cannot be shared by {count} hosts")
        rows = spec.batch_size // count
        self._host_rows = range(index * rows, (index + 1) * rows)
        self.spec, self.mixture = spec, mixture
        self.vocabulary = _vocabulary(mixture)
        self.examples = [
            _examples(domain, lengths, split, targets, seed, self.vocabulary.eos_id)
            for domain in mixture.domains
        ]
        self.rows = [DomainRows(examples, spec, seed) for examples in self.examples]
        self._schedule = self._make_schedule(seed, one_pass)
        self.num_batches = -(-self._schedule.period // spec.batch_size) if one_pass else None
        self._end = self._schedule.period if one_pass else None

    def _make_schedule(self, seed: int, one_pass: bool) -> Schedule:
        per_epoch = np.array([rows.per_epoch for rows in self.rows], np.float64)
        if one_pass:
            return Schedule(per_epoch.astype(np.int64).tolist(), seed)
        sizes = np.array([rows.examples_per_epoch for rows in self.rows], np.float64)
        # Rates are of examples, and the schedule's are of rows. A row of a domain holds
        # sizes / per_epoch examples on average, so that its rate is weight * per_epoch / sizes.
        shares = self.mixture.spec.weights(sizes.astype(np.int64).tolist()) / sizes
        return Schedule.at_rates(per_epoch * shares, seed)

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch at `step`, which counts from 0."""
        bos_id = vocabularies.bos_id(self.vocabulary)
        first = step * self.spec.batch_size
        rows = [
            packing.make_row(self._row(first + number), self.spec, bos_id)
            for number in self._host_rows
        ]
        return {name: np.stack([row[name] for row in rows]) for name in self.spec.shapes()}

    def _row(self, number: int) -> list[packing.Example]:
        if self._end is not None and number >= self._end:
            return []
        domain, row = self._schedule.row(number)
        examples = self.examples[domain]
        return [examples.example(*span) for span in self.rows[domain].row(row)]

    @property
    def shares(self) -> list[float]:
        """Each domain's share of the rows."""
        return (self._schedule.counts / self._schedule.period).tolist()

    def epochs(self, step: int) -> dict[str, float]:
        """{domain: the number of its epochs in the batches before `step`}."""
        taken = self._schedule.taken(step * self.spec.batch_size)
        per_epoch = [rows.per_epoch for rows in self.rows]
        return {
            domain.name: float(rows / an_epoch)
            for domain, rows, an_epoch in zip(self.mixture.domains, taken, per_epoch, strict=True)
        }

    def iterate(self, start: int = 0, num_batches: int | None = None) -> Iterator[Batch]:
        """The batches `start`, `start + 1`, ..., made a little in advance by a thread.

        Args:
          num_batches: the greatest number of batches; None = no limit but the end of one pass.
        """
        end = self.num_batches
        if num_batches is not None:
            end = min(start + num_batches, end) if end is not None else start + num_batches
        return _ahead(self._from(start, end), _AHEAD)

    def _from(self, start: int, end: int | None) -> Iterator[Batch]:
        step = start
        while end is None or step < end:
            yield self.batch(step)
            step += 1


def _vocabulary(mixture: Mixture) -> VocabularyLike:
    """The vocabulary of all domains. Raises CalrecError if they have different ones."""
    names = {vocabularies.fingerprint(d.vocabulary): d.name for d in mixture.domains}
    if len(names) > 1:
        used = ", ".join(f"{name!r}: {kind}" for kind, name in names.items())
        raise CalrecError(f"domains of one mixture need the same vocabulary, not {used}")
    return mixture.domains[0].vocabulary


def _examples(
    domain: Domain, lengths: Mapping[str, int], split: str, targets: str, seed: int, eos_id: int
) -> Examples:
    sequences = domain.placed_sequences(split)
    if not len(sequences):
        raise CalrecError(f"{domain.name} has no {split} example: lower min_events?")
    return Examples(domain.tokens(lengths), sequences, targets, seed, eos_id)


def _ahead(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """The batches, made by a thread that is at most `size` of them ahead."""
    ready: queue.Queue = queue.Queue(size)
    stopped = threading.Event()

    def put(item: tuple[Batch | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if stopped.is_set():
                    return
            put((None, None))
        except BaseException as error:  # raised where the batch is taken
            put((None, error))

    threading.Thread(target=work, name="calrec-batches", daemon=True).start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped.set()
