"""The embedded store: seeded, made-up domains that behave like real ones where it matters.

An item is a product: a brand, a kind and a step ("Velmo Trowel Starter"). Users follow one rule
that all domains share: they stay with a brand, and go through the steps of a kind in order; after
the last step they go on with the first step of the kind's successor. Now and then they go on with
an earlier product of their history, or buy something unrelated. Real data's troubles are there too:
consecutive repeats, missing fields, duplicate listings, items never seen in training, and users
with too few events.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import random

from calrec_jax.data.sources import Event
from calrec_jax.errors import CalrecError

DOMAINS = {
    "synthetic_garden": "Trowel Hose Planter Rake Shears Gloves Sprinkler Mulch Trellis Lantern",
    "synthetic_kitchen": "Skillet Kettle Whisk Grater Ladle Toaster Blender Tray Cutter Mug",
    "synthetic_office": "Stapler Folder Marker Notebook Lamp Chair Binder Scanner Desk Pen",
    "synthetic_sports": "Racket Helmet Jersey Bottle Mat Rope Paddle Goggles Whistle Net",
}
"""Kinds of product by domain; each kind's successor is the next, the last one's the first."""

STEPS = ("Starter", "Standard", "Plus", "Pro")
_BRANDS = (
    "Velmo Kardan Ostrel Brixa Tundo Zephra Calvix Morden Plinka Yarrow Quenta Halden Sorvik "
    "Jantel Nexor Fendra Ulmer Wexley Darvon Ristal"
).split()
_COLOURS = "Red Blue Green Black White Grey".split()


@dataclasses.dataclass(frozen=True)
class RawDomain:
    """A domain as it is written: {item id: fields} and events in the file's order."""

    name: str
    items: dict[str, dict[str, str]]
    events: list[Event]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Sizes and shares of the embedded store.

    Attributes:
      users: of each domain but the last.
      target_users: of `target`, the domain that stage II is for: fewer, so that stage I helps.
      brands: of each domain; neighbours in the list of domains share half of theirs. Items of a
        domain: brands x 10 kinds x 4 steps, plus duplicates.
      follow, go_back: shares of purchases that follow the rule from the last item, or from an
        earlier one; the rest is unrelated.
      repeat, duplicate, too_short, cold: shares of purchases that are there twice (going back may
        repeat the last one too), of items listed twice, of users with too few events, of items sold
        only as the last purchase of a history.
      missing: shares of items without category, brand, price.
      min_length, max_length: events of a user, before repeats.
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
"""(brand, place of the kind, place of the step)."""


def next_product(product: Product, kinds: int) -> Product:
    """The rule: the next step of the same product, after the last one the successor's first."""
    brand, kind, step = product
    if step + 1 < len(STEPS):
        return brand, kind, step + 1
    return brand, (kind + 1) % kinds, 0


def generate(config: SyntheticConfig = SyntheticConfig()) -> dict[str, RawDomain]:
    """All domains, by name. The same config gives the same domains on every machine."""
    return {
        name: _Domain(name, place, config).generate() for place, name in enumerate(sorted(DOMAINS))
    }


class _Domain:
    """One domain being made: its products, their listings, and its users."""

    def __init__(self, name: str, place: int, config: SyntheticConfig):
        self.name, self.config = name, config
        self.rng = random.Random(f"{config.seed}/{name}")
        self.kinds = DOMAINS[name].split()
        first = place * config.brands // 2
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
        self._duplicate_some()
        c = self.config
        users = c.target_users if self.name == c.target else c.users
        events = [event for user in range(users) for event in self._user(f"u{user:06d}")]
        return RawDomain(self.name, self.items, events)

    def _item_ids(self) -> list[str]:
        """Ids in no order that tells anything about the products."""
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

    def _duplicate_some(self) -> None:
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
    """Writes a domain as the interactions.jsonl.gz and items.jsonl.gz of the source `jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_lines(
        directory / "items.jsonl.gz",
        ({"item_id": item_id, **fields} for item_id, fields in raw.items.items()),
    )
    _write_lines(directory / "interactions.jsonl.gz", (event._asdict() for event in raw.events))


def _write_lines(path: pathlib.Path, records) -> None:
    # No file name and no time in the header: the same bytes every time.
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for record in records:
            packed.write((json.dumps(record) + "\n").encode())
