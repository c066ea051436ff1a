"""Saved arrays give the same domains and the same batches as the store they were made from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from calrec_jax.batch import BatchSpec
from calrec_jax.data import specs
from calrec_jax.data.domains import DataConfig
from calrec_jax.data.loader import Batches
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.store import arrays, datasets
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template

LENGTHS = {"inputs": 80, "targets": 24}
SPEC = BatchSpec.create(4, LENGTHS, row_length=240, max_segments=5)
NAMES = ("tiny_books", "tiny_games")


def save(folder, config, names=NAMES, own_template=False):
    """Saves the registered domains as `calrec batches` does."""
    index = {}
    for name in names:
        domain = tasks.in_use().domain(name)
        sequences = {split: domain.sequences(split) for split in arrays.SPLITS}
        arrays.write_domain(folder, name, domain.catalogue, domain.text, sequences)
        index[name] = {
            "dataset": domain.dataset,
            "template": {**dataclasses.asdict(domain.template), "fields": ["title"]},
            "own_template": own_template,
            "checksums": {"train": "abc"},
            "sizes": arrays.sizes(domain.catalogue, domain.text, sequences),
        }
    mixture = {"domains": list(names), "rates": [1.0, 3.0], "temperature": 2.0}
    arrays.write_index(folder, config.vocabulary, index, {"saved_mixture": mixture})
    return dataclasses.replace(config, data_dir=str(folder))


@pytest.fixture
def registered(tiny_config, monkeypatch):
    """The tiny store. Registrations of the test are undone at its end."""
    monkeypatch.setattr(specs, "mixtures", dict(specs.mixtures))
    tasks.use(tiny_config)
    return tiny_config


def test_a_store_after_saved_arrays_finds_what_is_registered(registered, tmp_path):
    tasks.use(save(tmp_path, registered))
    with pytest.raises(CalrecError, match="no mixture or task 'tiny_equal'"):
        tasks.in_use().mixture("tiny_equal")
    tasks.use(registered)
    assert tasks.in_use().mixture("tiny_equal").spec.domains == NAMES
    with pytest.raises(CalrecError, match="no mixture or task 'saved_mixture'"):
        tasks.in_use().mixture("saved_mixture")


@pytest.mark.parametrize("targets", ["last", "random", "all"])
def test_batches_are_those_of_the_store(registered, tmp_path, targets):
    def batches():
        mixture = tasks.in_use().mixture("saved_mixture")
        made = Batches(mixture, SPEC, LENGTHS, split="train", seed=3, targets=targets)
        return [made.batch(step) for step in (0, 1, 12345)]

    specs.add_mixture("saved_mixture", NAMES, {"tiny_books": 1, "tiny_games": 3}, 2.0)
    expected = batches()
    tasks.use(save(tmp_path, registered))
    for batch, expected_batch in zip(batches(), expected, strict=True):
        for name, value in expected_batch.items():
            np.testing.assert_array_equal(batch[name], value)


def test_saved_arrays_have_what_the_store_has(registered, tmp_path):
    found = {n: tasks.in_use().domain(n).sequences("test") for n in NAMES}
    catalogue = tasks.in_use().domain("tiny_books").catalogue
    tasks.use(save(tmp_path, registered))
    for name in NAMES:
        domain = tasks.in_use().domain(name)
        assert domain.sequences("test") == found[name]
        assert domain.num_sequences("train") == len(domain.placed_sequences("train")) > 0
        assert domain.checksums() == {"train": "abc"}
    assert tasks.in_use().domain("tiny_books").catalogue == catalogue
    assert tasks.in_use().mixture("saved_mixture").spec.temperature == 2.0
    histories = tasks.in_use().domain("tiny_books").placed_sequences("train")
    assert isinstance(histories.places, np.memmap)


def test_time_stamps_and_any_text_come_back(tmp_path, registered):
    catalogue = Catalogue.create("odd", {"ü\u2028": {"title": 'a "b"\nc'}, "z": {"title": "Z"}})
    sequences = [
        UserSequence("u\n1", "odd", ("z", "ü\u2028"), (5, 7)),
        UserSequence("u2", "odd", ("z", "z", "z")),
    ]
    text = tasks.in_use().domain("tiny_books").text
    splits = dict.fromkeys(arrays.SPLITS, sequences)
    arrays.write_domain(tmp_path, "odd", catalogue, text, splits)
    entry = {"dataset": "odd", "template": {}, "own_template": False, "checksums": {}}
    entry["sizes"] = arrays.sizes(catalogue, text, splits)
    arrays.write_index(tmp_path, registered.vocabulary, {"odd": entry}, {})
    assert arrays.read_sequences(tmp_path, "odd", "validation") == sequences
    assert arrays.read_catalogue(tmp_path, "odd") == catalogue


def test_another_template_or_vocabulary_is_refused(registered, tmp_path):
    config = save(tmp_path, registered)
    tasks.use(dataclasses.replace(config, template=Template(fields=("title",))))
    with pytest.raises(CalrecError, match="was saved with template .*run `calrec batches` again"):
        tasks.in_use().domain("tiny_books").tokens(LENGTHS)
    other = type("Other", (), {"vocab_size": 7, "encode": lambda self, text: [1]})()
    tasks.use(dataclasses.replace(config, vocabulary=other))
    with pytest.raises(CalrecError, match="was saved with vocabulary"):
        tasks.in_use().domain("tiny_books").tokens(LENGTHS)


def test_a_domains_own_template_stays_its_own(registered, tmp_path):
    config = save(tmp_path, registered, own_template=True)
    tasks.use(dataclasses.replace(config, template=Template(fields=("title", "brand"))))
    assert tasks.in_use().domain("tiny_books").template == registered.template
    assert len(tasks.in_use().domain("tiny_books").text.values) > 0


def test_a_store_is_no_folder_of_arrays(registered):
    assert not arrays.is_saved(registered.data_dir)
    assert not arrays.is_saved("gs://bucket/store")


def test_what_is_missing_or_damaged_is_named(registered, tmp_path):
    config = save(tmp_path, registered)
    tasks.use(config)
    with pytest.raises(CalrecError, match="no split 'dev'"):
        tasks.in_use().domain("tiny_books").sequences("dev")
    with pytest.raises(CalrecError, match="no domain 'tiny_film'"):
        arrays.read_catalogue(tmp_path, "tiny_film")
    (tmp_path / "tiny_books" / "train_places.npy").write_bytes(b"broken")
    with pytest.raises(CalrecError, match="train_places.npy is damaged: run `calrec batches`"):
        tasks.in_use().domain("tiny_books").placed_sequences("train")
    (tmp_path / arrays.INDEX).write_text('{"version": 99}')
    with pytest.raises(CalrecError, match="is of version 99, and version 1 is read here"):
        tasks.use(DataConfig(config.data_dir, config.vocabulary))
    for text in ('{"version": 1}', "[]"):
        (tmp_path / arrays.INDEX).write_text(text)
        with pytest.raises(CalrecError, match="arrays.json is .*: run `calrec batches` again"):
            tasks.use(config)
    (tmp_path / arrays.INDEX).write_text("{")
    with pytest.raises(CalrecError, match="arrays.json is damaged"):
        tasks.use(config)


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("catalogue.jsonl", lambda domain: domain.catalogue),
        ("text_values.npy", lambda domain: domain.text),
        ("text_splits.npy", lambda domain: domain.text),
        ("test_users.jsonl", lambda domain: domain.sequences("test")),
        ("test_places.npy", lambda domain: domain.placed_sequences("test")),
        ("test_splits.npy", lambda domain: domain.placed_sequences("test")),
        ("test_timestamps.npy", lambda domain: domain.sequences("test")),
    ],
)
def test_a_part_that_is_shorter_than_it_was_is_named(registered, tmp_path, part, read):
    tasks.use(save(tmp_path, registered))
    path = tmp_path / "tiny_books" / part
    if path.suffix == ".npy":
        np.save(path, np.load(path)[:-1])
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CalrecError, match=f"{part} is damaged: it has .* entries, and .* were wr"):
        read(tasks.in_use().domain("tiny_books"))


def test_splits_are_those_of_a_store():
    assert arrays.SPLITS == datasets.SPLITS
