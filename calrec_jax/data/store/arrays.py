"""Domains saved as arrays, to train and evaluate where TensorFlow is not installed.

`calrec batches` writes a folder that can replace a store as DATA_DIR: the catalogue's tokens, the
sequences of all splits as places in it, and the mixtures. Batches that are packed from it are bit
for bit those of the store, at any step. It is written with NumPy and JSON, and arrays are
memory-mapped.

    FOLDER/arrays.json              vocabulary, mixtures, domains with their templates and checksums
    FOLDER/DOMAIN/catalogue.jsonl   {item_id, fields} per line, in the order of the tokens
    FOLDER/DOMAIN/text_*.npy        the fields of `TextTokens`
    FOLDER/DOMAIN/SPLIT_places.npy, SPLIT_splits.npy     the fields of `PlacedSequences`
    FOLDER/DOMAIN/SPLIT_timestamps.npy                   int64, one per place; -1 where not known
    FOLDER/DOMAIN/SPLIT_users.jsonl                      a user id per line
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from calrec_jax import files
from calrec_jax.data import vocabularies
from calrec_jax.data.vocabularies import VocabularyLike
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import SPLITS, Catalogue, PlacedSequences, UserSequence
from calrec_jax.text.prompts import TextTokens
from calrec_jax.text.templates import Template

INDEX = "arrays.json"
_VERSION = 1


def is_saved(data_dir: str | os.PathLike) -> bool:
    """Whether `data_dir` is a folder of saved arrays, rather than a store."""
    return (pathlib.Path(data_dir) / INDEX).is_file()


def write_domain(
    folder: pathlib.Path,
    name: str,
    catalogue: Catalogue,
    text: TextTokens,
    sequences: Mapping[str, Sequence[UserSequence]],
) -> None:
    """Writes the arrays of one domain, without its entry in the index."""
    here = folder / name
    here.mkdir(parents=True, exist_ok=True)
    items = zip(catalogue.item_ids, catalogue.fields, strict=True)
    _write_lines(here / "catalogue.jsonl", ({"item_id": i, "fields": dict(f)} for i, f in items))
    for field in dataclasses.fields(TextTokens):
        np.save(here / f"text_{field.name}.npy", getattr(text, field.name))
    for split in SPLITS:
        users = sequences[split]
        _write_lines(here / f"{split}_users.jsonl", (user.user_id for user in users))
        histories = as_placed(users, catalogue)
        np.save(here / f"{split}_places.npy", histories.places)
        np.save(here / f"{split}_splits.npy", histories.splits)
        times = [t for u in users for t in (u.timestamps or [-1] * len(u.item_ids))]
        np.save(here / f"{split}_timestamps.npy", np.array(times, np.int64))


def write_index(
    folder: pathlib.Path,
    vocabulary: VocabularyLike,
    domains: Mapping[str, Mapping[str, Any]],
    mixtures: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes arrays.json, as the last file: a folder without it is not taken for saved arrays.

    Args:
      domains: {name: {"dataset", "template" (as used), "own_template", "checksums", "sizes"}}.
      mixtures: {name: {"domains", "rates", "temperature"}}.
    """
    index = {
        "version": _VERSION,
        "vocabulary": vocabularies.fingerprint(vocabulary),
        "domains": domains,
        "mixtures": mixtures,
    }
    files.write_json(folder / INDEX, index)


def sizes(
    catalogue: Catalogue, text: TextTokens, sequences: Mapping[str, Sequence[UserSequence]]
) -> dict[str, int]:
    """{array or file: its length} of a domain, by which an incomplete one is recognised."""
    lengths = {"catalogue": len(catalogue), "text_values": len(text.values)}
    for split in SPLITS:
        lengths[f"{split}_users"] = len(sequences[split])
        lengths[f"{split}_places"] = sum(len(user.item_ids) for user in sequences[split])
    return lengths


