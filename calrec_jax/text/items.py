"""Items, catalogues and user sequences: the types that all layers share."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from calrec_jax.errors import CalrecError

Fields = Mapping[str, str]
"""An item's text by field name; a missing field is absent."""


SPLITS = ("train", "validation", "test")
"""The splits that every dataset has."""


def stable_id(*parts: str) -> int:
    """A number in [1, 2**31 - 1] for `parts`, the same everywhere and for ever.

    31 bits, because JAX has no int64 by default. Two items of one batch of N collide with a
    probability of about N**2 / 2**32, and would then only be taken for the same target.
    """
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1) + 1


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All items of a domain, sorted by item id. Items are identified by id, never by text.

    Attributes:
      domain: its name.
      item_ids: [n], ascending and unique.
      fields: [n], the text fields of each item.

    Raises:
      ValueError: the ids are not ascending and unique, or not as many as `fields`.
    """

    domain: str
    item_ids: tuple[str, ...]
    fields: tuple[Fields, ...]

    def __post_init__(self):
        if len(self.item_ids) != len(self.fields):
            raise ValueError(f"{len(self.item_ids)} item ids, but {len(self.fields)} fields")
        if any(a >= b for a, b in itertools.pairwise(self.item_ids)):
            raise ValueError(f"the item ids of {self.domain} are not ascending and unique")

    @classmethod
    def create(cls, domain: str, items: Mapping[str, Fields]) -> Catalogue:
        """The catalogue of {item id: fields}; empty fields are dropped."""
        ids = sorted(items)
        fields = tuple({k: v for k, v in items[i].items() if v} for i in ids)
        return cls(domain, tuple(ids), fields)

    def __len__(self) -> int:
        return len(self.item_ids)

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """{item id: its place}."""
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def places(self, item_ids: Sequence[str]) -> list[int]:
        """The places of `item_ids` in the catalogue.

        Raises:
          CalrecError: ids are not in the catalogue; the error names them.
        """
        unknown = [item_id for item_id in item_ids if item_id not in self.index]
        if unknown:
            raise CalrecError(
                f"{self.domain} has no item {', '.join(map(repr, unknown[:5]))}"
                f"{' and others' if len(unknown) > 5 else ''}: its catalogue has {len(self)} items"
            )
        return [self.index[item_id] for item_id in item_ids]


@dataclasses.dataclass(frozen=True)
class UserSequence:
    """One record of a split: a user's items in time order, the last of them the target.

    Attributes:
      item_ids: at least two.
      timestamps: Unix seconds, one per item, or None where they are not known.
    """

    user_id: str
    domain: str
    item_ids: tuple[str, ...]
    timestamps: tuple[int, ...] | None = None

    @property
    def history(self) -> tuple[str, ...]:
        """All item ids but the target's, oldest first."""
        return self.item_ids[:-1]

    @property
    def target(self) -> str:
        """The id of the item to predict."""
        return self.item_ids[-1]


@dataclasses.dataclass(frozen=True)
class PlacedSequences:
    """The sequences of a split as places in the catalogue.

    Attributes:
      places: int32 [items of all sequences], the sequences one after another, each of at least two
        items.
      splits: int64 [sequences + 1]; sequence i is `places[splits[i] : splits[i + 1]]`.
    """

    places: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1
