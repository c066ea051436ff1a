"""The features of a SeqIO task, made of the records of a store."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from calrec_jax.data.store.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import TokenizedCatalogue

_RECORDS = 32  # of a call: calling NumPy costs as much as the tokens of several records


def joint_sequences(
    dataset: tf.data.Dataset, tokens: TokenizedCatalogue, eos_id: int
) -> tf.data.Dataset:
    """{user_id, item_ids, timestamps} -> {inputs, targets, target_item_ids, domain_ids}.

    `inputs` are the tokens of the prompt, without the oldest items if they are too many; `targets`
    are the tokens of the last item, and EOS. The same code writes prompts at inference.
    """
    tokenize = functools.partial(_tokenize, tokens, eos_id)

    def features(records: Mapping[str, tf.RaggedTensor]) -> dict[str, tf.RaggedTensor | tf.Tensor]:
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

    def dense(example: Mapping[str, tf.RaggedTensor | tf.Tensor]) -> dict[str, tf.Tensor]:
        # The elements of a ragged batch are ragged tensors, though they have no ragged axis.
        return {name: tf.convert_to_tensor(value) for name, value in example.items()}

    records = dataset.map(lambda record: {"item_ids": record["item_ids"]}).ragged_batch(_RECORDS)
    examples = records.map(features, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return examples.unbatch().map(dense)


def _columns(*values: tf.Tensor) -> list[tf.Tensor]:
    """Tensors of one axis, which TensorFlow does not know of results of NumPy."""
    return [tf.ensure_shape(value, [None]) for value in values]


def _tokenize(
    tokens: TokenizedCatalogue, eos_id: int, item_ids: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The features of records.

    Args:
      item_ids: the item ids (bytes) of all records, one after another.
      lengths: int64 [records], their numbers of items.

    Returns:
      Tokens of the inputs (int32, one after another) and their numbers (int64 [records]), the same
      for targets, target item ids (int32 [records]) and domain ids (int32 [records]).
    """
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
