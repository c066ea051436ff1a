"""The store: we and plain TFDS read what was written, and a dataset is complete or not there."""

from __future__ import annotations

import errno
import json
import pathlib
import subprocess
import sys

import pytest

from calrec_jax.data.store import datasets, reader
from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, UserSequence

CATALOGUE = Catalogue.create(
    "toys",
    {
        "b": {"title": "Ball", "brand": "Ø & Co"},
        "a": {"title": "Ape"},
        "ü\u2028": {"title": "漢字", "price": "$1"},
    },
)
SPLITS = {
    "train": [UserSequence("u1", "toys", ("a", "b"), (5, 6))],
    "validation": [
        UserSequence("u1", "toys", ("a", "b", "a"), (5, 6, 6)),
        UserSequence("u2", "toys", ("b", "a")),
    ],
    "test": [UserSequence("u2", "toys", ("b", "a", "ü\u2028"))],
}
OTHER = Catalogue.create("toys", {"z": {"title": "Zebra"}})


def write(data_dir, catalogue=CATALOGUE, **files):
    return datasets.write_domain(data_dir, catalogue, SPLITS, files)


def files(directory: pathlib.Path) -> dict[str, bytes]:
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_what_is_written_is_read(tmp_path):
    assert write(tmp_path, **{"stats.json": "{}\n"}) == tmp_path / "toys"
    assert reader.read_catalogue(tmp_path, "toys") == CATALOGUE
    for split, sequences in SPLITS.items():
        read = reader.read_sequences(tmp_path, "toys", split)
        assert sorted(read, key=lambda s: s.user_id) == sequences
        assert reader.num_examples(tmp_path, "toys", split) == len(sequences)
    assert (tmp_path / "toys" / "stats.json").read_text() == "{}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]  # nothing temporary is left


def test_plain_tfds_reads_it(tmp_path):
    write(tmp_path)
    code = f"""
import json, sys
import tensorflow_datasets as tfds
out = {{}}
for config in ("sequences", "items"):
    for split, data in tfds.load(f"toys/{{config}}", data_dir={str(tmp_path)!r}).items():
        out[split] = [
            {{k: [x.decode() if isinstance(x, bytes) else int(x) for x in v]
              if v.shape else v.decode() for k, v in tfds.as_numpy(record).items()}}
            for record in data.map(lambda r: r)
        ]
out["metadata"] = dict(tfds.builder("toys", data_dir={str(tmp_path)!r}).info.metadata)
assert "calrec_jax" not in sys.modules
print(json.dumps(out))
"""
    code = code.replace("v.shape", "getattr(v, 'shape', ())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["test"] == [{"user_id": "u2", "item_ids": ["b", "a", "ü\u2028"], "timestamps": []}]
    assert [len(found[split]) for split in ("train", "validation")] == [1, 2]
    # By MD5: of b 92eb..., of a 0cc1..., of the other f9ff... (md5sum).
    assert [item["item_id"] for item in found["items"]] == ["a", "b", "ü\u2028"]
    assert found["items"][1] == {"item_id": "b", "title": "Ball", "brand": "Ø & Co", "price": ""}
    assert found["metadata"] == {"checksums": datasets._checksums(CATALOGUE, SPLITS)}


def test_the_same_data_gives_the_same_files(tmp_path):
    first, again = files(write(tmp_path / "a")), files(write(tmp_path / "b"))
    assert first.keys() == again.keys()
    assert not [name for name in first if first[name] != again[name]]


def test_writing_again_puts_the_new_in_place_of_the_old(tmp_path):
    write(tmp_path, **{"rejects.jsonl": "old"})
    write(tmp_path, OTHER)
    assert reader.read_catalogue(tmp_path, "toys") == OTHER
    assert not (tmp_path / "toys" / "rejects.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]


def fails_with(error):
    def fails(*_, **__):
        raise error

    return fails


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_write_that_ends_early_leaves_the_old_dataset(tmp_path, monkeypatch, error):
    before = files(write(tmp_path))
    # Sequences are on the disk by then.
    monkeypatch.setattr(datasets.shards, "encode_item", fails_with(error))
    with pytest.raises((CalrecError, KeyboardInterrupt)):
        write(tmp_path, OTHER)
    assert files(tmp_path / "toys") == before
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]


def test_a_move_that_fails_puts_the_old_dataset_back(tmp_path, monkeypatch):
    before = files(write(tmp_path))
    rename = pathlib.Path.rename

    def fails_once(self, target):
        if self.name == "made":
            monkeypatch.setattr(pathlib.Path, "rename", rename)
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails_once)
    with pytest.raises(CalrecError, match="Input/output error; nothing that was there before"):
        write(tmp_path, OTHER)
    assert files(tmp_path / "toys") == before


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left on the disk"),
        (
            tf.errors.ResourceExhaustedError(None, None, "/a; No space left on device"),
            "no space left on the disk",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
)
def test_what_keeps_it_from_being_written_is_one_line(tmp_path, monkeypatch, raised, reason):
    monkeypatch.setattr(datasets.shards, "write_metadata", fails_with(raised))
    with pytest.raises(CalrecError, match=f"cannot write {tmp_path}/a/toys: .*{reason}") as error:
        write(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_workspace_is_one_processs_alone(tmp_path):
    with datasets.workspace(tmp_path, "toys") as folder:
        (folder / "file").write_text("")
        with pytest.raises(CalrecError, match=f"another process is making {tmp_path}/toys: wait"):
            write(tmp_path)
        assert (folder / "file").exists()
        write_tiny(tmp_path, "books")  # another domain
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books", "toys"]


def write_tiny(data_dir, domain):
    return datasets.write_domain(data_dir, Catalogue.create(domain, {"z": {"t": "Z"}}), SPLITS, {})


def test_what_a_killed_process_left_is_wiped(tmp_path):
    leftover = tmp_path / ".preparing_toys"
    (leftover / "made" / "items").mkdir(parents=True)
    for name in ("lock", "train.records", "made/items/file"):
        (leftover / name).write_text("left")
    with datasets.workspace(tmp_path, "toys") as folder:
        assert folder == leftover and [path.name for path in folder.iterdir()] == ["lock"]
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_put_back_that_was_moved_away_before_the_kill(tmp_path):
    before = files(write(tmp_path))
    (tmp_path / ".preparing_toys").mkdir()
    (tmp_path / "toys").rename(tmp_path / ".preparing_toys" / "old")
    with datasets.workspace(tmp_path, "toys"):
        assert files(tmp_path / "toys") == before
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]


