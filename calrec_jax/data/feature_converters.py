"""The SeqIO feature converter that makes rows of joint sequences, packed and unpacked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seqio

from calrec_jax.batch import BatchSpec
from calrec_jax.data import packing
from calrec_jax.data.quiet_tensorflow import tf

_IDS = ("target_item_ids", "domain_ids")
_FEATURES = BatchSpec(1, 1, 1, 1, 1).shapes()


class CalrecFeatureConverter(seqio.FeatureConverter):
    """Examples {inputs, targets, target_item_ids, domain_ids} -> rows of `spec`, without batch axis.

    Examples are packed in windows, each on its own: what a row holds depends on its window alone.
    Rows leave a window in the order of their first examples, so they are as shuffled as those.

    Args:
      spec: the sizes; max_segments 1 = a row an example.
      bos_id: what each segment's input starts with.
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

    def __init__(self, spec: BatchSpec, bos_id: int, window: int = 512):
        super().__init__(pack=False, bos_id=bos_id)
        self._spec, self._window = spec, window

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]):
        # Ids have no length, but SeqIO wants every task feature named.
        return super().__call__(ds, {**task_feature_lengths, **{name: 1 for name in _IDS}})

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]):
        """First axis of each feature."""
        return {name: shape[1] for name, (shape, _) in self._spec.shapes().items()}

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]):
        shapes = self._spec.shapes()
        window = self._window if self._spec.max_segments > 1 else 32

        def convert(examples):
            rows = tf.numpy_function(
                self._rows,
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

    def _rows(self, inputs, input_lengths, targets, target_lengths, item_ids, domain_ids):
        """The rows of one window, each feature stacked."""
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
        assignment = packing.pack(input_lengths + target_lengths, target_lengths, self._spec)
        rows = [
            packing.make_row([examples[i] for i in sorted(row)], self._spec, self.bos_id)
            for row in sorted(assignment, key=min)
        ]
        return [np.stack([row[name] for row in rows]) for name in self._spec.shapes()]
