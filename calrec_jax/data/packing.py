"""Packing: several joint sequences into one row, and the arrays of a row. Pure NumPy.

The layout of a segment with history tokens h1..hn and target tokens t1..tm:

    input tokens   BOS h1 .. hn t1 .. tm
    target tokens  h1  .. hn t1 .. tm EOS      loss weight 1 on t1 .. tm and EOS
    span           0   1  .. 1  2  .. 2        by input token; BOS is of no span
    position       0   1  .. n  .. n+m
"""

from __future__ import annotations

import dataclasses

import numpy as np

from calrec_jax.batch import BatchSpec
from calrec_jax.errors import CalrecError

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Example:
    """One joint sequence.

    Attributes:
      inputs: int32 [n], tokens of the prompt, without BOS.
      targets: int32 [m + 1], tokens of the target and EOS.
      item_id, domain_id: stable ids of the target and of its domain.
    """

    inputs: np.ndarray
    targets: np.ndarray
    item_id: int
    domain_id: int

    def __len__(self) -> int:
        return len(self.inputs) + len(self.targets)


def pack(lengths: np.ndarray, loss_lengths: np.ndarray, spec: BatchSpec) -> list[list[int]]:
    """Which examples share a row: first-fit-decreasing, by tokens.

    No row has more than `row_length` tokens, `max_segments` examples or `max_loss_tokens` loss
    tokens; every example is in one row, whole.

    Args:
      lengths: [n], tokens of each example.
      loss_lengths: [n], those that carry loss weight.

    Returns:
      Rows of places in `lengths`, in the order in which they were opened; the rows of a shuffled
      window are in no order that tells anything but that longer examples come first.

    Raises:
      CalrecError: an example is too long for a row of its own.
    """
    n = len(lengths)
    _check_fit(lengths, spec.row_length, "tokens")
    _check_fit(loss_lengths, spec.max_loss_tokens, "loss tokens")
    if spec.max_segments == 1:
        return [[i] for i in range(n)]
    rows: list[list[int]] = []
    free = np.full(n, spec.row_length)
    free_segments = np.full(n, spec.max_segments)
    free_loss = np.full(n, spec.max_loss_tokens)
    for i in np.argsort(-lengths, kind="stable"):
        fits = (
            (free[: len(rows) + 1] >= lengths[i])
            & (free_segments[: len(rows) + 1] > 0)
            & (free_loss[: len(rows) + 1] >= loss_lengths[i])
        )
        row = int(np.argmax(fits))  # the first that fits; the last is a new, empty one
        if row == len(rows):
            rows.append([])
        rows[row].append(int(i))
        free[row] -= lengths[i]
        free_segments[row] -= 1
        free_loss[row] -= loss_lengths[i]
    return rows


def _check_fit(lengths: np.ndarray, room: int, what: str) -> None:
    longest = max(lengths, default=0)
    if longest > room:
        raise CalrecError(f"an example has {longest} {what}, but a row has room for {room}")


def make_row(examples: list[Example], spec: BatchSpec, bos_id: int) -> Row:
    """The arrays of one row: each feature of `spec.shapes()` without its batch axis."""
    row = {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in spec.shapes().items()}
    start = 0
    for slot, example in enumerate(examples):
        _place(row, example, slot, start, bos_id)
        start += len(example)
    return row


def _place(row: Row, example: Example, slot: int, start: int, bos_id: int) -> None:
    n, m = len(example.inputs), len(example.targets) - 1
    here = slice(start, start + n + m + 1)
    tokens = np.concatenate([example.inputs, example.targets])
    row["decoder_target_tokens"][here] = tokens
    row["decoder_input_tokens"][here] = np.concatenate([[bos_id], tokens[:-1]])
    row["decoder_positions"][here] = np.arange(n + m + 1)
    row["decoder_segment_ids"][here] = slot + 1
    row["decoder_loss_weights"][start + n : here.stop] = 1
    row["decoder_span_ids"][start + 1 : start + 1 + n] = 1
    row["decoder_span_ids"][start + 1 + n : here.stop] = 2
    row["item_tokens"][slot, : m + 1] = np.concatenate([[bos_id], example.targets[:-1]])
    row["item_mask"][slot, 1 : m + 1] = 1
    row["target_item_ids"][slot] = example.item_id
    row["domain_ids"][slot] = example.domain_id