def test_a_file_where_the_store_should_be(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(CalrecError, match="cannot write .*store/toys: "):
        write(tmp_path / "store")


@pytest.mark.parametrize("name", ["Toys", "my-toys", "1toys", "", "../toys", "toys/items"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(CalrecError, match="cannot name a domain: use lower-case"):
        datasets.write_domain(tmp_path, Catalogue.create(name, {"a": {"title": "A"}}), SPLITS, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_dataset_says_how_to_make_it(tmp_path):
    with pytest.raises(CalrecError, match=f"no dataset of 'toys' in {tmp_path}: .*calrec prepare"):
        reader.read_catalogue(tmp_path, "toys")


def test_a_missing_split_lists_those_there_are(tmp_path):
    write(tmp_path)
    with pytest.raises(CalrecError, match="no split 'dev', only .*'test', 'train', 'validation'"):
        reader.read_sequences(tmp_path, "toys", "dev")


def one_record_less(data: bytes) -> bytes:
    """A TFRecord file without its last record: each has 16 bytes around it."""
    start = end = 0
    while end < len(data):
        start, end = end, end + 16 + int.from_bytes(data[end : end + 8], "little")
    return data[:start]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-7], "cannot be read to its end: prepare it again"),
        (lambda data: data[:20] + b"?" + data[21:], "cannot be read to its end: prepare it again"),
        (lambda data: None, "cannot be read to its end: prepare it again"),
        (one_record_less, "has . records, and . were written: prepare it again"),
    ],
    ids=["truncated", "a byte changed", "gone", "a record less"],
)
@pytest.mark.parametrize("split", ["train", "validation", "items"])
def test_damaged_files_are_one_line(tmp_path, split, damage, message):
    write(tmp_path)
    (path,) = tmp_path.rglob(f"*-{split}.tfrecord*")
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)

    expected = f"damaged dataset: {split} of toys in {tmp_path} {message}"
    with pytest.raises(CalrecError, match=expected) as error:
        if split == "items":
            reader.read_catalogue(tmp_path, "toys")
        else:
            reader.read_sequences(tmp_path, "toys", split)
    assert "\n" not in str(error.value)


def test_checksums_are_in_the_metadata(tmp_path):
    write(tmp_path)
    assert reader.checksums(tmp_path, "toys") == datasets._checksums(CATALOGUE, SPLITS)
    (metadata,) = tmp_path.glob("toys/sequences/*/metadata.json")
    metadata.write_text("{}")
    with pytest.raises(CalrecError, match=f"toys in {tmp_path} has no checksums: prepare it again"):
        reader.checksums(tmp_path, "toys")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_description_is_one_line(tmp_path, name, content):
    write(tmp_path)
    (path,) = tmp_path.glob(f"toys/items/*/{name}")
    path.write_text(content)
    with pytest.raises(CalrecError, match="damaged dataset: .*items.* cannot be opened: prepare t"):
        reader.read_catalogue(tmp_path, "toys")
