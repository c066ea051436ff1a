"""From a raw folder to a dataset of the store, with its statistics and its rejected lines."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import tempfile
from typing import Any

from calrec_jax.data import readers, sequences, store
from calrec_jax.data.sequences import Rules, Splits
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.text.items import Catalogue


def prepare(
    source: str,
    input_dir: str | pathlib.Path,
    data_dir: str | pathlib.Path,
    domain: str,
    rules: Rules = Rules(),
) -> dict[str, Any]:
    """Reads `input_dir`, applies `rules`, writes the dataset `domain` into `data_dir`.

    stats.json and rejects.jsonl (raw lines that were not used, each with its reason) are written
    into the dataset's folder.

    Args:
      source: how to read, a key of `readers.READERS`.

    Returns:
      What stats.json holds.

    Raises:
      CalrecError: unknown source, missing file, empty domain, impossible name, full disk.
    """
    if source not in readers.READERS:
        near = difflib.get_close_matches(source, readers.READERS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise CalrecError(f"unknown source {source!r}{hint}; known: {sorted(readers.READERS)}")
    store.check_name(domain)
    input_dir = local_path(input_dir, "the folder of raw files")
    with tempfile.TemporaryDirectory() as scratch:
        rejects_path = pathlib.Path(scratch) / "rejects.jsonl"
        rejects = readers.Rejects(rejects_path)
        raw = readers.READERS[source](input_dir, domain, rejects)
        rejects.close()
        splits = _make_splits(raw, rules, rejects)
        catalogue = Catalogue.create(domain, {i: f for i, f in raw.items.items() if f})
        stats = statistics(catalogue, splits) | {
            "source": source,
            "rules": dataclasses.asdict(rules),
            "rejected_lines": dict(rejects.counts),
        }
        files = {
            "stats.json": json.dumps(stats, indent=2) + "\n",
            "rejects.jsonl": rejects_path.read_text(),
        }
    by_name = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    store.write_domain(data_dir, catalogue, by_name, files)
    return stats


def _make_splits(raw: readers.RawDomain, rules: Rules, rejects: readers.Rejects) -> Splits:
    """`sequences.make_splits`, whose errors go on to say what was rejected before."""
    try:
        splits = sequences.make_splits(raw, rules)
        if not splits.train:
            raise CalrecError(
                f"{raw.name} has nothing to train on: none of its {splits.counts['users']} users "
                f"has the 4 events that give a training example"
            )
        return splits
    except CalrecError as error:
        if not rejects.counts:
            raise
        listed = ", ".join(f"{n} {reason!r}" for reason, n in rejects.counts.most_common(3))
        raise CalrecError(
            f"{error}; {rejects.counts.total()} lines were rejected: {listed}"
        ) from None


def statistics(catalogue: Catalogue, splits: Splits) -> dict[str, Any]:
    """Counts and shares that describe a dataset; shares are of items or of test targets."""
    trained = {item_id for s in splits.train for item_id in s.item_ids}
    missing = {
        name: sum(name not in fields for fields in catalogue.fields) / len(catalogue)
        for name in ("title", "category", "brand", "price")
    }
    return {
        "domain": catalogue.domain,
        "items": len(catalogue),
        **splits.counts,
        "examples": {
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": len(splits.test),
        },
        "mean_length": sum(len(s.item_ids) for s in splits.test) / len(splits.test),
        "missing_share": missing,
        "cold_target_share": sum(s.target not in trained for s in splits.test) / len(splits.test),
        "same_time_target_share": _same_time_share(splits),
    }


def _same_time_share(splits: Splits) -> float | None:
    """Share of test targets with the time stamp of the item before: their order is the file's."""
    timed = [s.timestamps for s in splits.test if s.timestamps]
    return sum(t[-1] == t[-2] for t in timed) / len(timed) if timed else None
