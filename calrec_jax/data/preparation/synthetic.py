"""The embedded store: seeded synthetic domains that behave like real ones where it matters.

An item is a product: a brand, a kind and a step ("Velmo Trowel Starter"). Users follow one rule
that all domains share: they stay with a brand, and go through the steps of a kind in order; after
the last step follows the first step of the kind's successor. Now and then users apply the rule to
an earlier product of their history instead of the last one, or buy something unrelated. The domains
also have the defects of real data: consecutive repeats, missing fields, duplicate listings, items
never seen in training, and users with too few events.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

from calrec_jax.data.sources import Event
from calrec_jax.errors import CalrecError

DOMAINS = {
    "synthetic_garden": "Trowel Hose Planter Rake Shears Gloves Sprinkler Mulch Trellis Lantern",
    "synthetic_kitchen": "Skillet Kettle Whisk Grater Ladle Toaster Blender Tray Cutter Mug",
    "synthetic_office": "Stapler Folder Marker Notebook Lamp Chair Binder Scanner Desk Pen",
    "synthetic_sports": "Racket Helmet Jersey Bottle Mat Rope Paddle Goggles Whistle Net",
}
"""{domain: kinds of product}; a kind's successor is the next one, and the last one's the first."""

STEPS = ("Starter", "Standard", "Plus", "Pro")
_BRANDS = (
    "Velmo Kardan Ostrel Brixa Tundo Zephra Calvix Morden Plinka Yarrow Quenta Halden Sorvik "
    "Jantel Nexor Fendra Ulmer Wexley Darvon Ristal"
).split()
_COLOURS = "Red Blue Green Black White Grey".split()


@dataclasses.dataclass(frozen=True)
class RawDomain:
    """The raw data of a domain.

    Attributes:
      items: {item id: fields}.
      events: the events in the order of the raw file.
    """

    name: str
    items: dict[str, dict[str, str]]
    events: list[Event]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Sizes and shares of the embedded store.

    Attributes:
      seed: the seed of all random choices.
      users: the number of users of each domain but `target`.
      target_users: the number of users of `target`: fewer, so that stage I helps.
      target: the domain that stage II is for.
      brands: the number of brands of each domain; neighbours in the list of domains share half of
        their brands. A domain has brands x 10 kinds x 4 steps items, plus duplicates.
      follow: the share of purchases that follow the rule from the last item.
      go_back: the share of purchases that follow it from an earlier item; the rest is unrelated.
      repeat: the share of purchases that occur twice in a row (going back may also repeat an item).
      duplicate: the share of items that are listed twice.
      too_short: the share of users with too few events.
      cold: the share of items that are only sold as the last purchase of a history.
      missing: the shares of items without category, brand and price.
      min_length, max_length: the number of events of a user, before repeats.
    """

    seed: int = 0
    users: int = 1500
    target_users: int = 600
    target: str = "synthetic_sports"
    brands: int = 8
    follow: float = 0.8
    go_back: float = 0.12
    repeat: float = 0.05
    duplicate: float = 0.02
    too_short: float = 0.03
    cold: float = 0.02
    missing: tuple[tuple[str, float], ...] = (("category", 0.04), ("brand", 0.02), ("price", 0.15))
    min_length: int = 4
    max_length: int = 9

    def __post_init__(self):
        if self.target not in DOMAINS:
            raise CalrecError(f"target {self.target!r} is none of {', '.join(sorted(DOMAINS))}")
        if not 1 <= self.brands <= len(_BRANDS):
            raise CalrecError(f"brands {self.brands}: there are names for 1 to {len(_BRANDS)}")
        if self.cold >= 1:
            raise CalrecError(f"cold {self.cold}: some items must be sold before the last purchase")


Product = tuple[str, int, int]
"""(brand, index of the kind, index of the step)."""


def next_product(product: Product, kinds: int) -> Product:
    """The rule that users follow: the next step of the kind, or the first of its successor."""
    brand, kind, step = product
    if step + 1 < len(STEPS):
        return brand, kind, step + 1
    return brand, (kind + 1) % kinds, 0


def generate(config: SyntheticConfig = SyntheticConfig()) -> dict[str, RawDomain]:
    """All domains, by name. The same config gives the same domains on every machine."""
    return {
        name: _Domain(name, index, config).generate() for index, name in enumerate(sorted(DOMAINS))
    }


