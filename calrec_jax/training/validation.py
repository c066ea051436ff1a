"""Validation: the losses of many batches, added up on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import jax

from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.params import Params
from calrec_jax.training.step import Batch, loss_sums


def make_validation_step(
    decoder: Decoder, config: LossConfig, max_loss_tokens: int
) -> Callable[[Params, Batch], LossSums]:
    """validation_step(params, batch) -> LossSums; `params` are all that the decoder has."""

    def validation_step(params: Params, batch: Batch) -> LossSums:
        return loss_sums(decoder, params, batch, config, max_loss_tokens)

    return validation_step


def mean_losses(
    sums: Iterable[LossSums], means: Callable[[LossSums], Mapping[str, jax.Array]]
) -> dict[str, float] | None:
    """Mean losses over several batches. The host waits for the device once, at the end.

    Args:
      sums: those of each batch.
      means: LossSums -> {name: scalar}.

    Returns:
      {name: mean}, or None where there was no batch.
    """
    total = None
    for batch_sums in sums:
        total = batch_sums if total is None else jax.tree.map(lambda a, b: a + b, total, batch_sums)
    if total is None:
        return None
    return {name: float(value) for name, value in jax.device_get(means(total)).items()}
