"""Batches of a mixture: NumPy dicts that hold to `batch.BatchSpec`, the same on every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import seqio

from calrec_jax.batch import BatchSpec
from calrec_jax.data import vocabularies
from calrec_jax.data.feature_converters import CalrecFeatureConverter
from calrec_jax.data.quiet_tensorflow import tf


def batches(
    mixture: seqio.Task | seqio.Mixture,
    spec: BatchSpec,
    lengths: Mapping[str, int],
    *,
    split: str,
    seed: int,
    repeat: bool,
    start: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """This host's rows of batch `start`, `start + 1`, ...

    The batch at step n is a function of (seed, n) alone: every host makes the same global stream
    and takes its rows. Each domain's examples are shuffled all together, anew in each epoch.

    Args:
      spec: of the global batch.
      lengths: TASK_FEATURE_LENGTHS, {"inputs", "targets"}.
      repeat: True: shuffled, mixed at the mixture's rates, without end. False: every example of
        every domain once, in the store's order; the last batch is filled up with empty rows.
      host: (index, count).
    """
    index, count = host
    rows = spec.batch_size // count
    host_spec = dataclasses.replace(spec, batch_size=rows)
    dataset = _rows(mixture, spec, lengths, split, seed, repeat).batch(spec.batch_size)
    dataset = dataset.skip(start).prefetch(tf.data.AUTOTUNE)
    for batch in dataset.as_numpy_iterator():
        batch = {name: _fill(value, spec.batch_size) for name, value in batch.items()}
        batch = {name: value[index * rows : (index + 1) * rows] for name, value in batch.items()}
        host_spec.check(batch)
        yield batch


def _rows(mixture, spec, lengths, split, seed, repeat) -> tf.data.Dataset:
    """Rows of all domains, converted."""
    # Taken from a mixture, a split that is not repeated would end with its shortest domain.
    providers = [mixture] if repeat else seqio.get_subtasks(mixture)
    dataset = None
    for provider in providers:
        part = provider.get_dataset(
            lengths,
            split,
            shuffle=repeat,
            seed=seed,
            num_epochs=None if repeat else 1,
            # A cache behind the source's shuffle would give every epoch the same order.
            try_in_mem_cache=False,
        )
        dataset = part if dataset is None else dataset.concatenate(part)
    bos_id = vocabularies.bos_id(mixture.output_features["inputs"].vocabulary)
    return CalrecFeatureConverter(spec, bos_id)(dataset, lengths)


def _fill(value: np.ndarray, rows: int) -> np.ndarray:
    """`value` with empty rows up to `rows`."""
    missing = rows - len(value)
    return value if not missing else np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