class _Domain:
    """Generates one domain: its products, their listings, and its users."""

    def __init__(self, name: str, index: int, config: SyntheticConfig):
        self.name, self.config = name, config
        self.rng = random.Random(f"{config.seed}/{name}")
        self.kinds = DOMAINS[name].split()
        first = index * config.brands // 2
        self.brands = [_BRANDS[(first + i) % len(_BRANDS)] for i in range(config.brands)]
        self.products = [
            (brand, kind, step)
            for brand in self.brands
            for kind in range(len(self.kinds))
            for step in range(len(STEPS))
        ]
        self.cold = set(self.rng.sample(self.products, int(config.cold * len(self.products))))

    def generate(self) -> RawDomain:
        self.items: dict[str, dict[str, str]] = {}
        self.listings: dict[Product, list[str]] = {}
        for item_id, product in zip(self._item_ids(), self.products, strict=False):
            self.items[item_id] = self._fields(product)
            self.listings[product] = [item_id]
        self._list_duplicates()
        c = self.config
        users = c.target_users if self.name == c.target else c.users
        events = [event for user in range(users) for event in self._user(f"u{user:06d}")]
        return RawDomain(self.name, self.items, events)

    def _item_ids(self) -> list[str]:
        """Random ids, whose order says nothing about the products."""
        letter, n = self.name.split("_")[1][0].upper(), 2 * len(self.products)
        return [f"{letter}{i:05d}" for i in self.rng.sample(range(10 * n), n)]

    def _fields(self, product: Product) -> dict[str, str]:
        brand, kind, step = product
        kind_name = self.kinds[kind]
        fields = {
            "title": f"{brand} {kind_name} {STEPS[step]} {self.rng.choice(_COLOURS)}",
            "category": f"{self.name.split('_')[1].capitalize()} {kind_name}s",
            "brand": brand,
            "price": f"${5 + 3 * kind + 10 * step}.99",
        }
        for name, share in self.config.missing:
            if self.rng.random() < share:
                del fields[name]
        return fields

    def _list_duplicates(self) -> None:
        spare = self._item_ids()[len(self.products) :]
        n = int(self.config.duplicate * len(self.products))
        for product in self.rng.sample(self.products, n):
            duplicate = next(i for i in spare if i not in self.items)
            self.items[duplicate] = dict(self.items[self.listings[product][0]])
            self.listings[product].append(duplicate)

    def _user(self, user_id: str) -> list[Event]:
        c, rng = self.config, self.rng
        short = rng.random() < c.too_short
        length = rng.randint(1, 2) if short else rng.randint(c.min_length, c.max_length)
        products: list[Product] = [self._warm()]
        while len(products) < length:
            products.append(self._next(products, last=len(products) == length - 1))
        time = 1_500_000_000 + 86_400 * rng.randrange(1000)
        events = []
        for product in products:
            item_id = rng.choice(self.listings[product])
            time += 86_400 * rng.randrange(0, 30)
            for _ in range(2 if rng.random() < c.repeat else 1):
                events.append(Event(user_id, item_id, len(events), time))
        return events

    def _next(self, products: list[Product], last: bool) -> Product:
        draw = self.rng.random()
        if draw < self.config.follow:
            product = next_product(products[-1], len(self.kinds))
        elif draw < self.config.follow + self.config.go_back:
            product = next_product(self.rng.choice(products), len(self.kinds))
        else:
            product = self.rng.choice(self.products)
        while product in self.cold and not last:
            product = next_product(product, len(self.kinds))
        return product

    def _warm(self) -> Product:
        while True:
            product = self.rng.choice(self.products)
            if product not in self.cold:
                return product


def write_raw(raw: RawDomain, directory: pathlib.Path) -> None:
    """Writes interactions.jsonl.gz and items.jsonl.gz, which the source `jsonl` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_lines(
        directory / "items.jsonl.gz",
        ({"item_id": item_id, **fields} for item_id, fields in raw.items.items()),
    )
    _write_lines(directory / "interactions.jsonl.gz", (event._asdict() for event in raw.events))


def _write_lines(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    # No file name and no time in gzip's header, so that the bytes are always the same.
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for record in records:
            packed.write((json.dumps(record) + "\n").encode())
