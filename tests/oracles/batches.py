"""The batch between data and model, built from examples with plain loops. An example is
{"history": [token ids], "target": [token ids], "item_id": int, "domain_id": int}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FLOAT_FEATURES = ("decoder_loss_weights", "item_mask")
SEGMENT_FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_positions",
    "decoder_segment_ids",
    "decoder_span_ids",
)


def joint_segment(
    example: dict[str, Any], segment_id: int, bos_id: int, eos_id: int
) -> dict[str, list[int]]:
    """One example's history and target as a segment of n + m + 1 places.

    input tokens [BOS, h1..hn, t1..tm]; target tokens [h1..hn, t1..tm, EOS]; weight 1 where the
    target token is t1..tm or EOS; positions 0..n+m; span by input token: 0 BOS, 1 h, 2 t.
    """
    history, target = list(example["history"]), list(example["target"])
    n, m = len(history), len(target)
    return {
        "decoder_input_tokens": [bos_id] + history + target,
        "decoder_target_tokens": history + target + [eos_id],
        "decoder_loss_weights": [0] * n + [1] * m + [1],
        "decoder_positions": list(range(n + m + 1)),
        "decoder_segment_ids": [segment_id] * (n + m + 1),
        "decoder_span_ids": [0] + [1] * n + [2] * m,
    }


def item_sequence(example: dict[str, Any], bos_id: int) -> tuple[list[int], list[int]]:
    """item_tokens = [BOS, t1..tm], and item_mask = 1 on t1..tm only."""
    target = list(example["target"])
    return [bos_id] + target, [0] + [1] * len(target)


def pad(values: Sequence[int], length: int) -> list[int]:
    """The values, then zeros up to the length. Raises ValueError if they are too long."""
    if len(values) > length:
        raise ValueError(f"{len(values)} places do not fit in {length}")
    return list(values) + [0] * (length - len(values))


def _arrays(features: dict[str, list]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, values in features.items():
        dtype = np.float32 if name in FLOAT_FEATURES else np.int32
        arrays[name] = np.array(values, dtype=dtype)
    return arrays


def unpacked_batch(
    examples: Sequence[dict[str, Any]],
    row_length: int,
    item_length: int,
    bos_id: int,
    eos_id: int,
) -> dict[str, np.ndarray]:
    """One example a row, K = 1: decoder_* [B, S], item_* [B, 1, I], ids [B, 1]."""
    features: dict[str, list] = {name: [] for name in SEGMENT_FEATURES}
    features |= {"item_tokens": [], "item_mask": [], "target_item_ids": [], "domain_ids": []}
    for example in examples:
        segment = joint_segment(example, 1, bos_id, eos_id)
        for name in SEGMENT_FEATURES:
            features[name].append(pad(segment[name], row_length))
        tokens, mask = item_sequence(example, bos_id)
        features["item_tokens"].append([pad(tokens, item_length)])
        features["item_mask"].append([pad(mask, item_length)])
        features["target_item_ids"].append([example["item_id"]])
        features["domain_ids"].append([example["domain_id"]])
    return _arrays(features)


def packed_batch(
    examples: Sequence[dict[str, Any]],
    rows: Sequence[Sequence[int]],
    row_length: int,
    item_length: int,
    max_segments: int,
    bos_id: int,
    eos_id: int,
) -> dict[str, np.ndarray]:
    """rows[r] lists the examples of row r, in order; the k-th is segment k + 1 and slot k.

    decoder_* [B, S], item_* [B, K, I], ids [B, K]. Segments stand one after another from the
    row's start, pads at its end; an empty slot is zeros throughout.
    """
    features: dict[str, list] = {name: [] for name in SEGMENT_FEATURES}
    features |= {"item_tokens": [], "item_mask": [], "target_item_ids": [], "domain_ids": []}
    for row in rows:
        joint: dict[str, list] = {name: [] for name in SEGMENT_FEATURES}
        item_tokens, item_mask, item_ids, domain_ids = [], [], [], []
        for slot, index in enumerate(row):
            example = examples[index]
            segment = joint_segment(example, slot + 1, bos_id, eos_id)
            for name in SEGMENT_FEATURES:
                joint[name] = joint[name] + segment[name]
            tokens, mask = item_sequence(example, bos_id)
            item_tokens.append(pad(tokens, item_length))
            item_mask.append(pad(mask, item_length))
            item_ids.append(example["item_id"])
            domain_ids.append(example["domain_id"])
        while len(item_tokens) < max_segments:
            item_tokens.append([0] * item_length)
            item_mask.append([0] * item_length)
        for name in SEGMENT_FEATURES:
            features[name].append(pad(joint[name], row_length))
        features["item_tokens"].append(item_tokens)
        features["item_mask"].append(item_mask)
        features["target_item_ids"].append(pad(item_ids, max_segments))
        features["domain_ids"].append(pad(domain_ids, max_segments))
    return _arrays(features)
