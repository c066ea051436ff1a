"""The store: a TFDS dataset a domain, readable by plain `tfds.load` anywhere.

A dataset has two configs, since TFDS wants the same features in all splits of one:
`tfds.load("DOMAIN/sequences", data_dir=...)` has splits train, validation and test of user
sequences {user_id, item_ids, timestamps}, the last item being the target;
`tfds.load("DOMAIN/items", ...)` has the one split `items`, the catalogue. A missing field is "",
missing timestamps are an empty list.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence

from calrec_jax.data.quiet_tensorflow import tf, tfds
from calrec_jax.errors import CalrecError, is_full_disk, local_path
from calrec_jax.text.items import Catalogue, UserSequence

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_name(domain: str) -> None:
    """Raises CalrecError where TFDS could not take `domain` as a dataset's name."""
    if not _NAME.fullmatch(domain):
        raise CalrecError(
            f"{domain!r} cannot name a domain: use lower-case letters, digits and underscores"
        )


def domain_dir(data_dir: str | pathlib.Path, domain: str) -> pathlib.Path:
    """Where the dataset of `domain` lies. Raises CalrecError where the store is a URL."""
    return local_path(data_dir, "the store") / domain


def write_domain(
    data_dir: str | pathlib.Path,
    catalogue: Catalogue,
    splits: Mapping[str, Sequence[UserSequence]],
    extra_files: Mapping[str, str],
) -> pathlib.Path:
    """Writes the dataset of `catalogue.domain`, in place of one that is there.

    It is made beside its place and moved there when it is whole, so a killed write leaves either
    the old dataset or none.

    Args:
      splits: {"train", "validation", "test"}, each a list of sequences.
      extra_files: {name: text}, written into the dataset's folder.

    Raises:
      CalrecError: the domain's name is impossible, or the disk is full or not writable.
    """
    check_name(catalogue.domain)
    target = domain_dir(data_dir, catalogue.domain)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=".writing_", dir=data_dir))
        with contextlib.redirect_stdout(None):  # TFDS announces every dataset it makes
            _write(temporary, catalogue, splits)
        made = domain_dir(temporary, catalogue.domain)
        for name, text in extra_files.items():
            (made / name).write_text(text)
        _put_in_place(made, target, temporary / "old")
    except (OSError, tf.errors.OpError) as error:
        raise CalrecError(
            f"cannot write {target}: {_reason(error)}; nothing that was there before is lost"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _put_in_place(made: pathlib.Path, target: pathlib.Path, old: pathlib.Path) -> None:
    """Moves `made` to `target`, and what is there to `old`; back again if that fails."""
    try:
        if target.exists():
            target.rename(old)
        made.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    # TFDS looks before it writes, and says it in words of its own.
    if is_full_disk(error) or "Not enough disk space" in text:
        return "no space left on the disk"
    return text.splitlines()[0]


def _write(root: pathlib.Path, catalogue: Catalogue, splits) -> None:
    text = tfds.features.Text()
    store = functools.partial(
        tfds.dataset_builders.store_as_tfds_dataset,
        name=catalogue.domain,
        version=VERSION,
        data_dir=root,
        # Users and items are written in the order of their ids: the same files every time.
        disable_shuffling=True,
    )
    store(
        config="sequences",
        description=f"User sequences of {catalogue.domain}; the last item is the target.",
        features=tfds.features.FeaturesDict(
            {
                "user_id": text,
                "item_ids": tfds.features.Sequence(text),
                "timestamps": tfds.features.Sequence(tf.int64),
            }
        ),
        split_datasets={name: list(_sequence_records(splits[name])) for name in SPLITS},
    )
    names = sorted({name for fields in catalogue.fields for name in fields})
    store(
        config="items",
        description=f"The catalogue of {catalogue.domain}.",
        features=tfds.features.FeaturesDict({"item_id": text, **{name: text for name in names}}),
        split_datasets={"items": list(_item_records(catalogue, names))},
    )


def _sequence_records(sequences: Iterable[UserSequence]):
    for i, s in enumerate(sequences):
        times = list(s.timestamps or ())
        yield i, {"user_id": s.user_id, "item_ids": list(s.item_ids), "timestamps": times}


def _item_records(catalogue: Catalogue, names: Sequence[str]):
    for i, (item_id, fields) in enumerate(zip(catalogue.item_ids, catalogue.fields, strict=True)):
        yield i, {"item_id": item_id, **{name: fields.get(name, "") for name in names}}


def load(data_dir: str | pathlib.Path, domain: str, config: str, split: str) -> tf.data.Dataset:
    """One split of a domain's dataset, in the order in which it was written.

    Args:
      config: "sequences" or "items".

    Raises:
      CalrecError: there is no such dataset; the line says how to make it.
    """
    builder = _builder(data_dir, domain, config)
    if split not in builder.info.splits:
        raise CalrecError(f"{domain} has no split {split!r}, only {sorted(builder.info.splits)}")
    # TFDS would keep small datasets in memory, and warn of those that are not read to their end.
    read_config = tfds.ReadConfig(try_autocache=False)
    return builder.as_dataset(split=split, shuffle_files=False, read_config=read_config)


def num_examples(data_dir: str | pathlib.Path, domain: str, split: str) -> int:
    """How many sequences a split holds."""
    return _builder(data_dir, domain, "sequences").info.splits[split].num_examples


def _builder(data_dir, domain: str, config: str):
    directory = domain_dir(data_dir, domain) / config / VERSION
    if not directory.is_dir():
        raise CalrecError(
            f"no dataset of {domain!r} in {data_dir}: make it with `calrec prepare --data_dir="
            f"{data_dir} --domain={domain} ...` (or `calrec synthetic` for the embedded store), or "
            f"set DATA_DIR"
        )
    return tfds.builder_from_directory(directory)


def read_sequences(data_dir: str | pathlib.Path, domain: str, split: str) -> list[UserSequence]:
    """All sequences of a split, in the order of user ids. Raises as `load` does."""
    return [
        UserSequence(
            record["user_id"].decode(),
            domain,
            tuple(item_id.decode() for item_id in record["item_ids"]),
            tuple(record["timestamps"].tolist()) or None,
        )
        for record in load(data_dir, domain, "sequences", split).as_numpy_iterator()
    ]


def read_catalogue(data_dir: str | pathlib.Path, domain: str) -> Catalogue:
    """The catalogue of a domain. Raises as `load` does."""
    items = {}
    for record in load(data_dir, domain, "items", "items").as_numpy_iterator():
        fields = {name: value.decode() for name, value in record.items()}
        items[fields.pop("item_id")] = fields
    return Catalogue.create(domain, items)
