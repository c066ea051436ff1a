"""The batch: the one contract between data and model, which both sides check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from calrec_jax.errors import CalrecError

TARGETS = ("last", "random", "all")
"""Which item of a sequence is the target of a training example: the last one; a random one but the
first, drawn anew in each epoch; or each one but the first, every one in an example of its own."""

HISTORY, TARGET = 1, 2
"""The values of `decoder_span_ids`: the span that each input token belongs to. BOS and padding
belong to none and have 0."""


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Static sizes of a batch.

    Attributes:
      batch_size: B, rows over all hosts.
      row_length: S, tokens in a row.
      max_segments: K, joint sequences that a row may hold; 1 = unpacked.
      item_length: I, tokens of an item sequence: BOS and at most I - 1 tokens of the target.
      max_loss_tokens: M, tokens of a row that may carry loss weight; bounds the logits' memory.
    """

    batch_size: int
    row_length: int
    max_segments: int
    item_length: int
    max_loss_tokens: int

    @classmethod
    def create(
        cls,
        batch_size: int,
        lengths: Mapping[str, int],
        row_length: int | None = None,
        max_segments: int = 1,
        max_loss_tokens: int | None = None,
    ) -> BatchSpec:
        """The spec for these lengths of examples.

        Args:
          lengths: {"inputs": history tokens, "targets": target tokens with EOS}, at most.
          row_length: None = inputs + targets, so that every example fits.
          max_loss_tokens: None = the most that `max_segments` targets can have.

        Raises:
          CalrecError: a row could not hold the longest example.
        """
        longest = lengths["inputs"] + lengths["targets"]
        row_length = longest if row_length is None else row_length
        if row_length < longest:
            raise CalrecError(
                f"row_length {row_length} is shorter than the longest example, inputs + targets "
                f"= {longest}: raise row_length or lower TASK_FEATURE_LENGTHS"
            )
        most = min(row_length, max_segments * lengths["targets"])
        loss_tokens = most if max_loss_tokens is None else min(max_loss_tokens, most)
        if loss_tokens < lengths["targets"]:
            raise CalrecError(
                f"max_loss_tokens {loss_tokens} cannot hold one target of {lengths['targets']}"
            )
        return cls(batch_size, row_length, max_segments, lengths["targets"], loss_tokens)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """{feature: (shape, dtype)}. The leading axis of each is B."""
        b, s, k, i = self.batch_size, self.row_length, self.max_segments, self.item_length
        int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
        return {
            "decoder_input_tokens": ((b, s), int32),
            "decoder_target_tokens": ((b, s), int32),
            "decoder_loss_weights": ((b, s), float32),
            "decoder_positions": ((b, s), int32),
            "decoder_segment_ids": ((b, s), int32),
            "decoder_span_ids": ((b, s), int32),
            "item_tokens": ((b, k, i), int32),
            "item_mask": ((b, k, i), float32),
            "target_item_ids": ((b, k), int32),
            "domain_ids": ((b, k), int32),
        }

    def check(self, batch: Mapping[str, np.ndarray]) -> None:
        """Checks that a host's batch has this spec.

        Raises:
          CalrecError: a feature is missing, unknown, or of another shape or dtype; or a row has
            more than `max_loss_tokens` loss tokens, some of which the loss would leave out.
        """
        shapes = self.shapes()
        if batch.keys() != shapes.keys():
            missing, unknown = shapes.keys() - batch.keys(), batch.keys() - shapes.keys()
            raise CalrecError(f"batch lacks {sorted(missing)} and has unknown {sorted(unknown)}")
        for name, (shape, dtype) in shapes.items():
            value = batch[name]
            if value.shape != shape or value.dtype != dtype:
                raise CalrecError(
                    f"batch feature {name} is {value.dtype}{value.shape}, not {dtype}{shape}"
                )
        loss_tokens = int((batch["decoder_loss_weights"] != 0).sum(axis=1).max())
        if loss_tokens > self.max_loss_tokens:
            raise CalrecError(
                f"a row has {loss_tokens} loss tokens, more than {self.max_loss_tokens}"
            )
