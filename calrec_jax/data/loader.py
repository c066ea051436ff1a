"""Batches of a mixture: NumPy dicts that hold to `batch.BatchSpec`, the same on every run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data import vocabularies
from calrec_jax.data.feature_converters import CalrecFeatureConverter
from calrec_jax.data.quiet_tensorflow import seqio, tf
from calrec_jax.errors import CalrecError

Batch = dict[str, np.ndarray]


def batches(
    mixture: seqio.Task | seqio.Mixture,
    spec: BatchSpec,
    lengths: Mapping[str, int],
    *,
    split: str,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
    start: int = 0,
    num_batches: int | None = None,
    host: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """This host's rows of batch `start`, `start + 1`, ...

    The batch at step n is a function of (seed, n) alone: every host makes the same global stream
    and takes its rows. T5X sees the same rows from the same mixture, seed and converter.

    Args:
      spec: of the global batch, as `BatchSpec.create` makes it from `lengths`.
      lengths: TASK_FEATURE_LENGTHS, {"inputs", "targets"}.
      shuffle: all of a domain's examples together, anew in each epoch; else in the store's order.
      repeat: True: mixed at the mixture's rates, without end. False: every example of every domain
        once, mixed by the domains' sizes; the last batch is filled up with empty rows.
      num_batches: at most so many; None = no limit.
      host: (index, count).

    Raises:
      CalrecError: the hosts cannot share a batch, a domain has no dataset, no examples or another
        vocabulary; while iterating: a dataset is damaged.
    """
    index, count = host
    if spec.batch_size % count:
        raise CalrecError(f"BATCH_SIZE {spec.batch_size} cannot be shared by {count} hosts")
    rows = spec.batch_size // count
    mine = slice(index * rows, (index + 1) * rows)
    examples = _examples(mixture, lengths, split, seed, shuffle, repeat)
    dataset = _converter(mixture, spec)(examples, lengths).batch(spec.batch_size).skip(start)
    return itertools.islice(_iterate(dataset, spec, mine), num_batches)


def _examples(mixture, lengths, split, seed, shuffle, repeat) -> tf.data.Dataset:
    """Task features of the mixture's examples."""
    tasks = seqio.get_subtasks(mixture)
    _check_vocabularies(tasks)
    if repeat:
        return mixture.get_dataset(lengths, split, shuffle=shuffle, seed=seed, num_epochs=None)
    # Taken from a mixture, one epoch would end with that of the shortest domain.
    epochs = [task.get_dataset(lengths, split, shuffle=shuffle, seed=seed) for task in tasks]
    sizes = np.array([task.num_input_examples(split) for task in tasks])
    return tf.data.Dataset.sample_from_datasets(
        epochs, weights=list(sizes / sizes.sum()), seed=seed, stop_on_empty_dataset=False
    )


def _check_vocabularies(tasks) -> None:
    """Raises CalrecError where the tasks' token ids mean different things."""
    names: dict[str, str] = {}
    for task in tasks:
        vocabulary = task.output_features["inputs"].vocabulary
        names[vocabularies.fingerprint(vocabulary)] = task.name
    if len(names) > 1:
        used = ", ".join(f"{name!r}: {kind}" for kind, name in names.items())
        raise CalrecError(f"domains of one mixture need the same vocabulary, not {used}")


def _converter(mixture, spec: BatchSpec) -> CalrecFeatureConverter:
    return CalrecFeatureConverter(
        pack=spec.max_segments > 1,
        bos_id=vocabularies.bos_id(mixture.output_features["inputs"].vocabulary),
        row_length=spec.row_length,
        max_segments=spec.max_segments,
        max_loss_tokens=spec.max_loss_tokens,
    )


def _iterate(dataset: tf.data.Dataset, spec: BatchSpec, mine: slice) -> Iterator[Batch]:
    """Batches, filled up and checked, cut to the rows `mine`."""
    iterator = dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    while (batch := _next(iterator)) is not None:
        batch = {name: _fill(value, spec.batch_size) for name, value in batch.items()}
        spec.check(batch)
        yield {name: value[mine] for name, value in batch.items()}


def _next(iterator: Iterator[Batch]) -> Batch | None:
    """The next batch. Our own errors come out of TensorFlow as text in one of its errors."""
    try:
        return next(iterator, None)
    except tf.errors.OpError as error:
        ours = re.search(r"\bCalrecError: (.+)", str(error))
        if ours is None:
            raise
        raise CalrecError(ours[1]) from None


def _fill(value: np.ndarray, rows: int) -> np.ndarray:
    """`value` with empty rows up to `rows`."""
    missing = rows - len(value)
    return value if not missing else np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