def as_placed(sequences: Sequence[UserSequence], catalogue: Catalogue) -> PlacedSequences:
    """`sequences` with their items as places in `catalogue`.

    Raises:
      CalrecError: an item is not in the catalogue.
    """
    splits = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(s.item_ids) for s in sequences], out=splits[1:])
    places = catalogue.places([item_id for s in sequences for item_id in s.item_ids])
    return PlacedSequences(np.array(places, np.int32), splits)


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of arrays.json.

    Raises:
      CalrecError: it is damaged, or of another version of calrec_jax.
    """
    path = pathlib.Path(folder) / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: run `calrec batches` again ({error})") from error
    version = index.get("version") if isinstance(index, dict) else None
    if version != _VERSION:
        raise CalrecError(
            f"{path} is of version {version}, and version {_VERSION} is read here: "
            f"run `calrec batches` again"
        )
    if not {"vocabulary", "domains", "mixtures"} <= index.keys():
        raise CalrecError(f"{path} is damaged: run `calrec batches` again")
    return index


def read_catalogue(folder: str | os.PathLike, name: str) -> Catalogue:
    """The catalogue of a domain. Raises CalrecError where there is no such domain."""
    return _SavedDomain.open(folder, name).catalogue()


def read_text(
    folder: str | os.PathLike, name: str, template: Template, vocabulary: VocabularyLike
) -> TextTokens:
    """The tokens of a domain's text, memory-mapped.

    Raises:
      CalrecError: they were saved with another template or vocabulary.
    """
    domain = _SavedDomain.open(folder, name)
    expected = {
        "vocabulary": vocabularies.fingerprint(vocabulary),
        "template": files.as_json(dataclasses.asdict(template)),
    }
    saved = {"vocabulary": domain.vocabulary, "template": domain.entry["template"]}
    for part, value in saved.items():
        if value != expected[part]:
            raise CalrecError(
                f"{domain.folder} was saved with {part} {value}, this run has {expected[part]}: "
                f"run `calrec batches` again, or give the same"
            )
    sizes = domain.entry["sizes"]
    lengths = {"values": sizes["text_values"], "splits": sizes["catalogue"] + 1}
    fields = (field.name for field in dataclasses.fields(TextTokens))
    return TextTokens(**{f: domain.array(f"text_{f}", lengths.get(f)) for f in fields})


def read_placed(
    folder: str | os.PathLike, name: str, split: str, catalogue: Catalogue
) -> PlacedSequences:
    """The sequences of a split as places in the catalogue, memory-mapped."""
    return _SavedDomain.open(folder, name).placed_sequences(split)


def read_sequences(folder: str | os.PathLike, name: str, split: str) -> list[UserSequence]:
    """The sequences of a split, the same as `reader.read_sequences` reads from the store."""
    domain = _SavedDomain.open(folder, name)
    catalogue, histories = domain.catalogue(), domain.placed_sequences(split)
    splits = histories.splits.tolist()
    ids = [catalogue.item_ids[place] for place in histories.places.tolist()]
    times = domain.array(f"{split}_timestamps", len(ids)).tolist()
    sequences = []
    for i, user_id in enumerate(domain.lines(f"{split}_users")):
        span = slice(*splits[i : i + 2])
        timestamps = tuple(times[span]) if -1 not in times[span] else None
        sequences.append(UserSequence(user_id, catalogue.domain, tuple(ids[span]), timestamps))
    return sequences


def num_examples(folder: str | os.PathLike, name: str, split: str) -> int:
    """How many sequences a split holds."""
    return _SavedDomain.open(folder, name).num_examples(split)


def checksums(folder: str | os.PathLike, name: str) -> dict[str, str]:
    """The checksums of the dataset that the arrays were made from."""
    return _SavedDomain.open(folder, name).entry["checksums"]


@dataclasses.dataclass(frozen=True)
class _SavedDomain:
    """One domain of a folder. Its parts are read when they are needed.

    Attributes:
      folder: the domain's folder.
      vocabulary: the fingerprint of the vocabulary.
      entry: the domain's entry in the index.
    """

    folder: pathlib.Path
    vocabulary: str
    entry: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike, name: str) -> _SavedDomain:
        """The domain `name`. Raises CalrecError where there is none."""
        index = read_index(folder)
        if name not in index["domains"]:
            names = ", ".join(sorted(index["domains"]))
            raise CalrecError(f"{folder} has no domain {name!r}, only {names}")
        return cls(pathlib.Path(folder) / name, index["vocabulary"], index["domains"][name])

    def catalogue(self) -> Catalogue:
        lines = self.lines("catalogue")
        ids = tuple(line["item_id"] for line in lines)
        return Catalogue(self.entry["dataset"], ids, tuple(line["fields"] for line in lines))

    def num_examples(self, split: str) -> int:
        if split not in SPLITS:
            raise CalrecError(f"{self.folder.name} has no split {split!r}, only {sorted(SPLITS)}")
        return self.entry["sizes"][f"{split}_users"]

    def placed_sequences(self, split: str) -> PlacedSequences:
        splits = self.array(f"{split}_splits", self.num_examples(split) + 1)
        places = self.array(f"{split}_places", self.entry["sizes"][f"{split}_places"])
        return PlacedSequences(places, splits)

    def array(self, part: str, length: int | None) -> np.ndarray:
        """An array, memory-mapped.

        Raises:
          CalrecError: it is damaged, or has not `length` entries (None: any number).
        """
        path = self.folder / f"{part}.npy"
        array = _load(path)
        _check_length(path, array, length)
        return array

    def lines(self, part: str) -> list[Any]:
        """The values of a file of JSON lines. Raises CalrecError where lines are missing."""
        path = self.folder / f"{part}.jsonl"
        lines = _read_lines(path)
        _check_length(path, lines, self.entry["sizes"][part])
        return lines


def _check_length(path: pathlib.Path, content: Sized, length: int | None) -> None:
    """Raises CalrecError where the content of a file has not `length` entries (None: any)."""
    if length is not None and len(content) != length:
        raise CalrecError(
            f"{path} is damaged: it has {len(content)} entries, and {length} were written: run "
            f"`calrec batches` again"
        )


def _load(path: str | os.PathLike) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CalrecError(f"{path} is damaged: run `calrec batches` again ({error})") from error


def _write_lines(path: pathlib.Path, values: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _read_lines(path: pathlib.Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise CalrecError(f"{path} is damaged: run `calrec batches` again ({error})") from error
