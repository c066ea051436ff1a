"""Reads the store for runs, with the same functions that `arrays` has for saved arrays.

Many records are parsed at a time, which takes a tenth of the time of TFDS's own reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from calrec_jax.data.store import datasets
from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, PlacedSequences, UserSequence

_BATCH = 1024  # records that are parsed at a time


def num_examples(data_dir: str, domain: str, split: str) -> int:
    """How many sequences a split holds. Raises as `datasets.builder`."""
    return datasets.split_info(data_dir, domain, "sequences", split).num_examples


def read_catalogue(data_dir: str, domain: str) -> Catalogue:
    """The catalogue of a domain. Raises CalrecError where there is no such dataset."""
    names = [*datasets.builder(data_dir, domain, "items").info.features]
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    items = {}
    for batch in _parse(data_dir, domain, "items", "items", features):
        columns = {name: _texts(batch[name].numpy()) for name in names}
        ids = columns.pop("item_id")
        for item_id, *values in zip(ids, *columns.values(), strict=True):
            items[item_id] = dict(zip(columns, values, strict=True))
    return Catalogue.create(domain, items)


def read_sequences(data_dir: str, domain: str, split: str) -> list[UserSequence]:
    """All sequences of a split, in the store's order.

    Raises:
      CalrecError: there is no such dataset or split.
    """
    features = {
        "user_id": tf.io.FixedLenFeature([], tf.string),
        "item_ids": tf.io.RaggedFeature(tf.string),
        "timestamps": tf.io.RaggedFeature(tf.int64),
    }
    sequences = []
    for batch in _parse(data_dir, domain, "sequences", split, features):
        users = _texts(batch["user_id"].numpy())
        items, times = (batch[name] for name in ("item_ids", "timestamps"))
        item_lists = _split_at(_texts(items.flat_values.numpy()), items.row_splits.numpy())
        time_lists = _split_at(times.flat_values.numpy().tolist(), times.row_splits.numpy())
        sequences += [
            UserSequence(user, domain, tuple(item_ids), tuple(timestamps) or None)
            for user, item_ids, timestamps in zip(users, item_lists, time_lists, strict=True)
        ]
    return sequences


def read_placed(data_dir: str, domain: str, split: str, catalogue: Catalogue) -> PlacedSequences:
    """The sequences of a split as places in `catalogue`, in the store's order.

    Raises:
      CalrecError: there is no such dataset or split, or its items are not in the catalogue.
    """
    features = {"item_ids": tf.io.RaggedFeature(tf.string)}
    index = {item_id.encode(): place for place, item_id in enumerate(catalogue.item_ids)}
    places, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for batch in _parse(data_dir, domain, "sequences", split, features):
        ids = batch["item_ids"].flat_values.numpy().tolist()
        try:
            places.append(np.array([index[item_id] for item_id in ids], np.int32))
        except KeyError as unknown:
            raise CalrecError(
                f"damaged dataset: {domain} has no item {unknown.args[0].decode()!r}"
            ) from None
        lengths.append(batch["item_ids"].row_lengths().numpy())
    splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return PlacedSequences(np.concatenate(places), splits)


def checksums(data_dir: str, domain: str) -> dict[str, str]:
    """The checksums of the dataset's splits and items, which were recorded when it was written.

    Raises:
      CalrecError: there is no such dataset, or its metadata has none.
    """
    metadata = datasets.builder(data_dir, domain, "sequences").info.metadata or {}
    if "checksums" not in metadata:
        raise CalrecError(
            f"damaged dataset: {domain} in {data_dir} has no checksums: prepare it again"
        )
    return dict(metadata["checksums"])


def _parse(
    data_dir: str, domain: str, config: str, split: str, features: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The records of a split in the store's order, in batches of {feature: tensor}.

    Args:
      features: {feature: how `tf.io.parse_example` is to parse it}.

    Raises:
      CalrecError: there is no such dataset or split, or not all of its records can be read.
    """
    info = datasets.split_info(data_dir, domain, config, split)
    records = tf.data.TFRecordDataset([str(path) for path in info.filepaths]).batch(_BATCH)
    read = 0
    try:
        for batch in records.map(lambda batch: tf.io.parse_example(batch, features)):
            read += next(iter(batch.values())).shape[0]
            yield batch
    except tf.errors.OpError as error:
        raise CalrecError(
            f"damaged dataset: {split} of {domain} in {data_dir} cannot be read to its end: "
            f"prepare it again"
        ) from error
    if read != info.num_examples:
        raise CalrecError(
            f"damaged dataset: {split} of {domain} in {data_dir} has {read} records, and "
            f"{info.num_examples} were written: prepare it again"
        )


def _texts(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values.tolist()]


def _split_at(values: list[Any], splits: np.ndarray) -> Iterator[list[Any]]:
    ends = splits.tolist()
    return (values[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True))
