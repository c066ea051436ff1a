"""The segments of batches, however they are packed."""

from __future__ import annotations

import collections

import numpy as np

ROW_FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_positions",
    "decoder_span_ids",
)
SLOT_FEATURES = ("item_tokens", "item_mask", "target_item_ids", "domain_ids")


def segments(*batches) -> collections.Counter:
    """The multiset of the segments of `batches`, each as a tuple of its part of the features."""
    found = collections.Counter()
    for batch in batches:
        for row, ids in enumerate(batch["decoder_segment_ids"]):
            for segment in range(1, ids.max() + 1):
                tokens = [batch[name][row][ids == segment] for name in ROW_FEATURES]
                slot = [batch[name][row, segment - 1] for name in SLOT_FEATURES]
                found[tuple(tuple(np.ravel(value).tolist()) for value in tokens + slot)] += 1
    return found
