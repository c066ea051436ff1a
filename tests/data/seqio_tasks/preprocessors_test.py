import dataclasses

import numpy as np
import pytest
import seqio

from calrec_jax.data import vocabularies
from calrec_jax.data.seqio_tasks import preprocessors, tasks
from calrec_jax.data.store import reader
from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id

LENGTHS = {"inputs": 80, "targets": 24}


def examples(domain, lengths, split="train"):
    task = seqio.get_mixture_or_task(domain)
    return list(task.get_dataset(lengths, split, shuffle=False).as_numpy_iterator())


def text(ids):
    return vocabularies.byte().decode(ids)


def test_every_record_becomes_its_features(tiny_config):
    records = reader.read_sequences(tiny_config.data_dir, "tiny_books", "train")
    catalogue = reader.read_catalogue(tiny_config.data_dir, "tiny_books")
    found = examples("tiny_books", {"inputs": 400, "targets": 60})
    assert len(found) == len(records) == 37  # more than one call of NumPy, the last one not full
    for record, example in zip(records, found, strict=True):
        *history, target = [catalogue.fields[i] for i in catalogue.places(record.item_ids)]
        template = tiny_config.template
        assert text(example["inputs"]) == template.render_prompt(history)
        assert text(example["targets"]) == template.render_item(target)
        assert example["targets"][-1] == 1  # EOS
        assert example["target_item_ids"] == stable_id("tiny_books", record.target)
        assert example["domain_ids"] == stable_id("tiny_books")
        assert {value.dtype for value in example.values()} == {np.dtype(np.int32)}


def test_long_histories_lose_whole_items_from_the_oldest_end(tiny_config):
    whole = examples("tiny_books", {"inputs": 400, "targets": 24}, "test")
    cut = examples("tiny_books", LENGTHS, "test")
    shortened = 0
    for long, short in zip(whole, cut, strict=True):
        assert len(short["inputs"]) <= LENGTHS["inputs"]
        long_items = text(long["inputs"]).removeprefix("Bought: ").split("; ")
        short_items = text(short["inputs"]).removeprefix("Bought: ").split("; ")
        assert short_items == long_items[-len(short_items) :]
        shortened += len(short_items) < len(long_items)
    assert shortened


def test_training_reads_the_prompts_of_inference(tiny_config):
    tokens = tasks.in_use().domain("tiny_games").tokens(LENGTHS)
    records = reader.read_sequences(tiny_config.data_dir, "tiny_games", "test")
    for record, example in zip(records, examples("tiny_games", LENGTHS, "test"), strict=True):
        assert example["inputs"].tolist() == tokens.prompt(record.history).tolist()


def test_long_items_are_cut_and_keep_eos(tiny_config):
    for example in examples("tiny_books", {"inputs": 80, "targets": 9}):
        assert len(example["targets"]) == 9 and example["targets"][-1] == 1


def test_an_item_that_is_not_in_the_catalogue_is_named(tiny_config):
    tokens = tasks.in_use().domain("tiny_books").tokens(LENGTHS)
    bad = [b"i00", b"gone", b"i01"]
    with pytest.raises(CalrecError, match="damaged dataset: tiny_books has no item 'gone'"):
        preprocessors._tokenize(tokens, 1, np.array(bad, object), np.array([3]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("titel",), "Template.fields names 'titel', which no item of tiny_books has: did you m"),
        (("title", "colour"), "names 'colour', which no item of tiny_books has; known: .'brand'"),
        (("brand", "price"), "20 items of tiny_books have none of the fields brand, price"),
    ],
)
def test_a_template_that_does_not_fit_the_items_is_refused(tiny_config, fields, message):
    template = dataclasses.replace(tiny_config.template, fields=fields)
    tasks.use(dataclasses.replace(tiny_config, template=template))
    with pytest.raises(CalrecError, match=message):
        tasks.in_use().domain("tiny_books").tokens(LENGTHS)


def test_a_known_field_may_be_missing_everywhere(tiny_config):
    template = dataclasses.replace(tiny_config.template, fields=("title", "brand"))
    tasks.use(dataclasses.replace(tiny_config, template=template))
    assert tasks.in_use().domain("tiny_books").tokens(LENGTHS).item_lengths.min() > 0


def test_seqio_knows_the_shapes(tiny_config):
    dataset = seqio.get_mixture_or_task("tiny_books").get_dataset(LENGTHS, "train")
    row, number = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    assert dataset.element_spec == {
        "inputs": row,
        "targets": row,
        "target_item_ids": number,
        "domain_ids": number,
    }
