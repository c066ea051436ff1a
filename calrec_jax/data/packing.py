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

from calrec_jax.batch import HISTORY, TARGET, BatchSpec
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
    """Decides which examples share a row: best-fit decreasing, by tokens.

    No row has more than `row_length` tokens, `max_segments` examples or `max_loss_tokens` loss
    tokens; every example is in exactly one row, unsplit. A new row is opened only for an example
    that fits no other. The rows depend on the lengths alone; examples of equal lengths are
    interchangeable.

    Args:
      lengths: int [n], the number of tokens of each example.
      loss_lengths: int [n], how many of them carry loss weight.

    Returns:
      Rows of indices into `lengths`, in the order in which they were opened: longest examples
      first.

    Raises:
      CalrecError: an example is too long for a row of its own.
    """
    _check_fit(lengths, spec.row_length, "tokens")
    _check_fit(loss_lengths, spec.max_loss_tokens, "loss tokens")
    if spec.max_segments == 1:
        return [[i] for i in range(len(lengths))]
    rows = _OpenRows(spec)
    # Lists: access to single numbers is faster than in NumPy's arrays.
    length, loss = lengths.tolist(), loss_lengths.tolist()
    for i in np.lexsort((-loss_lengths, -lengths)).tolist():
        rows.add(i, length[i], loss[i])
    return rows.rows


class _OpenRows:
    """Rows that are being filled, indexed by the room that they have left."""

    def __init__(self, spec: BatchSpec):
        self.rows: list[list[int]] = []
        self._spec = spec
        self._loss: list[int] = []  # loss tokens in each row
        self._with_room: list[list[int]] = [[] for _ in range(spec.row_length + 1)]  # by room
        self._rooms = 0  # bit r is set where `_with_room[r]` holds a row

    def add(self, example: int, length: int, loss: int) -> None:
        """Puts an example where it leaves the least room, into a new row if it fits no other."""
        row, room = self._take(length, loss)
        self.rows[row].append(example)
        self._loss[row] += loss
        if len(self.rows[row]) < self._spec.max_segments:
            self._with_room[room - length].append(row)
            self._rooms |= 1 << (room - length)

    def _take(self, length: int, loss: int) -> tuple[int, int]:
        """Takes out the fullest row that has room for the example, or opens one: (row, room)."""
        rooms = self._rooms >> length << length
        while rooms:
            room = (rooms & -rooms).bit_length() - 1
            rows = self._with_room[room]
            for at in range(len(rows) - 1, -1, -1):
                if self._loss[rows[at]] + loss <= self._spec.max_loss_tokens:
                    row = rows.pop(at)
                    if not rows:
                        self._rooms &= ~(1 << room)
                    return row, room
            rooms &= rooms - 1
        self.rows.append([])
        self._loss.append(0)
        return len(self.rows) - 1, self._spec.row_length


def _check_fit(lengths: np.ndarray, room: int, what: str) -> None:
    longest = lengths.max(initial=0)
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
    row["decoder_span_ids"][start + 1 : start + 1 + n] = HISTORY
    row["decoder_span_ids"][start + 1 + n : here.stop] = TARGET
    row["item_tokens"][slot, : m + 1] = np.concatenate([[bos_id], example.targets[:-1]])
    row["item_mask"][slot, 1 : m + 1] = 1
    row["target_item_ids"][slot] = example.item_id
    row["domain_ids"][slot] = example.domain_id
