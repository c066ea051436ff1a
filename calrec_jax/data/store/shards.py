"""Files of the store: how a record is encoded, which shard it is in, and TFDS's metadata.

Records are written with TensorFlow alone: TFDS's own writing is ten times slower. A record's shard
depends only on its id and on the number of records, so that shards can be written independently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from calrec_jax.data.store.quiet_tensorflow import tf, tfds
from calrec_jax.text.items import Fields, UserSequence

VERSION = "1.0.0"
RECORDS_PER_SHARD = {"sequences": 50_000, "items": 200_000}
_INDEX = np.dtype([("prefix", "<u4"), ("end", "<u8")])
_FRAME = 16  # bytes that TFRecord adds to a record


def record_key(record_id: str) -> str:
    """The key by which records are sorted, before their ids: the id's MD5 in hexadecimal."""
    return hashlib.md5(record_id.encode(), usedforsecurity=False).hexdigest()


def num_shards(records: int, config: str) -> int:
    """How many shards a split of `records` records has."""
    return max(1, -(-records // RECORDS_PER_SHARD[config]))


def shard_of(key: str, shards: int) -> int:
    """The shard of the record with this `record_key`; its order is that of the records."""
    return int(key[:8], 16) * shards >> 32


def encode_sequence(sequence: UserSequence) -> bytes:
    """`sequence` as a serialised tf.train.Example; unknown timestamps are an empty list."""
    example = tf.train.Example()
    feature = example.features.feature
    feature["user_id"].bytes_list.value.append(sequence.user_id.encode())
    feature["item_ids"].bytes_list.value.extend([i.encode() for i in sequence.item_ids])
    # Without this, an empty list would not be marked as one of integers.
    feature["timestamps"].int64_list.SetInParent()
    feature["timestamps"].int64_list.value.extend(sequence.timestamps or ())
    return example.SerializeToString(deterministic=True)


def encode_item(item_id: str, fields: Fields, names: Iterable[str]) -> bytes:
    """An item as a serialised tf.train.Example with the fields `names`; missing ones are ""."""
    example = tf.train.Example()
    feature = example.features.feature
    feature["item_id"].bytes_list.value.append(item_id.encode())
    for name in names:
        feature[name].bytes_list.value.append(fields.get(name, "").encode())
    return example.SerializeToString(deterministic=True)


def sequence_features() -> tfds.features.FeaturesDict:
    """The features of a record of the config `sequences`."""
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "user_id": text,
            "item_ids": tfds.features.Sequence(text),
            "timestamps": tfds.features.Sequence(tf.int64),
        }
    )


def item_features(names: Iterable[str]) -> tfds.features.FeaturesDict:
    """The features of a record of the config `items` with the fields `names`."""
    text = tfds.features.Text()
    return tfds.features.FeaturesDict({"item_id": text, **{name: text for name in names}})


@dataclasses.dataclass(frozen=True)
class Split:
    """A split that has been written.

    Attributes:
      shard_lengths: the number of records of each shard.
      num_bytes: the size of all records.
    """

    shard_lengths: Sequence[int]
    num_bytes: int


def shard_path(
    folder: pathlib.Path, domain: str, split: str, shard: int, shards: int
) -> pathlib.Path:
    """The path where TFDS looks for a shard."""
    return folder / f"{domain}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


class SplitWriter:
    """Writes the records of a split, which must come sorted by `record_key` and then by id.

    The number of shards is only known at the end, when they are cut from one temporary file.

    Args:
      folder: the folder for temporary files.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self._split = split
        self._records_path = folder / f"{split}.records"
        self._index_path = folder / f"{split}.index"
        self._records = tf.io.TFRecordWriter(str(self._records_path))
        self._index = self._index_path.open("wb")
        self._end = 0

    def add(self, key: str, record: bytes) -> None:
        """Appends a record."""
        self._records.write(record)
        self._end += len(record) + _FRAME
        self._index.write(struct.pack("<IQ", int(key[:8], 16), self._end))

    def finish(self, folder: pathlib.Path, domain: str, config: str) -> Split:
        """Writes the shards into `folder`, and deletes the temporary files."""
        self._records.close()
        self._index.close()
        # An empty file cannot be memory-mapped.
        index = np.memmap(self._index_path, _INDEX, "r") if self._end else np.zeros(0, _INDEX)
        n = num_shards(len(index), config)
        # The least prefix whose `shard_of` is k is k * 2**32 / n, rounded up.
        firsts = np.searchsorted(index["prefix"], [-(-(k << 32) // n) for k in range(n)])
        firsts = [*firsts.tolist(), len(index)]
        ends = [0 if first == 0 else int(index["end"][first - 1]) for first in firsts]
        with self._records_path.open("rb") as records:
            for k in range(n):
                with shard_path(folder, domain, self._split, k, n).open("wb") as shard:
                    _copy(records, shard, ends[k + 1] - ends[k])
        lengths = np.diff(firsts).tolist()
        num_bytes = self._end - _FRAME * len(index)
        del index
        self._records_path.unlink()
        self._index_path.unlink()
        return Split(lengths, num_bytes)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        piece = source.read(min(size, 1 << 20))
        target.write(piece)
        size -= len(piece)


def write_metadata(
    folder: pathlib.Path,
    domain: str,
    config: str,
    description: str,
    features: tfds.features.FeaturesDict,
    splits: Mapping[str, Split],
    metadata: Mapping[str, Any],
) -> None:
    """Writes the files that `tfds.load` needs beside the shards.

    Args:
      folder: the folder of the shards.
      metadata: JSON values; they become `builder.info.metadata`.
    """
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=domain,
            config_name=config,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name="calrec_jax",
        ),
        description=description,
        features=features,
        disable_shuffling=True,  # records are read in the order of the files
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format("tfrecord")
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=domain, filetype_suffix="tfrecord"
    )
    made = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=list(split.shard_lengths),
            num_bytes=split.num_bytes,
            filename_template=template,
        )
        for name, split in splits.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(made))
    info.write_to_directory(folder)
