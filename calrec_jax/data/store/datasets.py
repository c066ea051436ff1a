"""The store: one TFDS dataset per domain, which plain `tfds.load` can read anywhere.

A dataset has two configs, since TFDS requires the same features in all splits of a config.
`tfds.load("DOMAIN/sequences", data_dir=...)` has the splits train, validation and test of user
sequences {user_id, item_ids, timestamps}, whose last item is the target.
`tfds.load("DOMAIN/items", ...)` has the one split `items`, the catalogue. A missing field is "",
missing timestamps are an empty list. Records are sorted by the MD5 of the user's or the item's id.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from calrec_jax.data.store import shards
from calrec_jax.data.store.checksums import checksum, item_digest, sequence_digest
from calrec_jax.data.store.quiet_tensorflow import tf, tfds
from calrec_jax.data.store.shards import VERSION
from calrec_jax.errors import CalrecError, is_full_disk, local_path
from calrec_jax.locks import try_flock
from calrec_jax.text.items import SPLITS, Catalogue, Fields, UserSequence

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")  # part of the names of files, whose length is limited


def check_name(domain: str) -> None:
    """Raises CalrecError where `domain` cannot be the name of a TFDS dataset."""
    if not _NAME.fullmatch(domain):
        raise CalrecError(
            f"{domain!r} cannot name a domain: use lower-case letters, digits and underscores, "
            f"beginning with a letter, and no more than 100"
        )


def domain_dir(data_dir: str | pathlib.Path, domain: str) -> pathlib.Path:
    """The folder of the dataset of `domain`. Raises CalrecError where the store is a URL."""
    return local_path(data_dir, "the store") / domain


@contextlib.contextmanager
def workspace(data_dir: str | pathlib.Path, domain: str) -> Iterator[pathlib.Path]:
    """A temporary folder of this process alone, beside the dataset's place, to make the dataset in.

    What a killed process left in it is deleted first.

    Raises:
      CalrecError: the domain's name is impossible, another process is making this dataset, or the
        disk is full or not writable.
    """
    check_name(domain)
    target = domain_dir(data_dir, domain)
    folder = target.parent / f".preparing_{domain}"
    missing = [path for path in folder.parents if not path.exists()]
    try:
        with _locked(folder, target):
            try:
                yield folder
            finally:
                _wipe(folder)
    except (OSError, tf.errors.OpError) as error:
        raise CalrecError(
            f"cannot write {target}: {_reason(error)}; nothing that was there before is lost"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: pathlib.Path, target: pathlib.Path) -> Iterator[None]:
    """Holds the lock in `folder`, which is made if need be, and emptied but for the lock."""
    lock = folder / "lock"
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a run that ends deletes its folder
                file = stack.enter_context(lock.open("w"))
                if try_flock(file) is False:
                    raise CalrecError(
                        f"another process is making {target}: wait until it has ended, or end it"
                    )
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    break
        old = folder / "old"
        if old.exists() and not target.exists():  # an earlier run was killed within `publish`
            old.rename(target)
        _wipe(folder)
        try:
            yield
        finally:
            lock.unlink()
            with contextlib.suppress(OSError):  # the next run already uses the folder
                folder.rmdir()


def _wipe(folder: pathlib.Path) -> None:
    """Deletes all that is in `folder` but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink()


def _reason(error: Exception) -> str:
    if is_full_disk(error):
        return "no space left on the disk"
    return (str(error) or type(error).__name__).splitlines()[0]


class DomainWriter:
    """Writes the records of a domain. Users, and items, must come in the order of the store.

    That order is by `shards.record_key` of the id, then by the id.

    Args:
      folder: a folder made by `workspace`.
    """

    def __init__(self, folder: pathlib.Path, domain: str):
        self._folder, self._domain = folder, domain
        self._made = folder / "made"
        self._writers: dict[str, shards.SplitWriter] = {}
        self._names: Sequence[str] = ()
        self._splits: dict[str, shards.Split] = {}

    def add_user(self, user_id: str, splits: Mapping[str, UserSequence]) -> None:
        """Adds a user's sequences, {split: sequence}."""
        key = shards.record_key(user_id)
        for split, sequence in splits.items():
            self._writer(split).add(key, shards.encode_sequence(sequence))

    def _writer(self, split: str) -> shards.SplitWriter:
        if split not in self._writers:
            self._writers[split] = shards.SplitWriter(self._folder, split)
        return self._writers[split]

    def write_items(self, names: Sequence[str], items: Iterable[tuple[str, Fields]]) -> None:
        """Writes the catalogue.

        Args:
          names: the names of all fields that items have.
          items: (item id, fields).
        """
        writer = shards.SplitWriter(self._folder, "items")
        for item_id, fields in items:
            record = shards.encode_item(item_id, fields, names)
            writer.add(shards.record_key(item_id), record)
        self._names = names
        self._splits["items"] = writer.finish(self.folder("items"), self._domain, "items")

    def folder(self, config: str) -> pathlib.Path:
        """The folder for the shards of "sequences" or "items", made if need be."""
        folder = self._made / config / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def take_shards(self, names: Sequence[str], splits: Mapping[str, shards.Split]) -> None:
        """Registers all splits when their shards were written into `folder` by other code.

        No users or items may be added then.

        Args:
          names: the names of all fields that items have.
          splits: {"train", "validation", "test", "items": the split}.
        """
        self._names = names
        self._splits.update(splits)

    def finish(self, metadata: Mapping[str, Any]) -> pathlib.Path:
        """Completes the dataset after all users and items are written.

        Args:
          metadata: JSON values; they become `builder.info.metadata` of both configs.

        Returns:
          The folder that holds the dataset, for `publish`.
        """
        folder = self.folder("sequences")
        for split in SPLITS:
            if split not in self._splits:
                finished = self._writer(split).finish(folder, self._domain, "sequences")
                self._splits[split] = finished
        shards.write_metadata(
            folder,
            self._domain,
            "sequences",
            f"User sequences of {self._domain}; the last item is the target.",
            shards.sequence_features(),
            {split: self._splits[split] for split in SPLITS},
            metadata,
        )
        shards.write_metadata(
            self.folder("items"),
            self._domain,
            "items",
            f"The catalogue of {self._domain}.",
            shards.item_features(self._names),
            {"items": self._splits["items"]},
            metadata,
        )
        # The config that `tfds.load(DOMAIN)` loads.
        (self._made / ".config").mkdir()
        default = {"default_config_name": "sequences"}
        (self._made / ".config" / "metadata.json").write_text(json.dumps(default))
        return self._made


