"""From a record of the store to the features of a Task."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calrec_jax.data import store
from calrec_jax.data.quiet_tensorflow import tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import PromptBuilder, TokenizedCatalogue
from calrec_jax.text.templates import Template


def tokenized_catalogue(
    data_dir: str, dataset: str, template: Template, vocabulary, lengths: Mapping[str, int]
) -> TokenizedCatalogue:
    """The catalogue of a dataset, each item tokenised once.

    Args:
      lengths: TASK_FEATURE_LENGTHS; an item takes at most targets - 1 tokens, one is for EOS.
    """
    encode = vocabulary.encode
    builder = PromptBuilder(template, encode, lengths["inputs"], lengths["targets"] - 1)
    return TokenizedCatalogue(store.read_catalogue(data_dir, dataset), builder)


def joint_sequences(
    dataset: tf.data.Dataset, tokens: TokenizedCatalogue, eos_id: int
) -> tf.data.Dataset:
    """{user_id, item_ids, timestamps} -> {inputs, targets, target_item_ids, domain_ids}.

    `inputs` are the prompt's tokens, whole items from the oldest end left out where they are too
    many; `targets` those of the last item and EOS. The same code writes prompts at inference.
    """
    domain = tokens.catalogue.domain
    domain_id = np.int32(stable_id(domain))

    def tokenize(item_ids: np.ndarray):
        *history, target = (item_id.decode() for item_id in item_ids)
        try:
            inputs = tokens.prompt(history)
            targets = np.append(tokens.item(target), np.int32(eos_id))
        except CalrecError as error:
            raise CalrecError(f"damaged dataset: {error}") from error
        return inputs, targets, np.int32(stable_id(domain, target)), domain_id

    def features(record):
        inputs, targets, item, domain = tf.numpy_function(
            tokenize, [record["item_ids"]], [tf.int32] * 4, stateful=False
        )
        return {
            "inputs": tf.ensure_shape(inputs, [None]),
            "targets": tf.ensure_shape(targets, [None]),
            "target_item_ids": tf.ensure_shape(item, []),
            "domain_ids": tf.ensure_shape(domain, []),
        }

    return dataset.map(features, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
