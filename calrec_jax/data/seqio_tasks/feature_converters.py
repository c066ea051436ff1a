"""The SeqIO feature converter that makes rows of joint sequences, packed and unpacked."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.data import packing
from calrec_jax.data.store.quiet_tensorflow import seqio, tf

_IDS = ("target_item_ids", "domain_ids")
_FEATURES = BatchSpec(1, 1, 1, 1, 1).shapes()
_UNPACKED_WINDOW = 32  # only to call NumPy less often


class CalrecFeatureConverter(seqio.FeatureConverter):
    """Examples {inputs, targets, target_item_ids, domain_ids} -> rows, without the batch axis.

    The features of a row are those of `BatchSpec`. Examples are packed in windows, each on its own:
    a row depends on its window alone. The rows of a window are in the order of their first
    examples, so they are shuffled as the examples are. The arguments up to `bos_id` are those of
    SeqIO, as T5X passes them.

    Args:
      pack: whether a row may hold several examples.
      use_custom_packing_ops: has no effect, because SeqIO's packing is not used.
      apply_length_check: whether SeqIO checks lengths.
      bos_id: the first input token of each segment.
      row_length, max_loss_tokens: see `BatchSpec.create`.
      max_segments: examples that a packed row may hold.
      window: examples that are packed together.
    """

    TASK_FEATURES = {
        "inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        **{name: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0) for name in _IDS},
    }
    MODEL_FEATURES = {
        name: seqio.FeatureConverter.FeatureSpec(
            dtype=tf.as_dtype(dtype), rank=len(shape) - 1, sequence_dim=0
        )
        for name, (shape, dtype) in _FEATURES.items()
    }
    PACKING_FEATURE_DTYPES = {}

    def __init__(
        self,
        pack: bool = True,
        use_custom_packing_ops: bool = False,
        apply_length_check: bool = True,
        bos_id: int = 0,
        *,
        row_length: int | None = None,
        max_segments: int = 8,
        max_loss_tokens: int | None = None,
        window: int = 512,
    ):
        del use_custom_packing_ops
        # True, because SeqIO would otherwise refuse to pack features that are not of rank 1.
        super().__init__(pack, True, apply_length_check, bos_id)
        self._row_length, self._max_loss_tokens = row_length, max_loss_tokens
        self._max_segments = max_segments if pack else 1
        self._window = window

    def spec(self, task_feature_lengths: Mapping[str, int]) -> BatchSpec:
        """The shapes of a batch of one row. Raises as `BatchSpec.create` does."""
        return BatchSpec.create(
            1, task_feature_lengths, self._row_length, self._max_segments, self._max_loss_tokens
        )

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """The rows of the examples `ds`."""
        # Ids have no length, but SeqIO wants every task feature named.
        return super().__call__(ds, {**task_feature_lengths, **{name: 1 for name in _IDS}})

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        """{feature: the length of its first axis}."""
        shapes = self.spec(task_feature_lengths).shapes()
        return {name: shape[1] for name, (shape, _) in shapes.items()}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        spec = self.spec(task_feature_lengths)
        shapes = spec.shapes()
        window = self._window if self.pack else _UNPACKED_WINDOW

        def convert(examples: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            rows = tf.numpy_function(
                functools.partial(_rows, spec, self.bos_id),
                [
                    examples["inputs"].flat_values,
                    examples["inputs"].row_lengths(),
                    examples["targets"].flat_values,
                    examples["targets"].row_lengths(),
                    *[examples[name] for name in _IDS],
                ],
                [tf.as_dtype(dtype) for _, dtype in shapes.values()],
                stateful=False,
            )
            return {
                name: tf.ensure_shape(value, [None, *shape[1:]])
                for (name, (shape, _)), value in zip(shapes.items(), rows, strict=True)
            }

        ds = ds.map(lambda example: {name: example[name] for name in self.TASK_FEATURES})
        ds = ds.ragged_batch(window).map(
            convert, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return ds.unbatch()


def _rows(
    spec: BatchSpec,
    bos_id: int,
    inputs: np.ndarray,
    input_lengths: np.ndarray,
    targets: np.ndarray,
    target_lengths: np.ndarray,
    item_ids: np.ndarray,
    domain_ids: np.ndarray,
) -> list[np.ndarray]:
    """The rows of one window, each feature stacked.

    Args:
      inputs, targets: int32, the tokens of all examples, one after another.
      input_lengths, target_lengths: int64 [examples], their numbers of tokens.
      item_ids, domain_ids: int32 [examples].
    """
    examples = [
        packing.Example(*example)
        for example in zip(
            np.split(inputs, np.cumsum(input_lengths)[:-1]),
            np.split(targets, np.cumsum(target_lengths)[:-1]),
            item_ids,
            domain_ids,
            strict=True,
        )
    ]
    assignment = packing.pack(input_lengths + target_lengths, target_lengths, spec)
    rows = [
        packing.make_row([examples[i] for i in sorted(row)], spec, bos_id)
        for row in sorted(assignment, key=min)
    ]
    return [np.stack([row[name] for row in rows]) for name in spec.shapes()]
