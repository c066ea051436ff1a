"""Domains saved as arrays: what batches are made of, to train and evaluate where TensorFlow is not.

`calrec batches` writes a folder that takes the place of a store (DATA_DIR): the catalogue's tokens,
the sequences of all splits as places in it, and the mixtures. Batches that are packed from it are
those of the store, bit for bit, at any step; arrays are memory-mapped. NumPy and JSON alone.

    FOLDER/arrays.json              vocabulary, mixtures, domains with their templates and checksums
    FOLDER/DOMAIN/catalogue.jsonl   {item_id, fields} a line, in the order of the tokens
    FOLDER/DOMAIN/text_*.npy        int32 tokens: items (values, splits), the template's sentences
    FOLDER/DOMAIN/SPLIT_places.npy, SPLIT_splits.npy     int32, int64: see `examples.Histories`
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

from calrec_jax.data import vocabularies
from calrec_jax.data.examples import Histories
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import SPLITS, Catalogue, UserSequence
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
        histories = as_histories(users, catalogue)
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
    temporary = folder / f"{INDEX}.tmp"
    temporary.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    os.replace(temporary, folder / INDEX)


def sizes(
    catalogue: Catalogue, text: TextTokens, sequences: Mapping[str, Sequence[UserSequence]]
) -> dict[str, int]:
    """How long the arrays and files of a domain are, to know one that is not whole."""
    found = {"catalogue": len(catalogue), "text_values": len(text.values)}
    for split in SPLITS:
        found[f"{split}_users"] = len(sequences[split])
        found[f"{split}_places"] = sum(len(user.item_ids) for user in sequences[split])
    return found


def as_histories(sequences: Sequence[UserSequence], catalogue: Catalogue) -> Histories:
    """The items of `sequences` as places.

    Raises:
      CalrecError: an item is not in the catalogue.
    """
    splits = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(s.item_ids) for s in sequences], out=splits[1:])
    places = catalogue.places([item_id for s in sequences for item_id in s.item_ids])
    return Histories(np.array(places, np.int32), splits)


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
    lines = _whole(folder, name, "catalogue", _read_lines)
    dataset = read_index(folder)["domains"][name]["dataset"]
    return Catalogue(
        dataset,
        tuple(line["item_id"] for line in lines),
        tuple(line["fields"] for line in lines),
    )


def read_text(
    folder: str | os.PathLike, name: str, template: Template, vocabulary: Any
) -> TextTokens:
    """The tokens of a domain's text, memory-mapped.

    Raises:
      CalrecError: they were saved with another template or vocabulary.
    """
    here, index = _domain_dir(folder, name), read_index(folder)
    asked = {
        "vocabulary": vocabularies.fingerprint(vocabulary),
        "template": json.loads(json.dumps(dataclasses.asdict(template))),
    }
    saved = {
        "vocabulary": index["vocabulary"],
        "template": index["domains"][name]["template"],
    }
    for part, value in saved.items():
        if value != asked[part]:
            raise CalrecError(
                f"{here} was saved with {part} {value}, this run has {asked[part]}: run `calrec "
                f"batches` again, or give the same"
            )
    parts = {f.name: _load(here / f"text_{f.name}.npy") for f in dataclasses.fields(TextTokens)}
    return TextTokens(**parts | {"values": _whole(folder, name, "text_values", _load)})


def read_histories(
    folder: str | os.PathLike, name: str, split: str, catalogue: Catalogue
) -> Histories:
    """The sequences of a split as places, memory-mapped."""
    here = _split_of(folder, name, split)
    places = _whole(folder, name, f"{split}_places", _load)
    return Histories(places, _load(f"{here}_splits.npy"))


def read_sequences(folder: str | os.PathLike, name: str, split: str) -> list[UserSequence]:
    """The sequences of a split, as `stored` gives them."""
    here, catalogue = _split_of(folder, name, split), read_catalogue(folder, name)
    splits = _load(f"{here}_splits.npy").tolist()
    places = _whole(folder, name, f"{split}_places", _load)
    ids = [catalogue.item_ids[place] for place in places.tolist()]
    times = _load(f"{here}_timestamps.npy").tolist()
    found = []
    for place, user_id in enumerate(_whole(folder, name, f"{split}_users", _read_lines)):
        of = slice(*splits[place : place + 2])
        known = tuple(times[of]) if -1 not in times[of] else None
        found.append(UserSequence(user_id, catalogue.domain, tuple(ids[of]), known))
    return found


def num_examples(folder: str | os.PathLike, name: str, split: str) -> int:
    """How many sequences a split holds."""
    return len(_load(f"{_split_of(folder, name, split)}_splits.npy")) - 1


def checksums(folder: str | os.PathLike, name: str) -> dict[str, str]:
    """Checksums of the dataset that the arrays were made of."""
    _domain_dir(folder, name)
    return read_index(folder)["domains"][name]["checksums"]


def _domain_dir(folder, name: str) -> pathlib.Path:
    domains = read_index(folder)["domains"]
    if name not in domains:
        raise CalrecError(f"{folder} has no domain {name!r}, only {', '.join(sorted(domains))}")
    return pathlib.Path(folder) / name


def _split_of(folder, name: str, split: str) -> str:
    if split not in SPLITS:
        raise CalrecError(f"{name} has no split {split!r}, only {sorted(SPLITS)}")
    return f"{_domain_dir(folder, name)}/{split}"


def _whole(folder, name: str, part: str, read):
    """What `read` reads of a part of a domain, as long as it was written."""
    ending = "npy" if read is _load else "jsonl"
    path = _domain_dir(folder, name) / f"{part}.{ending}"
    found, long = read(path), read_index(folder)["domains"][name]["sizes"][part]
    if len(found) != long:
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
