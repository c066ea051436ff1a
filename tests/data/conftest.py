"""A store of two small domains, registered as tasks and as mixtures."""

from __future__ import annotations

import pathlib

import pytest

from calrec_jax.data import registry, vocabularies
from calrec_jax.data.domains import DataConfig
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.store import datasets
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template

TEMPLATE = Template(
    fields=("title",), opening="Bought: ", separator="; ", target_separator=". Next: "
)
TRAIN = {"tiny_books": 37, "tiny_games": 11}


def write_tiny_domain(data_dir: pathlib.Path, domain: str, train_users: int) -> None:
    """`train_users` sequences of 2 to 5 items; validation and test have the first 5 users."""
    titles = {f"i{n:02d}": {"title": f"{domain[5:]} {'x' * (n % 6)}{n}"} for n in range(20)}

    def sequence(user: int, extra: int) -> UserSequence:
        items = tuple(f"i{(3 * user + 7 * n) % 20:02d}" for n in range(2 + user % 4 + extra))
        return UserSequence(f"u{user:03d}", domain, items)

    splits = {
        "train": [sequence(user, 0) for user in range(train_users)],
        "validation": [sequence(user, 1) for user in range(5)],
        "test": [sequence(user, 2) for user in range(5)],
    }
    datasets.write_domain(data_dir, Catalogue.create(domain, titles), splits, {})


@pytest.fixture(scope="session")
def _tiny_store(tmp_path_factory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("tiny_store")
    for domain, users in TRAIN.items():
        write_tiny_domain(data_dir, domain, users)
        registry.register_domain(domain)
    registry.register_mixture("tiny_mixture", list(TRAIN))
    registry.register_mixture("tiny_equal", list(TRAIN), rate="equal")
    return data_dir


@pytest.fixture
def tiny_config(_tiny_store) -> DataConfig:
    """The DataConfig in use: the tiny store, bytes as tokens, a short template."""
    config = DataConfig(str(_tiny_store), vocabularies.byte(), TEMPLATE)
    tasks.use(config)
    return config
