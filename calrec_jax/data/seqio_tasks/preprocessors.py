"""From a record of the store to the features of a Task."""

from __future__ import annotations

import functools

import numpy as np

from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import TokenizedCatalogue

_AT_ONCE = 32  # records: a call of NumPy costs as much as the tokens of several


def joint_sequences(
    dataset: tf.data.Dataset, tokens: TokenizedCatalogue, eos_id: int
) -> tf.data.Dataset:
    """{user_id, item_ids, timestamps} -> {inputs, targets, target_item_ids, domain_ids}.

    `inputs` are the prompt's tokens, whole items from the oldest end left out where they are too
    many; `targets` those of the last item and EOS. The same code writes prompts at inference.
    """
    tokenize = functools.partial(_tokenize, tokens, eos_id)

    def features(records):
        item_ids = records["item_ids"]
        inputs, input_lengths, targets, target_lengths, *ids = tf.numpy_function(
            tokenize,
            [item_ids.flat_values, item_ids.row_lengths()],
            [tf.int32, tf.int64, tf.int32, tf.int64, tf.int32, tf.int32],
            stateful=False,
        )
        return {
            "inputs": tf.RaggedTensor.from_row_lengths(*_columns(inputs, input_lengths)),
            "targets": tf.RaggedTensor.from_row_lengths(*_columns(targets, target_lengths)),
            "target_item_ids": tf.ensure_shape(ids[0], [None]),
            "domain_ids": tf.ensure_shape(ids[1], [None]),
        }

    def dense(example):  # a ragged batch comes apart into ragged tensors without ragged axes
        return {name: tf.convert_to_tensor(value) for name, value in example.items()}

    records = dataset.map(lambda record: {"item_ids": record["item_ids"]}).ragged_batch(_AT_ONCE)
    examples = records.map(features, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return examples.unbatch().map(dense)


def _columns(*values: tf.Tensor) -> list[tf.Tensor]:
    return [tf.ensure_shape(value, [None]) for value in values]


def _tokenize(tokens: TokenizedCatalogue, eos_id: int, item_ids: np.ndarray, lengths: np.ndarray):
    """Features of some records: tokens one after another with their row lengths, then the ids."""
    domain = tokens.catalogue.domain
    inputs, targets, target_ids = [], [], []
    try:
        for record in np.split(item_ids, np.cumsum(lengths)[:-1]):
            *history, target = (item_id.decode() for item_id in record)
            inputs.append(tokens.prompt(history))
            targets.append(np.append(tokens.item(target), np.int32(eos_id)))
            target_ids.append(stable_id(domain, target))
    except CalrecError as error:
        raise CalrecError(f"damaged dataset: {error}") from error
    return (
        np.concatenate(inputs),
        np.array([len(row) for row in inputs]),
        np.concatenate(targets),
        np.array([len(row) for row in targets]),
        np.array(target_ids, np.int32),
        np.full(len(lengths), stable_id(domain), np.int32),
    )
