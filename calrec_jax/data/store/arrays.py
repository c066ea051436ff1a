"""Domains saved as arrays: what batches are made of, to train and evaluate where TensorFlow is not.

`calrec batches` writes a folder that takes the place of a store (DATA_DIR): the catalogue's tokens,
the sequences of all splits as places in it, and the mixtures. Batches that are packed from it are
those of the store, bit for bit, at any step; arrays are memory-mapped. NumPy and JSON alone.

    FOLDER/arrays.json              vocabulary, mixtures, domains with their templates and checksums
    FOLDER/DOMAIN/catalogue.jsonl   {item_id, fields} a line, in the order of the tokens
    FOLDER/DOMAIN/text_*.npy        int32 tokens: items (values, splits), the template's sentences
    FOLDER/DOMAIN/SPLIT_places.npy, SPLIT_splits.npy     int32, int64: see `PlacedSequences`
    FOLDER/DOMAIN/SPLIT_timestamps.npy                   int64, one a place; -1 where not known
    FOLDER/DOMAIN/SPLIT_users.jsonl                      a user id a line
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import files
from calrec_jax.data import vocabularies
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
    vocabulary: Any,
    domains: Mapping[str, Mapping[str, Any]],
    mixtures: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes arrays.json, last of all: without it the folder is none.

    Args:
      domains: {name: {"dataset", "template" (as written), "own_template", "checksums", "sizes"}}.
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
    """How long the arrays and files of a domain are, to know one that is not whole."""
    found = {"catalogue": len(catalogue), "text_values": len(text.values)}
    for split in SPLITS:
        found[f"{split}_users"] = len(sequences[split])
        found[f"{split}_places"] = sum(len(user.item_ids) for user in sequences[split])
    return found


def as_placed(sequences: Sequence[UserSequence], catalogue: Catalogue) -> PlacedSequences:
    """The items of `sequences` as places.

    Raises:
      CalrecError: an item is not in the catalogue.
    """
    splits = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(s.item_ids) for s in sequences], out=splits[1:])
    places = catalogue.places([item_id for s in sequences for item_id in s.item_ids])
    return PlacedSequences(np.array(places, np.int32), splits)


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """What arrays.json holds.

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
    """The catalogue of a domain. Raises CalrecError where there is none."""
    return _Saved.of(folder, name).catalogue()


def read_text(
    folder: str | os.PathLike, name: str, template: Template, vocabulary: Any
) -> TextTokens:
    """The tokens of a domain's text, memory-mapped.

    Raises:
      CalrecError: they were saved with another template or vocabulary.
    """
    saved = _Saved.of(folder, name)
    asked = {
        "vocabulary": vocabularies.fingerprint(vocabulary),
        "template": files.as_json(dataclasses.asdict(template)),
    }
    there = {"vocabulary": saved.vocabulary, "template": saved.entry["template"]}
    for part, value in there.items():
        if value != asked[part]:
            raise CalrecError(
                f"{saved.folder} was saved with {part} {value}, this run has {asked[part]}: run "
                f"`calrec batches` again, or give the same"
            )
    sizes = saved.entry["sizes"]
    long = {"values": sizes["text_values"], "splits": sizes["catalogue"] + 1}
    fields = (field.name for field in dataclasses.fields(TextTokens))
    return TextTokens(**{f: saved.array(f"text_{f}", long.get(f)) for f in fields})


def read_placed(
    folder: str | os.PathLike, name: str, split: str, catalogue: Catalogue
) -> PlacedSequences:
    """The sequences of a split as places, memory-mapped."""
    return _Saved.of(folder, name).placed_sequences(split)


def read_sequences(folder: str | os.PathLike, name: str, split: str) -> list[UserSequence]:
    """The sequences of a split, as `reader` gives them."""
    saved = _Saved.of(folder, name)
    catalogue, histories = saved.catalogue(), saved.placed_sequences(split)
    splits = histories.splits.tolist()
    ids = [catalogue.item_ids[place] for place in histories.places.tolist()]
    times = saved.array(f"{split}_timestamps", len(ids)).tolist()
    found = []
    for place, user_id in enumerate(saved.lines(f"{split}_users")):
        of = slice(*splits[place : place + 2])
        known = tuple(times[of]) if -1 not in times[of] else None
        found.append(UserSequence(user_id, catalogue.domain, tuple(ids[of]), known))
    return found


def num_examples(folder: str | os.PathLike, name: str, split: str) -> int:
    """How many sequences a split holds."""
    return _Saved.of(folder, name).num_examples(split)


def checksums(folder: str | os.PathLike, name: str) -> dict[str, str]:
    """Checksums of the dataset that the arrays were made of."""
    return _Saved.of(folder, name).entry["checksums"]


@dataclasses.dataclass(frozen=True)
class _Saved:
    """One domain of a folder, whose parts are read as they are asked for.

    Attributes:
      folder: of the domain.
      vocabulary: its fingerprint.
      entry: of the domain in the index.
    """

    folder: pathlib.Path
    vocabulary: str
    entry: Mapping[str, Any]

    @classmethod
    def of(cls, folder: str | os.PathLike, name: str) -> _Saved:
        """Domain `name`. Raises CalrecError where there is none."""
        index = read_index(folder)
        if name not in index["domains"]:
            there = ", ".join(sorted(index["domains"]))
            raise CalrecError(f"{folder} has no domain {name!r}, only {there}")
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

    def array(self, part: str, long: int | None) -> np.ndarray:
        """An array, memory-mapped. Raises CalrecError unless it is `long` (None: any length)."""
        path = self.folder / f"{part}.npy"
        return _whole(path, _load(path), long)

    def lines(self, part: str) -> list[Any]:
        """The values of a file of JSON lines. Raises CalrecError where some are missing."""
        path = self.folder / f"{part}.jsonl"
        return _whole(path, _read_lines(path), self.entry["sizes"][part])


def _whole(path: pathlib.Path, found, long: int | None):
    if long is not None and len(found) != long:
        raise CalrecError(
            f"{path} is damaged: it has {len(found)} entries, and {long} were written: run `calrec "
            f"batches` again"
        )
    return found


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