def publish(
    folder: pathlib.Path, made: pathlib.Path, data_dir: str | os.PathLike, domain: str
) -> pathlib.Path:
    """Moves a finished dataset to its place in the store, instead of an older one there.

    If that fails, the older one stays.

    Args:
      folder: the workspace.
      made: the folder that `DomainWriter.finish` returned.
    """
    target, old = domain_dir(data_dir, domain), folder / "old"
    try:
        if target.exists():
            target.rename(old)
        made.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    return target


def write_domain(
    data_dir: str | pathlib.Path,
    catalogue: Catalogue,
    splits: Mapping[str, Sequence[UserSequence]],
    extra_files: Mapping[str, str],
) -> pathlib.Path:
    """Writes the dataset of `catalogue.domain` from memory, instead of an older one in the store.

    The older one is kept if writing fails.

    Args:
      splits: {"train", "validation", "test": sequences}.
      extra_files: {name: text} of further files in the dataset's folder.

    Raises:
      CalrecError: as `workspace` raises it.
    """
    domain = catalogue.domain
    with workspace(data_dir, domain) as folder:
        writer = DomainWriter(folder, domain)
        sequences = [(s.user_id, {split: s}) for split in SPLITS for s in splits[split]]
        for user_id, by_split in sorted(sequences, key=lambda pair: _sort_key(pair[0])):
            writer.add_user(user_id, by_split)
        items = zip(catalogue.item_ids, catalogue.fields, strict=True)
        names = sorted({name for fields in catalogue.fields for name in fields})
        writer.write_items(names, sorted(items, key=lambda item: _sort_key(item[0])))
        made = writer.finish({"checksums": _checksums(catalogue, splits)})
        for name, text in extra_files.items():
            (made / name).write_text(text)
        return publish(folder, made, data_dir, domain)


def _sort_key(record_id: str) -> tuple[str, str]:
    return shards.record_key(record_id), record_id


def _checksums(
    catalogue: Catalogue, splits: Mapping[str, Sequence[UserSequence]]
) -> dict[str, str]:
    items = zip(catalogue.item_ids, catalogue.fields, strict=True)
    return {
        **{name: checksum(sum(map(sequence_digest, splits[name]))) for name in SPLITS},
        "items": checksum(sum(item_digest(item_id, fields) for item_id, fields in items)),
    }


def load(data_dir: str | pathlib.Path, domain: str, config: str, split: str) -> tf.data.Dataset:
    """One split of a domain's dataset, in the order in which it was written.

    Args:
      config: "sequences" or "items".

    Raises:
      CalrecError: there is no such dataset; the message says how to make it.
    """
    split_info(data_dir, domain, config, split)
    # TFDS would cache small datasets in memory, and warn of those that are not read to their end.
    read_config = tfds.ReadConfig(try_autocache=False)
    return builder(data_dir, domain, config).as_dataset(
        split=split, shuffle_files=False, read_config=read_config
    )


def split_info(
    data_dir: str | os.PathLike, domain: str, config: str, split: str
) -> tfds.core.SplitInfo:
    """TFDS's description of a split. Raises as `load` does."""
    splits = builder(data_dir, domain, config).info.splits
    if split not in splits:
        raise CalrecError(f"{domain} has no split {split!r}, only {sorted(splits)}")
    return splits[split]


def builder(data_dir: str | os.PathLike, domain: str, config: str) -> tfds.core.DatasetBuilder:
    """The TFDS builder that reads a config of a domain's dataset.

    Raises:
      CalrecError: there is no such dataset (the message says how to make it), the name cannot be
        one, or the dataset is damaged.
    """
    check_name(domain)
    directory = domain_dir(data_dir, domain) / config / VERSION
    if not directory.is_dir():
        raise CalrecError(
            f"no dataset of {domain!r} in {data_dir}: make it with `calrec prepare --data_dir="
            f"{data_dir} --domain={domain} ...` (or `calrec synthetic` for the embedded store), or "
            f"set DATA_DIR"
        )
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # JSON and protocol buffers have errors of many types
        raise CalrecError(
            f"damaged dataset: {directory} cannot be opened: prepare {domain} again"
        ) from error
