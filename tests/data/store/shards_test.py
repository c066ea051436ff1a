"""Records and shards are as TFDS would write them; a record's shard depends on its id."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.store import shards
from calrec_jax.data.store.quiet_tensorflow import tf, tfds
from calrec_jax.text.items import UserSequence

TIMED = UserSequence("u\u2028", "d", ("ü", "", "b"), (0, -1, 2**40))
UNTIMED = UserSequence("v", "d", ("a", "b"))


def as_tfds_writes(features, record) -> tf.train.Example:
    return tf.train.Example.FromString(features.serialize_example(features.encode_example(record)))


@pytest.mark.parametrize("sequence", [TIMED, UNTIMED])
def test_sequences_are_encoded_as_tfds_would(sequence):
    record = {
        "user_id": sequence.user_id,
        "item_ids": list(sequence.item_ids),
        "timestamps": list(sequence.timestamps or ()),
    }
    expected = as_tfds_writes(shards.sequence_features(), record)
    assert tf.train.Example.FromString(shards.encode_sequence(sequence)) == expected
    assert expected.features.feature["timestamps"].HasField("int64_list")


def test_items_are_encoded_as_tfds_would():
    names = ("brand", "title")
    expected = as_tfds_writes(
        shards.item_features(names), {"item_id": "i", "brand": "", "title": "漢"}
    )
    made = shards.encode_item("i", {"title": "漢"}, names)
    assert tf.train.Example.FromString(made) == expected


def test_the_same_record_gives_the_same_bytes():
    names = [f"field{n}" for n in range(20)]
    fields = {name: name for name in names}
    made = {shards.encode_item("i", fields, order) for order in (names, names[::-1])}
    assert len(made) == 1


@pytest.mark.parametrize(
    ("records", "config", "expected"),
    [
        (0, "sequences", 1),
        (1, "sequences", 1),
        (50_000, "sequences", 1),
        (50_001, "sequences", 2),
        (200_000, "items", 1),
        (200_001, "items", 2),
    ],
)
def test_the_number_of_shards(records, config, expected):
    assert shards.num_shards(records, config) == expected


def test_shards_are_parts_of_the_range_of_the_hash():
    keys = ("00000000", "55555555", "55555556", "ffffffff")
    assert [shards.shard_of(key, 3) for key in keys] == [0, 0, 1, 2]
    assert shards.record_key("a") == hashlib.md5(b"a").hexdigest()


def written(folder, monkeypatch, ids, per_shard) -> tuple[shards.Split, list[list[str]]]:
    """(the split that the writer returns, the ids in each shard)."""
    monkeypatch.setitem(shards.RECORDS_PER_SHARD, "items", per_shard)
    writer = shards.SplitWriter(folder, "items")
    for key, item_id in sorted((shards.record_key(item_id), item_id) for item_id in ids):
        writer.add(key, shards.encode_item(item_id, {}, ()))
    split = writer.finish(folder, "d", "items")
    n, shard_ids = len(split.shard_lengths), []
    for k in range(n):
        path = shards.shard_path(folder, "d", "items", k, n)
        records = map(
            tf.train.Example.FromString, tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        )
        shard_ids.append(
            [r.features.feature["item_id"].bytes_list.value[0].decode() for r in records]
        )
    assert len(list(folder.iterdir())) == n  # nothing temporary is left
    return split, shard_ids


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_every_record_is_in_the_shard_that_its_id_says(tmp_path, monkeypatch, count):
    ids = [f"i{n}" for n in range(count)]
    split, shard_ids = written(tmp_path, monkeypatch, ids, per_shard=2)
    assert len(shard_ids) == max(1, -(-count // 2))
    assert list(split.shard_lengths) == [len(shard) for shard in shard_ids]
    in_order = [item_id for shard in shard_ids for item_id in shard]
    assert in_order == sorted(ids, key=lambda i: (hashlib.md5(i.encode()).hexdigest(), i))
    for k, shard in enumerate(shard_ids):
        keys = map(shards.record_key, shard)
        assert {shards.shard_of(key, len(shard_ids)) for key in keys} <= {k}
    sizes = [len(shards.encode_item(item_id, {}, ())) for item_id in ids]
    assert split.num_bytes == sum(sizes)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**20))
def test_the_cuts_are_where_the_shards_begin(prefix, n):
    """`finish` cuts at the least prefix of each shard, and so must agree with `shard_of`."""
    k = shards.shard_of(f"{prefix:08x}", n)
    assert -(-(k << 32) // n) <= prefix < -(-((k + 1) << 32) // n)


def test_tfds_reads_many_shards_in_their_order(tmp_path, monkeypatch):
    folder = tmp_path / "d" / "items" / "1.0.0"
    folder.mkdir(parents=True)
    split, shard_ids = written(folder, monkeypatch, [f"i{n}" for n in range(9)], per_shard=1)
    assert len(shard_ids) == 9 and [] in shard_ids  # TFDS reads empty shards, too
    features = shards.item_features(())
    shards.write_metadata(folder, "d", "items", "Items.", features, {"items": split}, {"a": [1]})
    builder = tfds.builder("d/items", data_dir=tmp_path)
    assert builder.info.metadata == {"a": [1]} and builder.info.splits["items"].num_examples == 9
    assert builder.info.splits["items"].num_bytes == split.num_bytes
    read = [record["item_id"].decode() for record in tfds.as_numpy(builder.as_dataset("items"))]
    assert read == [item_id for shard in shard_ids for item_id in shard]
